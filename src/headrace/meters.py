"""A process in Prometheus' terms: one registry of its own, no process-wide state.

Names and units follow https://prometheus.io/docs/practices/naming/. Labels take their values
from closed sets, each of which is there from the start, so that no series appears late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    generate_latest,
    write_to_textfile,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from headrace.declaration import LineSpec


class Meters:
    """Counters, histograms and gauges of one process of a line, their names under one prefix."""

    def __init__(self, prefix: str, spec: LineSpec, what: str) -> None:
        """`what`: the help text of `<prefix>_info`, which names the line."""
        self._prefix = prefix
        self.registry = CollectorRegistry()
        info = Info(prefix, what, registry=self.registry)
        info.info({"line": spec.line, "feature_service": spec.feature_service})

    def observe(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Add gauges that are asked when metrics are: name to help text and question."""
        for name, (text, ask) in gauges.items():
            self._gauge(name, text).set_function(ask)

    def observe_totals(self, totals: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Add counters that somebody else counts: name to help text and question."""
        named = {f"{self._prefix}_{name}": about for name, about in totals.items()}
        self.registry.register(_Totals(named))

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{self._prefix}_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        name = f"{self._prefix}_{name}"
        return Histogram(name, text, labels, registry=self.registry, buckets=tuple(buckets))


def write_figures(
    path: Path, prefix: str, labels: Mapping[str, str], figures: Mapping[str, tuple[str, float]]
) -> None:
    """Write gauges (name to help text and value) for the textfile collector of Prometheus' node
    exporter: the way of those who open no port.
    """
    registry = CollectorRegistry()
    for name, (text, value) in figures.items():
        gauge = Gauge(f"{prefix}_{name}", text, [*labels], registry=registry)
        gauge.labels(**labels).set(value)
    write_to_textfile(str(path), registry)


class _Totals(Collector):
    """Counters whose values are asked when metrics are."""

    def __init__(self, totals: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, (text, ask) in self._totals.items():
            yield CounterMetricFamily(name, text, value=ask())
