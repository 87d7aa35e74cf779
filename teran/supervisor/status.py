"""What a server does just now, from two readings of its `/metrics`."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group
from rich.table import Table
from rich.text import Text

from teran.errors import TeranUnavailableError
from teran.supervisor.health import fetch

_FAILURES = ("BACKEND", "REJECTED")
"""Triton's reasons that are the server's fault: for another, ensembles fail as a model refuses."""
_Labels = frozenset[tuple[str, str]]


class Scrape:
    """All values of a server at one moment; a counter's name ends in `_total`, Triton's as well."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Read the text of every address."""
        self.time = time.monotonic()
        self._values: dict[str, dict[_Labels, float]] = {}
        for text in texts.values():
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = frozenset(sample.labels.items())
                    self._values.setdefault(sample.name, {})[labels] = sample.value

    def of(self, name: str, **labels: str) -> dict[_Labels, float]:
        """The series of a name with these labels, and any others."""
        wanted = frozenset(labels.items())
        return {k: v for k, v in self._values.get(name, {}).items() if wanted <= k}

    def sum(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(self.of(name, **labels).values())

    def values_of(self, name: str, label: str) -> list[str]:
        """The values a label has, in order."""
        return sorted({dict(labels)[label] for labels in self.of(name) if label in dict(labels)})


def scrape(*urls: str, timeout: float = 5.0) -> Scrape:
    """Read the metrics of a server.

    Raises:
        TeranUnavailableError: an address does not answer.
    """
    texts = {}
    for url in urls:
        try:
            texts[url] = fetch(url, timeout)
        except OSError as error:
            raise TeranUnavailableError(
                f"{url} does not answer: {error}; is a server running there?"
            ) from error
    try:
        return Scrape(texts)
    except ValueError as error:
        raise TeranUnavailableError(f"{' and '.join(urls)} tell no metrics: {error}") from error


@dataclass(frozen=True)
class ModelStatus:
    """One model since the reading before; None where it did nothing."""

    name: str
    ready: bool | None
    """None of an ensemble: it is ready when its models are."""
    requests_per_second: float
    refused_per_second: float
    failed_per_second: float
    queue_ms: float | None
    """Mean."""
    mean_ms: float | None
    """Of requests, from their arrival to their answer."""
    p50_ms: float | None
    """Of executions; an ensemble has none."""
    p99_ms: float | None
    items_per_execution: float | None


@dataclass(frozen=True)
class GalleryStatus:
    """One gallery."""

    name: str
    items: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Status:
    """A server between two readings."""

    ready: bool
    served: str
    """Engine, precision and fingerprint."""
    searches_per_second: float
    empty_searches_per_second: float
    search_p50_ms: float | None
    """From a caption's tokenization to the answer."""
    search_p99_ms: float | None
    written_per_second: float
    """Items stored or deleted."""
    models: tuple[ModelStatus, ...]
    galleries: tuple[GalleryStatus, ...]

    @classmethod
    def between(cls, before: Scrape, now: Scrape) -> "Status":
        """What happened between two readings."""
        seconds = max(now.time - before.time, 1e-9)

        def rate(name: str) -> float:
            return max(now.sum(name) - before.sum(name), 0.0) / seconds

        info = next(map(dict, now.of("teran_model_info")), {})
        upserts, deletes = rate("teran_gallery_upserts_total"), rate("teran_gallery_deletes_total")
        return cls(
            ready=now.sum("teran_ready") == 1,
            served=" ".join(info.get(key, "") for key in ("engine", "precision", "fingerprint")),
            searches_per_second=rate("teran_searches_total"),
            empty_searches_per_second=rate("teran_searches_empty_total"),
            search_p50_ms=_quantile(0.5, before, now, "teran_search_seconds_bucket"),
            search_p99_ms=_quantile(0.99, before, now, "teran_search_seconds_bucket"),
            written_per_second=upserts + deletes,
            models=tuple(_models(before, now, seconds)),
            galleries=tuple(_galleries(now)),
        )


def watch(*urls: str, interval: float) -> Iterator[Status | TeranUnavailableError]:
    """What a server does in every interval, without end; or why that is unknown."""
    before: Scrape | None = None
    while True:
        try:
            now = scrape(*urls)
            if before:
                yield Status.between(before, now)
            before = now
        except TeranUnavailableError as error:
            before = None
            yield error
        time.sleep(interval)


def _models(before: Scrape, now: Scrape, seconds: float) -> Iterator[ModelStatus]:
    single = now.values_of("teran_model_ready", "model")
    ensembles = set(now.values_of("nv_inference_request_success_total", "model")) - set(single)
    for name in [*single, *sorted(ensembles)]:

        def grown(metric: str, model: str = name, **labels: str) -> float:
            # A server that was restarted counts from 0 again.
            first, last = (r.sum(metric, model=model, **labels) for r in (before, now))
            return last - first if last >= first else last

        answered = grown("nv_inference_request_success_total")
        executions = grown("teran_execution_seconds_count")
        p50, p99 = (
            _quantile(q, before, now, "teran_execution_seconds_bucket", model=name)
            for q in (0.5, 0.99)
        )
        yield ModelStatus(
            name=name,
            ready=now.sum("teran_model_ready", model=name) == 1 if name in single else None,
            requests_per_second=answered / seconds,
            refused_per_second=grown("teran_refused_requests_total") / seconds,
            failed_per_second=(
                grown("teran_failed_requests_total")
                + sum(grown("nv_inference_request_failure_total", reason=r) for r in _FAILURES)
            )
            / seconds,
            queue_ms=_ratio(grown("nv_inference_queue_duration_us_total"), 1e3 * answered),
            mean_ms=_ratio(grown("nv_inference_request_duration_us_total"), 1e3 * answered),
            p50_ms=p50,
            p99_ms=p99,
            items_per_execution=_ratio(grown("teran_execution_items_sum"), executions),
        )


def _ratio(sum_: float, count: float) -> float | None:
    return sum_ / count if count else None


def _quantile(q: float, before: Scrape, now: Scrape, metric: str, **labels: str) -> float | None:
    """A quantile in milliseconds, within its bucket by interpolation, as Prometheus does it."""
    last, first = now.of(metric, **labels), before.of(metric, **labels)
    if any(value < first.get(key, 0.0) for key, value in last.items()):
        first = {}  # the server was restarted
    buckets = sorted((float(dict(k)["le"]), v - first.get(k, 0.0)) for k, v in last.items())
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank, lower, below = q * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return 1e3 * lower
            return 1e3 * (lower + (bound - lower) * (rank - below) / max(count - below, 1e-9))
        lower, below = bound, count
    return None


def _galleries(now: Scrape) -> Iterator[GalleryStatus]:
    for name in now.values_of("teran_gallery_items", "gallery"):
        yield GalleryStatus(
            name,
            int(now.sum("teran_gallery_items", gallery=name)),
            int(now.sum("teran_gallery_memory_bytes", gallery=name)),
            int(now.sum("teran_gallery_disk_bytes", gallery=name)),
        )


def render(status: Status | TeranUnavailableError) -> Group:
    """A status for a terminal."""
    if isinstance(status, TeranUnavailableError):
        return Group(Text(str(status), "bold red"))
    ready = Text("ready", "green") if status.ready else Text("not ready", "bold red")
    head = Text.assemble(ready, f"  {status.served}")
    searches = f"searches {status.searches_per_second:.1f}/s"
    searches += f", {status.empty_searches_per_second:.1f}/s of them empty"
    if status.search_p50_ms is not None:
        searches += f"; p50 {status.search_p50_ms:.1f}ms, p99 {status.search_p99_ms:.1f}ms"
    rates = f"{searches}; items written {status.written_per_second:.1f}/s"
    models = Table(box=None, header_style="bold")
    models.add_column("model", no_wrap=True)
    for column in ("req/s", "refused", "failed", "queue", "mean", "p50", "p99", "items"):
        models.add_column(column, justify="right", no_wrap=True)
    for one in status.models:
        name = Text(one.name, "red" if one.ready is False else "")
        counts = (one.requests_per_second, one.refused_per_second, one.failed_per_second)
        times = (one.queue_ms, one.mean_ms, one.p50_ms, one.p99_ms)
        models.add_row(
            name,
            *(f"{count:.1f}" for count in counts),
            *("" if each is None else f"{each:.1f}ms" for each in times),
            "" if one.items_per_execution is None else f"{one.items_per_execution:.1f}",
        )
    galleries = Table("gallery", box=None, header_style="bold")
    for column in ("items", "memory", "disk"):
        galleries.add_column(column, justify="right")
    for gallery in status.galleries:
        sizes = (f"{size / 1e6:.1f} MB" for size in (gallery.memory_bytes, gallery.disk_bytes))
        galleries.add_row(gallery.name, f"{gallery.items:,}", *sizes)
    return Group(
        head, rates, "", models, "", galleries if status.galleries else "no gallery yet", ""
    )
