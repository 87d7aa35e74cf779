"""Rates and quantiles between two readings."""

import pytest

from teran.supervisor.status import Scrape, Status

BUCKETS = {"0.001": 0, "0.01": 90, "0.1": 99, "+Inf": 100}


def texts(requests: int, executions: dict[str, int], ready: int = 1) -> str:
    lines = [
        "# TYPE nv_inference_request_success counter",
        f'nv_inference_request_success{{model="gallery",version="1"}} {requests}',
        f'nv_inference_request_success{{model="search",version="1"}} {requests}',
        "# TYPE nv_inference_queue_duration_us counter",
        f'nv_inference_queue_duration_us{{model="gallery",version="1"}} {requests * 2000}',
        "# TYPE teran_model_ready gauge",
        f'teran_model_ready{{model="gallery"}} {ready}',
        "# TYPE teran_ready gauge",
        f"teran_ready {ready}",
        "# TYPE teran_gallery_items gauge",
        'teran_gallery_items{gallery="photos"} 7',
        "# TYPE teran_execution_seconds histogram",
    ]
    lines += [
        f'teran_execution_seconds_bucket{{le="{le}",model="gallery"}} {count}'
        for le, count in executions.items()
    ]
    return "\n".join(lines) + "\n"


def between(before: str, now: str, seconds: float = 2.0) -> Status:
    first, last = Scrape({"": before}), Scrape({"": now})
    first.time, last.time = 0.0, seconds
    return Status.between(first, last)


def test_rates_and_quantiles() -> None:
    nothing = dict.fromkeys(BUCKETS, 0)
    status = between(texts(100, nothing), texts(300, BUCKETS))
    gallery, search = status.models
    assert (gallery.name, search.name) == ("gallery", "search")
    assert gallery.requests_per_second == search.requests_per_second == 100
    assert gallery.queue_ms == pytest.approx(2)
    assert gallery.p50_ms == pytest.approx(1 + 9 * 50 / 90)
    assert gallery.p99_ms == pytest.approx(100)
    assert search.p50_ms is None
    assert (gallery.ready, search.ready, status.ready) == (True, None, True)
    assert [(one.name, one.items) for one in status.galleries] == [("photos", 7)]


def test_a_restarted_server_counts_from_zero() -> None:
    status = between(texts(1000, BUCKETS), texts(10, BUCKETS, ready=0))
    assert status.models[0].requests_per_second == 5
    assert not status.ready


def test_an_idle_model_has_no_times() -> None:
    gallery = between(texts(5, BUCKETS), texts(5, BUCKETS)).models[0]
    assert (gallery.requests_per_second, gallery.queue_ms, gallery.p50_ms) == (0, None, None)


def test_what_clients_did_wrong_is_no_failure() -> None:
    failures = "# TYPE nv_inference_request_failure counter\n" + "".join(
        f'nv_inference_request_failure{{model="{model}",reason="{reason}",version="1"}} {count}\n'
        for model, reason, count in (
            ("gallery", "BACKEND", 6),
            ("gallery", "REJECTED", 2),
            ("gallery", "CANCELED", 50),
            ("search", "OTHER", 50),
        )
    )
    nothing = texts(0, BUCKETS)
    gallery, search = between(nothing, nothing + failures).models
    assert (gallery.failed_per_second, search.failed_per_second) == (4, 0)
