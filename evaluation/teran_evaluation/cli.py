"""`teran evaluate` and `teran data`."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from teran_client.options import Connection

from teran.errors import TeranInputError
from teran.extras import needs

Dataset = Literal["coco", "f30k"]
data = App(name="data", help="Pack data sets, and check them.")


def register(app: App) -> None:
    """Add the sub-commands to `app`."""
    app.command(evaluate)
    app.command(data)


def evaluate(
    directory: Path,
    /,
    *,
    dataset: Dataset,
    protocol: Literal["1k", "5k"] = "5k",
    split: Literal["train", "val", "test", "restval"] = "test",
    model: Path | None = None,
    server: str | None = None,
    through: Literal["gallery"] | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    markdown: Path | None = None,
    cache: Path | None = None,
    connection: Connection = Connection(),
) -> None:
    """Recall and NDCG of a data set by the paper's protocols, beside the paper's own figures.

    With both a model and a server, the second stands beside the first: what an engine, a precision
    or a gallery costs.

    Example: teran evaluate data/coco --dataset coco --protocol 1k --model bundle/
    Example: teran evaluate data/f30k --dataset f30k --model bundle/ --server localhost:8001
    Example: teran evaluate data/coco --dataset coco --server localhost:8001 --through gallery

    Args:
        directory: Of the data set: captions and regions, as the authors keep them, packed, or .tsv.
        dataset: Which it is.
        protocol: 1k averages over folds of a thousand images, 5k takes all at once.
        split: Which images.
        model: A bundle, evaluated in PyTorch in fp32.
        server: Address of a server, as host:port.
        through: Search the server's galleries, where scores are computed here otherwise.
        json_file: Write everything here.
        markdown: Write the table here.
        cache: Directory of embeddings, so that an evaluation goes on; by default in ~/.cache/teran.
        connection: How to reach the server.
    """
    if not (model or server):
        raise TeranInputError("give --model, --server, or both: there is nothing to evaluate")
    if through and not server:
        raise TeranInputError("--through gallery needs a --server")
    with needs("evaluation"):
        from teran.evaluation.data import open_regions, read_split
        from teran.evaluation.data.relevance import grade
        from teran_evaluation import report
        from teran_evaluation.cache import default_directory
        from teran_evaluation.evaluate import check_images, folds_of
        from teran_evaluation.evaluate import evaluate as run
        from teran_evaluation.paper import FIGURES
        from teran_evaluation.roads import ModelRoad, ServerRoad
        from teran_evaluation.through_gallery import evaluate_through_galleries
    whole = read_split(directory, dataset, split)
    folds, source = folds_of(whole, protocol), open_regions(directory)
    check_images(whole, source)
    embeddings = cache or default_directory()
    grades = grade(directory, whole, folds)
    reports = {}
    if model:
        road = ModelRoad(model)
        reports[road.name] = run(folds, grades, source, road, embeddings)
    if server:
        with replace(connection, url=server).client() as client:
            if through:
                reports["gallery"] = evaluate_through_galleries(folds, grades, source, client)
            else:
                reports["server"] = run(folds, grades, source, ServerRoad(client), embeddings)
    fold_size = "1k" if len(folds[0].image_ids) == 1000 else "5k"
    figures = FIGURES.get((dataset, fold_size)) if split == "test" else None
    lines, said = report.rows(reports, figures), report.notes(reports)
    console = Console()
    console.print(report.to_table(lines))
    for one in said:
        console.print(one)
    console.print(f"embeddings are kept in {embeddings}")
    if markdown:
        markdown.write_text(report.to_markdown(lines, said))
    if json_file:
        *others, last = reports
        found: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": dataset,
            "split": split,
            "protocol": protocol,
            "evaluated": last,
            **reports[last].to_dict(),
            "paper": figures,
        }
        for name in others:
            found["fp32"] = reports[name].to_dict()
            found["difference"] = report.differences(reports[last], reports[name])
        json_file.write_text(json.dumps(found, indent=1) + "\n")


@data.command
def pack(
    directory: Path, out: Path, /, *, dataset: Dataset, splits: tuple[str, ...] = ("test",)
) -> None:
    """Bring a data set into files that are mapped into memory; a run that was cut off goes on.

    What can't be read is named at the end, and the rest is packed.

    Example: teran data pack data/coco packed/ --dataset coco --splits test --splits val

    Args:
        directory: Of the data set, with regions in the authors' layout or in .tsv.
        out: A new directory, or that of the run before.
        dataset: Which it is.
        splits: Which images.
    """
    with needs("evaluation"):
        from teran.evaluation.data import open_regions, read_split
        from teran.evaluation.data.captions import CAPTIONS_FILE, write_splits
        from teran.evaluation.data.packed import pack as write
        from teran_evaluation.evaluate import progress_bars
    wanted = [read_split(directory, dataset, name) for name in splits]
    images = [image for split in wanted for image in split.image_ids]
    out.mkdir(parents=True, exist_ok=True)
    with progress_bars() as bar:
        refused = write(open_regions(directory), images, out, bar("packing images", len(images)))
    write_splits(out / CAPTIONS_FILE, dataset, wanted)
    print(f"{out}: {len(images) - len(refused):,} images")
    if refused:
        listed = "\n".join(f"  {one.reason}" for one in refused)
        raise TeranInputError(f"{len(refused)} images could not be packed:\n{listed}")


@data.command
def verify(directory: Path, /) -> None:
    """Compare a packed data set with its checksums.

    Example: teran data verify packed/

    Args:
        directory: From `teran data pack`.
    """
    with needs("evaluation"):
        from teran.evaluation.data.packed import PackedSource
    source = PackedSource(directory)
    damaged = source.verify()
    if damaged:
        raise TeranInputError(f"{directory}: not as they were packed: {', '.join(damaged)}")
    print(f"{directory}: {len(source.ids()):,} images, all as they were packed")
