"""What the labels of a set hold, by value: the table that is shown, what cannot be meant, what is worth a warning."""

from collections import Counter
from collections.abc import Iterable, Mapping

from storage.source.label_file import Label, UnknownValue
from storage.source.label_map import CITYSCAPES_NAMES, MOST_VALUES, LabelMap

SHOWN_ROWS = 24
"""Most rows of a table; it fits on one screen."""
SHOWN_NAMES = 12
"""Most names in a sentence."""


class LabelCounts:
    """Pixels by label value over the labels that were read: all of a set, or a sample."""

    def __init__(self, label_map: LabelMap, values: Mapping[int, int] | None = None, *, sample: bool = False) -> None:
        self._map, self._sample = label_map, sample
        self.values: Counter[int] = Counter(values or {})
        """Pixels by label value, those without a meaning included."""
        self.unlabelled: list[str] = []
        """Names of labels without a pixel of any class."""
        self.untrained: list[str] = []
        """Classes that only held-out labels hold."""
        self._colors: dict[int, tuple[tuple[int, ...], str]] = {}
        self._recoloured = ""

    def add(self, label: Label | UnknownValue, name: str) -> None:
        """Count a label that was read, or one that holds values without a meaning."""
        if isinstance(label, UnknownValue):
            if len(self.values) < MOST_VALUES:
                self.values.update(label.values)
            return
        self.values.update(label.values)
        if not any(self._is_class(value) for value in label.values):
            self.unlabelled.append(name)
        for value, color in label.palette.items():
            first, where = self._colors.setdefault(value, (color, name))
            if first != color and not self._recoloured:
                self._recoloured = (
                    f"{name}: palette index {value} has the colour {color} here, {first} in {where}; indices of "
                    "different palettes cannot be compared: source.label_format: rgb reads colours"
                )

    def rows(self) -> list[tuple[str, str, int]]:
        """Return (label value, meaning, pixels): what is odd first, then by value; a class without a pixel has `-`."""
        held = [(self._map.text(value), self._map.name(value), count) for value, count in sorted(self.values.items())]
        absent = [("-", name, 0) for name in self.missing()]
        return [*(row for row in held if row[1] == "?"), *absent, *(row for row in held if row[1] != "?")]

    def lines(self) -> list[str]:
        """Return the table as text, at most `SHOWN_ROWS` rows; what is there comes before classes without a pixel."""
        total, rows = max(1, sum(self.values.values())), self.rows()
        if len(rows) > SHOWN_ROWS:
            rows = sorted(rows, key=lambda row: row[2] == 0)
        shown = [(value, f"{100 * pixels / total:.2f} %", name) for value, name, pixels in rows[:SHOWN_ROWS]]
        widths = [max(len(row[column]) for row in [("value", "share", ""), *shown]) for column in (0, 1)]
        lines = [f"{value:>{widths[0]}}  {share:>{widths[1]}}  {name}" for value, share, name in shown]
        rest = [f"and {len(rows) - SHOWN_ROWS} more values or classes"] if len(rows) > SHOWN_ROWS else []
        return [f"{'value':>{widths[0]}}  {'share':>{widths[1]}}  class", *lines, *rest]

    def missing(self) -> list[str]:
        """Return names of classes without a pixel."""
        held = {self._map.classes.get(value) for value in self.values}
        return [name for index, name in enumerate(self._map.names) if index not in held]

    def problems(self) -> list[str]:
        """Return what cannot be meant: one sentence each, with the setting that would fit; empty when all is well."""
        found = self._unmeant()
        only_sampled = self._sample and all(value in self._map.classes for value in self.values)
        return [] if only_sampled else found

    def _unmeant(self) -> list[str]:
        unknown = [value for value in self.values if value not in self._map.classes]
        held = [value for value in self.values if self._is_class(value)]
        ignored = self.values[self._map.ignore_index] if self._map.format != "rgb" else 0
        if self._recoloured and self._map.format == "palette":
            return [self._recoloured]
        if not unknown and not held:
            return [f"no label holds a pixel of any class, {self._all_values()}; {self._fitting()}"]
        if not unknown and self._map.plain and ignored and len({self._map.classes[value] for value in held}) == 1:
            what = f"all that is not ignored is {self._map.name(held[0])!r}, so there is nothing to tell apart"
            return [f"{what}, {self._all_values()}; {self._fitting()}"]
        return [f"{self._all_values()}; {self._fitting()}"] if unknown else []

    def warnings(self) -> list[str]:
        """Return what is possible but seldom meant."""
        found = [self._recoloured] if self._recoloured else []
        if self._sample:
            found += [text for text in self._unmeant() if text not in found]
        if missing := self.missing():
            where = "of those that were read holds" if self._sample else "holds"
            found.append(f"no label {where} a pixel of {_listed(missing)}: no model learns what it never sees")
        if self.untrained:
            found.append(f"only held-out images hold {_listed(self.untrained)}: no model learns what it never sees")
        if self.unlabelled:
            found.append(f"labels without a pixel of any class: {_listed(self.unlabelled)}")
        return found

    def _is_class(self, value: int) -> bool:
        return self._map.classes.get(value, self._map.ignore_index) != self._map.ignore_index

    def _all_values(self) -> str:
        return f"the labels hold the values {_listed(map(self._map.text, sorted(self.values)))}"

    def _fitting(self) -> str:
        """Return the setting that gives a meaning to all values, as far as it can be guessed."""
        names, values = self._map.names, sorted(self.values)
        if self._map.format in ("index", "palette"):
            if sum(name in CITYSCAPES_NAMES for name in names) >= 8 and max(values) <= 255:
                return "source.label_format: cityscapes_ids reads Cityscapes' own ids"
            if len(values) != len(names) and max(values) == len(names):
                return "source.label_format: ade20k reads 1 as the first class and ignores 0"
        if len(values) == len(names) <= SHOWN_NAMES:
            keys = [f"'{self._map.text(value)}'" if self._map.format == "rgb" else str(value) for value in values]
            meant = ", ".join(f"{key}: {name}" for key, name in zip(keys, names, strict=True))
            return f"source.label_map: {{{meant}}} gives each a class"
        return "source.label_map says which class each means, or `ignore`"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - SHOWN_NAMES} more" if len(every) > SHOWN_NAMES else ""
    return ", ".join(every[:SHOWN_NAMES]) + rest
