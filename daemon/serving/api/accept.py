"""Which of several representations a client prefers: the Accept header (RFC 9110, section 12.5.1), weights included."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

ANYTHING = "*"
RANGES_READ = 64
"""Media ranges of one header that are looked at; browsers send fewer than ten."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """`main/sub; name=value`, in lower case."""

    main: str
    sub: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def covers(self, other: "MediaType") -> bool:
        """Whether this range, perhaps with `*`, admits `other`."""
        if self.main not in (ANYTHING, other.main) or self.sub not in (ANYTHING, other.sub):
            return False
        return self.parameters.items() <= other.parameters.items()

    @property
    def precision(self) -> tuple[bool, bool, int]:
        """Sorts ranges: the most specific one that covers a type decides about it."""
        return self.main != ANYTHING, self.sub != ANYTHING, len(self.parameters)


def prefer(accept: str, offered: Sequence[MediaType]) -> int | None:
    """Index of the type in `offered` that the header wants most, the earliest among equals; None if it wants none.

    No header means anything will do; ranges that cannot be read are passed over, and so are parameters that no offer
    has: `application/json; charset=utf-8` asks for JSON.
    """
    if not accept.strip():
        return 0
    known = {name for one in offered for name in one.parameters}
    ranges = [parsed for item in accept.split(",")[:RANGES_READ] if (parsed := _range(item, known)) is not None]
    weights = [_weight(one, ranges) for one in offered]
    best = max(weights, default=0.0)
    return weights.index(best) if best > 0 else None


def _weight(offer: MediaType, ranges: Sequence[tuple[MediaType, float]]) -> float:
    """The weight (0-1) that a header gives to `offer`."""
    covering = [(one.precision, weight) for one, weight in ranges if one.covers(offer)]
    return max(covering, default=((), 0.0))[1]


def _range(text: str, known: Set[str]) -> tuple[MediaType, float] | None:
    """A media range, with its parameters as far as `known`, and its weight; None for what is not one."""
    name, *rest = (part.strip().lower() for part in text.split(";"))
    main, slash, sub = name.partition("/")
    if not (main and slash and sub) or (main == ANYTHING and sub != ANYTHING):
        return None
    parameters = {key.strip(): value.strip().strip('"') for key, _, value in (part.partition("=") for part in rest)}
    weight = _number(parameters.pop("q", "1"))
    parameters = {key: value for key, value in parameters.items() if key in known}
    return None if weight is None else (MediaType(main, sub, parameters), weight)


def _number(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and 0 <= weight <= 1 else None
