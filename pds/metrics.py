"""Metrics for operators: counters, gauges and histograms with a bounded number of series.

Every value lives in a `Metrics` object that the application makes and hands down; nothing is
registered at import. Labels that name people (`did`, `handle` and the like) are refused, and each
metric has at most `MAX_SERIES` label combinations: what comes after is counted as `other`, so that
no stranger can grow our memory by inventing values.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

MAX_SERIES: Final = 400
"""Label combinations per metric: about 100 methods times a few statuses."""

OTHER: Final = "other"
_FORBIDDEN_LABELS: Final = frozenset(
    {"did", "handle", "email", "address", "ip", "cid", "rkey", "uri", "url", "token", "session"}
)
REQUEST_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
)  # fmt: skip

_Metric = TypeVar(
    "_Metric", prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram
)


class _Family(Generic[_Metric]):
    """One metric and its children by label values."""

    def __init__(self, metric: _Metric, labels: Sequence[str]) -> None:
        self._metric: _Metric = metric
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], _Metric] = {}

    def _child(self, values: dict[str, object]) -> _Metric:
        if not self._labels and not values:
            return self._metric
        if len(values) != len(self._labels):
            raise ValueError(f"labels must be {self._labels}")
        return self._series([values[name] for name in self._labels])

    def _series(self, values: Sequence[object]) -> _Metric:
        if len(values) != len(self._labels):
            raise ValueError(f"labels must be {self._labels}")
        key = tuple(map(str, values))
        child = self._children.get(key)
        if child is None:
            if len(self._children) >= MAX_SERIES:
                key = (OTHER,) * len(self._labels)
            made: _Metric = self._metric.labels(*key)
            child = self._children.setdefault(key, made)
        return child


class Counter(_Family[prometheus_client.Counter]):
    """Counts events."""

    def inc(self, amount: float = 1, **labels: object) -> None:
        """Add `amount`."""
        self._child(labels).inc(amount)

    def series(self, *values: object) -> Callable[[], None]:
        """Return what adds one for these label values, in order: a third of the cost of `inc`."""
        return self._series(values).inc

    def value(self, **labels: object) -> float:
        """Return the count so far (for health pages and tests)."""
        return float(self._child(labels)._value.get())


class Gauge(_Family[prometheus_client.Gauge]):
    """Holds a value that goes up and down."""

    def set(self, value: float, **labels: object) -> None:
        """Set the value."""
        self._child(labels).set(value)

    def inc(self, amount: float = 1, **labels: object) -> None:
        """Add `amount`, which may be negative."""
        self._child(labels).inc(amount)

    def set_function(self, function: Callable[[], float], **labels: object) -> None:
        """Call `function` for the value whenever metrics are read."""
        self._child(labels).set_function(function)

    def value(self, **labels: object) -> float:
        """Return the value now."""
        return float(self._child(labels)._value.get())


class Histogram(_Family[prometheus_client.Histogram]):
    """Collects a distribution."""

    def observe(self, value: float, **labels: object) -> None:
        """Add one observation."""
        self._child(labels).observe(value)

    def series(self, *values: object) -> Callable[[float], None]:
        """Return what adds one observation for these label values, in order."""
        return self._series(values).observe

    @contextmanager
    def time(self, **labels: object) -> Iterator[None]:
        """Observe how many seconds the block takes, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._child(labels).observe(time.perf_counter() - started)


class Metrics:
    """The metrics of one server. Asking twice for a name returns the same metric."""

    def __init__(self, prefix: str = "pds") -> None:
        """Start an empty registry; every name gets `prefix` and an underscore."""
        self._prefix = prefix
        self._registry = CollectorRegistry(auto_describe=False)
        self._families: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Counter:
        """Return the counter `name`; it is exposed with the suffix `_total`."""
        found = self._families.get(name)
        if found is None:
            full = self._check(name, labels)
            metric = prometheus_client.Counter(
                full, description, list(labels), registry=self._registry
            )
            found = self._families[name] = Counter(metric, labels)
        if not isinstance(found, Counter):
            raise ValueError(f"{name} is no counter")
        return found

    def gauge(self, name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
        """Return the gauge `name`."""
        found = self._families.get(name)
        if found is None:
            full = self._check(name, labels)
            metric = prometheus_client.Gauge(
                full, description, list(labels), registry=self._registry
            )
            found = self._families[name] = Gauge(metric, labels)
        if not isinstance(found, Gauge):
            raise ValueError(f"{name} is no gauge")
        return found

    def histogram(
        self,
        name: str,
        description: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = REQUEST_BUCKETS_S,
    ) -> Histogram:
        """Return the histogram `name`; the default buckets are seconds of a request."""
        found = self._families.get(name)
        if found is None:
            full = self._check(name, labels)
            metric = prometheus_client.Histogram(
                full, description, list(labels), registry=self._registry, buckets=list(buckets)
            )
            found = self._families[name] = Histogram(metric, labels)
        if not isinstance(found, Histogram):
            raise ValueError(f"{name} is no histogram")
        return found

    def add_process_metrics(self) -> None:
        """Add memory, CPU, file descriptor and garbage collection figures of this process."""
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return the text exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _check(self, name: str, labels: Sequence[str]) -> str:
        bad = _FORBIDDEN_LABELS.intersection(labels)
        if bad:
            raise ValueError(f"labels {sorted(bad)} would name people or grow without bound")
        return f"{self._prefix}_{name}"
