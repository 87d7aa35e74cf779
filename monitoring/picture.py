"""Draws the dashboard's panels from a Prometheus, for documents: Grafana is not needed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from monitoring.dashboard import ROWS, Panel
from monitoring.local import Prometheus, faster

_COLUMNS = 3
_UNITS: Mapping[str, tuple[float, str]] = {
    "percentunit": (100, " %"), "s": (1e3, " ms"), "bytes": (1e-6, " MB"), "reqps": (1, "/s"),
    "wps": (1, "/s"),
}  # fmt: skip
"""By Grafana's name: a factor, and what is written after the number."""


def draw(source: Prometheus, start: float, end: float, path: Path, title: str) -> None:
    """Draw every panel over a time, row by row, as a PNG."""
    rows = {name: [one for one in row if not one.gpu_only] for name, row in ROWS.items()}
    lines = sum(-(-len(row) // _COLUMNS) for row in rows.values())
    figure = pyplot.figure(figsize=(15, 2.3 * lines), layout="constrained")
    figure.suptitle(title, fontsize=11)
    heights = [-(-len(row) // _COLUMNS) for row in rows.values()]
    parts = np.ravel(np.asarray(figure.subfigures(len(rows), 1, height_ratios=heights)))
    for part, (name, row) in zip(parts, rows.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontweight="bold", fontsize=10)
        grid = part.subplots(-(-len(row) // _COLUMNS), _COLUMNS, squeeze=False).ravel()
        for axes in grid[len(row) :]:
            axes.axis("off")
        for axes, panel in zip(grid, row, strict=False):
            axes.set_title(panel.title, fontsize=9)
            (_numbers if panel.kind == "stat" else _curves)(axes, panel, source, start, end)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def _numbers(axes: Axes, panel: Panel, source: Prometheus, _start: float, end: float) -> None:
    """A panel of numbers: each with its name."""
    axes.axis("off")
    found = [
        f"{_name(legend, one['metric'])}:  {float(one['value'][1]):g}"
        for legend, expression in panel.lines.items()
        for one in source.get("query", query=faster(expression), time=f"{end:.3f}")["result"]
    ]
    axes.text(0.5, 0.5, "\n".join(found), ha="center", va="center", fontsize=11)


def _curves(axes: Axes, panel: Panel, source: Prometheus, start: float, end: float) -> None:
    factor, suffix = _UNITS.get(panel.unit, (1, ""))
    for legend, expression in panel.lines.items():
        for one in source.range(faster(expression), start, end):
            times = [float(time) - start for time, _ in one["values"]]
            values = [factor * float(value) for _, value in one["values"]]
            axes.plot(times, values, linewidth=1.2, label=_name(legend, one["metric"]))
    axes.set_xlim(0, end - start)
    axes.set_ylim(0, 1.1 * max(axes.dataLim.y1, 0) or 1)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}{suffix}"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05))


def _seconds(value: float, _position: Any) -> str:
    return f"{value:g} s"
