"""The supervisor's `/metrics`: what it knows itself, and what the models have recorded."""

import json
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from teran.runtime import metrics
from teran.runtime.metrics import GALLERIES_FILE, read_recorded, values_of
from teran.supervisor.health import HealthState

_MOST_GALLERIES = 100
"""Galleries that are listed by name: clients make them, so their number has no bound."""


class Exposition:
    """Everything that is scraped here, as text."""

    def __init__(
        self, directory: Path, state: HealthState, repository: Path, published: Path
    ) -> None:
        """Expose a server.

        Args:
            directory: where its models record.
            state: which of them answer.
            repository: what it serves.
            published: the link to what is published; it may have moved on.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(lambda: _recorded(directory)))
        self.reloads = Counter(
            "teran_model_reloads", "Models loaded again, as they did not answer", ["model"],
            registry=self._registry,
        )  # fmt: skip
        self.restarts = Counter(
            "teran_server_restarts", "Restarts of the server by its supervisor",
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Collector(lambda: _readiness(state)))
        # Read once: a repository that is two publications old is removed, and goes on being served.
        model = _model(repository)
        self._registry.register(_Collector(lambda: iter([model, _stale(repository, published)])))
        self._registry.register(_Collector(lambda: _galleries(directory / GALLERIES_FILE)))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Collector(Collector):
    """Metrics that are looked up when they are asked for."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def _recorded(directory: Path) -> Iterator[Metric]:
    recorded = read_recorded(directory)
    for metric in metrics.METRICS:
        labels = ["model"] if metric.by_model else []
        values: dict[tuple[str, ...], list[float]]
        if metric.by_model:
            values = {(model,): values_of(metric, all_) for model, all_ in recorded.items()}
        else:
            parts = [values_of(metric, all_) for all_ in recorded.values()]
            values = {(): [sum(column) for column in zip(*parts, strict=True)]} if parts else {}
        family = (HistogramMetricFamily if metric.buckets else CounterMetricFamily)(
            metric.name, metric.meaning, labels=labels
        )
        for label, numbers in values.items():
            if isinstance(family, HistogramMetricFamily):
                bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
                buckets = list(zip(bounds, accumulate(numbers[:-1]), strict=True))
                family.add_metric(label, buckets, sum_value=numbers[-1])
            else:
                family.add_metric(label, numbers[0])
        yield family


def _readiness(state: HealthState) -> Iterator[Metric]:
    ready, models = state.snapshot()
    yield GaugeMetricFamily("teran_ready", "1 while every model answers", value=ready)
    family = GaugeMetricFamily("teran_model_ready", "1 while a model answers", labels=["model"])
    for name, answers in models.items():
        family.add_metric([name], answers)
    yield family


def _model(repository: Path) -> Metric:
    manifest = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))
    request = manifest["request"]
    return InfoMetricFamily(
        "teran_model",
        "The model that is served",
        value={
            "fingerprint": str(request["bundle"])[:16],
            "engine": request["engine"],
            "precision": manifest["precision"],
            "pooling": manifest["pooling"],
        },
    )


def _stale(repository: Path, published: Path) -> Metric:
    stale = published.resolve() != repository
    return GaugeMetricFamily(
        "teran_repository_stale", "1 where a newer repository is published than served", value=stale
    )


def _galleries(path: Path) -> Iterator[Metric]:
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no gallery, or none has reported yet
        return
    galleries = sorted(info["galleries"], key=lambda one: -one["items"])
    yield GaugeMetricFamily("teran_galleries", "Galleries that are open", value=len(galleries))
    yield GaugeMetricFamily(
        "teran_galleries_unusable", "Galleries that can't be opened", value=len(info["unusable"])
    )
    exposed = (
        ("teran_gallery_items", "Items of a gallery", "items"),
        ("teran_gallery_generation", "Changes of a gallery since it was opened", "generation"),
        ("teran_gallery_memory_bytes", "Memory of a gallery's copy", "bytes_in_memory"),
        ("teran_gallery_disk_bytes", "What files of a gallery take on the disk", "bytes_on_disk"),
    )
    for name, meaning, key in exposed:
        family = GaugeMetricFamily(name, meaning, labels=["gallery"])
        for gallery in galleries[:_MOST_GALLERIES]:
            if gallery.get(key) is not None:
                family.add_metric([gallery["name"]], gallery[key])
        yield family
