"""Metrics as a table: each row of a `MetricTable` has a name, a help text, labels and the first series."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Generic, Self, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

M = TypeVar("M", bound=Counter | Gauge | Histogram)


class Row(Generic[M]):
    """One metric. On an instance of its table the attribute is the prometheus_client object itself."""

    def __init__(self, make: Callable[..., M], name: str, text: str, labels: dict[str, Sequence[str]]) -> None:
        self._make, self._name, self._text, self._labels = make, name, text, labels

    @overload
    def __get__(self, table: None, owner: type) -> Self: ...
    @overload
    def __get__(self, table: "MetricTable", owner: type) -> M: ...
    def __get__(self, table: "MetricTable | None", owner: type) -> Self | M:
        if table is None:
            return self
        raise AttributeError(f"{owner.__name__} was not initialised")

    def build(self, registry: CollectorRegistry) -> M:
        """Register the metric, with a series at 0 for each combination of known label values."""
        metric = self._make(self._name, self._text, list(self._labels), registry=registry)
        if self._labels:
            for values in product(*self._labels.values()):
                metric.labels(*values)
        return metric


def counter(name: str, text: str, **labels: Sequence[str]) -> Row[Counter]:
    """Return a counter, exposed as `name` + `_total`. `labels` maps each label to the values known from the start."""
    return Row(Counter, name, text, labels)


def gauge(name: str, text: str, **labels: Sequence[str]) -> Row[Gauge]:
    """Return a gauge."""
    return Row(Gauge, name, text, labels)


def histogram(name: str, text: str, buckets: Sequence[float], **labels: Sequence[str]) -> Row[Histogram]:
    """Return a histogram with these upper bounds."""
    return Row(partial(Histogram, buckets=buckets), name, text, labels)


class MetricTable:
    """Base of a table: building one builds all of its rows in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Without this each counter has a second series that says only when the process began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        for kind in reversed(type(self).__mro__):
            for attribute, row in vars(kind).items():
                if isinstance(row, Row):
                    vars(self)[attribute] = row.build(registry)


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics as text and their content type, in the format that `accept` (an HTTP header) names."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
