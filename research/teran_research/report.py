"""Reports side by side: in a terminal, as Markdown, as JSON."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from teran.evaluation.protocol import Direction, Report
from teran_research.paper import Recalls

NAMES = {"sentence": "sentence retrieval", "image": "image retrieval"}
_RSUM_NOTE = (
    "rsum is the sum of the six recalls; the authors' program prints six times that for folds."
)


def rows(
    reports: Mapping[str, Report], paper: Mapping[str, Recalls] | None
) -> list[tuple[str, ...]]:
    """A table's rows, headings first: one for every direction and source."""
    measures = list(next(iter(reports.values())).image_retrieval.ndcg)
    table: list[tuple[str, ...]] = [
        ("", "", "R@1", "R@5", "R@10", "median", "mean", *(f"NDCG {one}" for one in measures))
    ]
    for kind, title in NAMES.items():
        if paper:
            figures = (f"{one:.1f}" for one in paper[kind])
            table.append((title, "the paper", *figures, *[""] * (2 + len(measures))))
        for name, report in reports.items():
            table.append((title, name, *_cells(direction(report, kind), measures)))
    return table


def differences(report: Report, other: Report) -> dict[str, float]:
    """By how much the first recalls more, in points."""
    found = {
        f"{kind}_r{k}": getattr(direction(report, kind), f"r{k}")
        - getattr(direction(other, kind), f"r{k}")
        for kind in NAMES
        for k in (1, 5, 10)
    }
    return found | {"rsum": report.rsum - other.rsum}


def notes(reports: Mapping[str, Report]) -> list[str]:
    """What else there is to say, a sentence each."""
    said = []
    for name, report in reports.items():
        low, high = report.rsum_interval
        said.append(f"{name}: rsum {report.rsum:.1f} ({low:.1f} to {high:.1f})")
        for kind, title in NAMES.items():
            one = direction(report, kind)
            if one.tied_queries:
                best = " / ".join(f"{value:.1f}" for value in one.with_ties_for)
                said.append(
                    f"{name}, {title}: {one.tied_queries} queries have ties, which count against "
                    f"them; for them, recall would be {best}"
                )
    first, *others = reports.items()
    for name, report in others:
        more = differences(report, first[1])
        points = ", ".join(f"{key} {value:+.2f}" for key, value in more.items())
        said.append(f"{name} against {first[0]}, in points: {points}")
    base = first[1]
    said.append(
        f"{base.images:,} images, {base.captions:,} captions, "
        + (f"{base.folds} folds averaged; " if base.folds > 1 else "")
        + "in brackets: 95 % of bootstrap samples of the images. "
        + _RSUM_NOTE
    )
    return said


def to_table(lines: Sequence[tuple[str, ...]]) -> Table:
    """For a terminal."""
    table = Table(*lines[0])
    for line in lines[1:]:
        table.add_row(*line)
    return table


def to_markdown(lines: Sequence[tuple[str, ...]], said: Sequence[str]) -> str:
    """For a page."""
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    rule = "|---|---|" + "---:|" * (len(lines[0]) - 2)
    return "\n".join([head, rule, *body, "", *(f"- {one}" for one in said), ""])


def direction(report: Report, kind: str) -> Direction:
    """Image or sentence retrieval."""
    return report.image_retrieval if kind == "image" else report.sentence_retrieval


def _cells(one: Direction, measures: Sequence[str]) -> list[str]:
    recalls = [
        f"{getattr(one, name):.1f} ({low:.1f} to {high:.1f})"
        for name, (low, high) in one.intervals.items()
    ]
    ndcg = [f"{one.ndcg[measure]:.3f}" for measure in measures]
    return [*recalls, f"{one.median_rank:g}", f"{one.mean_rank:.1f}", *ndcg]
