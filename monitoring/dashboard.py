"""Writes the Grafana dashboard: `python -m monitoring.dashboard`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "grafana" / "teran.json"
_WIDTH, _HEIGHT = 8, 7
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """One graph or number: PromQL expressions and what their lines are called."""

    title: str
    lines: dict[str, str]
    """Legend to expression."""
    unit: str = "short"
    kind: str = "timeseries"
    gpu_only: bool = False
    """Whether only a server with a GPU has its series."""


def quantiles(metric: str) -> dict[str, str]:
    """Median and 99th percentile of a histogram without labels."""
    return {
        f"p{int(100 * q)}": f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[5m])))"
        for q in (0.5, 0.99)
    }


ROWS: dict[str, list[Panel]] = {
    "Health": [
        Panel(
            "Models that answer", {"{{model}}": "min by (model) (teran_model_ready)"}, kind="stat"
        ),
        Panel(
            "Served", {"{{engine}} {{precision}} {{fingerprint}}": "teran_model_info"}, kind="stat"
        ),
        Panel(
            "Firing alerts",
            {"alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
            kind="stat",
        ),
    ],
    "Traffic": [
        Panel("Requests", {"{{model}}": "teran:requests:rate5m"}, "reqps"),
        Panel("Errors", {"{{model}}": "teran:errors:ratio_rate5m"}, "percentunit"),
        Panel(
            "Refused requests",
            {"{{model}}": "sum by (model) (rate(teran_refused_requests_total[5m]))"},
            "reqps",
        ),
    ],
    "Overload": [
        Panel(
            "Refused for overload",
            {"{{model}}": "sum by (model) (rate(teran_overloaded_requests_total[5m]))"},
            "reqps",
        ),
        Panel(
            "Bulk deferred",
            {"{{model}}": "sum by (model) (rate(teran_deferred_requests_total[5m]))"},
            "reqps",
        ),
        Panel(
            "Nobody waited any more",
            {"{{model}}": "sum by (model) (rate(teran_abandoned_requests_total[5m]))"},
            "reqps",
        ),
    ],
    "Time": [
        Panel("Time in the queue", {"{{model}}": "teran:queue_seconds:mean5m"}, "s"),
        Panel("Execution, 99th percentile", {"{{model}}": "teran:execution_seconds:p99_5m"}, "s"),
        Panel("Busy", {"{{model}}": "max by (model) (teran:busy:ratio_rate5m)"}, "percentunit"),
    ],
    "Batches and inputs": [
        Panel("Items in an execution", {"{{model}}": "teran:execution_items:mean5m"}),
        Panel("Word pieces of a caption", quantiles("teran_caption_word_pieces")),
        Panel("Regions of an image", quantiles("teran_image_regions")),
    ],
    "Search": [
        Panel("Time of a search", quantiles("teran_search_seconds"), "s"),
        Panel(
            "Searches",
            {
                "all": "sum(rate(teran_searches_total[5m]))",
                "empty": "sum(rate(teran_searches_empty_total[5m]))",
            },
            "reqps",
        ),
        Panel("Best score per word", quantiles("teran_search_best_score_per_word")),
        Panel("Items scored", quantiles("teran_search_candidates")),
        Panel(
            "Share not scored",
            {
                "mean": "sum(rate(teran_search_pruned_ratio_sum[5m])) / "
                "sum(rate(teran_search_pruned_ratio_count[5m]))"
            },
            "percentunit",
        ),
        Panel(
            "Low scores (at most 0.3 a word)",
            {
                "share": 'sum(rate(teran_search_best_score_per_word_bucket{le="0.3"}[5m])) / '
                "sum(rate(teran_search_best_score_per_word_count[5m]))"
            },
            "percentunit",
        ),
        Panel(
            "Captions cut", {"captions": "sum(rate(teran_captions_truncated_total[5m]))"}, "reqps"
        ),
    ],
    "Galleries": [
        Panel("Items", {"{{gallery}}": "sum by (gallery) (teran_gallery_items)"}),
        Panel("Memory", {"{{gallery}}": "sum by (gallery) (teran_gallery_memory_bytes)"}, "bytes"),
        Panel("Disk", {"{{gallery}}": "sum by (gallery) (teran_gallery_disk_bytes)"}, "bytes"),
        Panel(
            "Writes",
            {
                "stored": "sum(rate(teran_gallery_upserts_total[5m]))",
                "deleted": "sum(rate(teran_gallery_deletes_total[5m]))",
            },
            "wps",
        ),
        Panel(
            "Failures",
            {
                "writes": "sum(rate(teran_gallery_write_errors_total[5m]))",
                "reads": "sum(rate(teran_gallery_read_errors_total[5m]))",
                "can't be opened": "sum(teran_galleries_unusable)",
            },
        ),
        Panel("Changes", {"{{gallery}}": "sum by (gallery) (teran_gallery_generation)"}),
    ],
    "Machine": [
        Panel("Processor", {"used": "nv_cpu_utilization"}, "percentunit"),
        Panel("Memory", {"used": "nv_cpu_memory_used_bytes"}, "bytes"),
        Panel(
            "Restarts",
            {
                "server": "sum(increase(teran_server_restarts_total[1h]))",
                "models": "sum(increase(teran_model_reloads_total[1h])) or vector(0)",
            },
        ),
        Panel("GPU", {"{{gpu_uuid}}": "nv_gpu_utilization"}, "percentunit", gpu_only=True),
        Panel("GPU memory", {"{{gpu_uuid}}": "nv_gpu_memory_used_bytes"}, "bytes", gpu_only=True),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "gridPos": {"h": 1, "w": 24, "x": 0, "y": top}}
        )
        top += 1
        for i, panel in enumerate(row):
            if i and i % 3 == 0:
                top += _HEIGHT
            panels.append(_panel(panel, _WIDTH * (i % 3), top))
        top += _HEIGHT
    for number, made in enumerate(panels, 1):
        made["id"] = number
    variable = {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    return {
        "uid": "teran",
        "title": "TERAN",
        "schemaVersion": 41,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


def _panel(panel: Panel, left: int, top: int) -> dict[str, Any]:
    name = "textMode" if panel.kind == "stat" else "legend"
    option: Any = "value_and_name" if panel.kind == "stat" else {"displayMode": "list"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": left, "y": top},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {name: option},
        "targets": [
            {
                "refId": chr(65 + i),
                "expr": expression,
                "legendFormat": legend,
                "datasource": _SOURCE,
            }
            for i, (legend, expression) in enumerate(panel.lines.items())
        ],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text(), encoding="utf-8")
