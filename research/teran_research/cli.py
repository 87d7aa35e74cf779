"""`teran evaluate`, `teran train`, `teran explain` and `teran data`."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from teran_client import ImageRegions, Match
from teran_client.images import picture_beside
from teran_client.options import Access, Size, parse_size

from teran.errors import TeranInputError
from teran.extras import needs

Dataset = Literal["coco", "f30k"]
data = App(name="data", help="Pack data sets, and check them.")


def register(app: App) -> None:
    """Add the sub-commands to `app`."""
    app.command(evaluate)
    app.command(train)
    app.command(explain)
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
    access: Access = Access(),
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
        access: How to reach the server.
    """
    if not (model or server):
        raise TeranInputError("give --model, --server, or both: there is nothing to evaluate")
    if through and not server:
        raise TeranInputError("--through gallery needs a --server")
    with needs("research"):
        from teran.evaluation.data import open_regions, read_split, root_of
        from teran.evaluation.data.relevance import grade
        from teran.evaluation.protocol import Report
        from teran_research import report
        from teran_research.cache import default_directory
        from teran_research.evaluate import check_images, folds_of
        from teran_research.evaluate import evaluate as run
        from teran_research.paper import FIGURES
        from teran_research.roads import ModelRoad, ServerRoad
        from teran_research.through_gallery import evaluate_through_galleries
    for file in (json_file, markdown):
        if file and not file.absolute().parent.is_dir():  # not after all the work
            raise TeranInputError(f"can't write {file}: there is no such directory")
    root = root_of(directory, dataset)
    whole = read_split(root, dataset, split)
    folds, source = folds_of(whole, protocol), open_regions(root)
    check_images(whole, source)
    if server:
        with access.client_of(server) as client:  # nor is that found out after all the work
            client.info()
    embeddings = cache or default_directory()
    grades = grade(root, whole, folds)
    reports = {}
    if model:
        road = ModelRoad(model)
        reports[road.name] = Report.of(run(folds, grades, source, road, embeddings))
    if server:
        with access.client_of(server) as client:
            if through:
                found = evaluate_through_galleries(folds, grades, source, client)
            else:
                found = run(folds, grades, source, ServerRoad(client), embeddings)
        reports[through or "server"] = Report.of(found)
    figures = FIGURES.get((dataset, len(folds[0].image_ids))) if split == "test" else None
    lines, said = report.rows(reports, figures), report.notes(reports)
    console = Console()
    console.print(report.to_table(lines))
    for one in said:
        console.print(one)
    if model or not through:
        console.print(f"embeddings are kept in {embeddings}")
    if markdown:
        markdown.write_text(report.to_markdown(lines, said))
    if json_file:
        *others, last = reports
        content: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": dataset,
            "split": split,
            "protocol": protocol,
            "evaluated": last,
            **reports[last].to_dict(),
            "paper": figures,
        }
        for name in others:
            content["fp32"] = reports[name].to_dict()
            content["difference"] = report.differences(reports[last], reports[name])
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def train(
    recipe: str,
    directory: Path,
    out: Path,
    /,
    *,
    bert: Path | None = None,
    vocabulary: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    fine_tune_text: bool | None = None,
) -> None:
    """Train a model on a data set; the best on its validation split is kept as a bundle.

    A recipe is a file, or one of the eight that the authors released, such as teran_coco_MrSw. On
    several GPUs, start it by torchrun: each takes a part of every batch, and negatives are those of
    the whole.

    Example: teran train teran_f30k_MrSw data/f30k runs/f30k --bert bert-base-uncased/
    Example: teran train mine.toml packed/ runs/mine --start bundle/ --precision bf16
    Example: torchrun --nproc-per-node 4 --no-python teran train mine.toml coco/ run --bert bert/

    Args:
        recipe: What to train, and how.
        directory: Of the data set, as `teran evaluate` takes it.
        out: The run's directory: last.pt, log.csv, record.json and the bundle best/.
        bert: Directory of a BERT of transformers, to begin with.
        vocabulary: BERT's vocab.txt, where it is not in --bert.
        start: A bundle to begin with, its tokenizer and architecture included.
        resume: Go on from the run's last.pt, exactly as if it had not stopped.
        epochs: In the place of the recipe's.
        batch_size: Pairs of a batch and a process, in the place of the recipe's.
        accumulate: Batches of a step, in the place of the recipe's.
        precision: Of matrix products, in the place of the recipe's.
        fine_tune_text: Let BERT learn too, in the place of the recipe's.
    """
    with needs("research"):
        from teran_research.recipe import Recipe
        from teran_research.train import Beginning
        from teran_research.train import train as run
    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "precision": precision,
        "fine_tune_text": fine_tune_text,
    }
    begin = Beginning(start=start, bert=bert, vocabulary=vocabulary)
    run(Recipe.read(recipe).changed(**changes), directory, out, begin, resume=resume)


def explain(
    image: Path,
    caption: str,
    out: Path = Path("explanation"),
    /,
    *,
    model: Path | None = None,
    detector: Path | None = None,
    server: str | None = None,
    photo: Path | None = None,
    size: Size = None,
    access: Access = Access(),
) -> None:
    """Draw where each word of a sentence looks in a picture: OUT.png and OUT.html.

    Example: teran explain beach.jpg "two dogs run on a beach" --server localhost:8001
    Example: teran explain 42.npz "two dogs" dogs --model bundle/ --photo 42.jpg
    Example: teran explain beach.jpg "two dogs" --model bundle/ --detector detector/

    Args:
        image: A photo, or features: `<id>.npz` with `<id>.npy` beside it.
        caption: The sentence.
        out: Where to, without a suffix.
        model: A bundle, in PyTorch.
        detector: What finds a photo's regions for it.
        server: Address of a server, as host:port.
        photo: The picture that features are of, if it does not lie beside them.
        access: How to reach the server.
    """
    if bool(model) == bool(server):
        raise TeranInputError("give --model or --server, one of them")
    with needs("research"):
        from teran_research.explain import blank, draw, looks, open_picture, page
    is_photo = image.suffix != ".npz"
    picture = photo or (image if is_photo else picture_beside(image))
    given = image if is_photo else ImageRegions.from_files(image, fallback=parse_size(size))
    if model:
        match = _by_model(model, detector, given, caption)
    else:
        with access.client_of(server or "") as client:
            match = client.match(given, caption)
    shown = looks(open_picture(picture) if picture else blank(parse_size(size) or (4, 3)), match)
    try:
        out.with_name(f"{out.name}.html").write_text(page(caption, match, shown), encoding="utf-8")
        draw(caption, match, shown).save(out.with_name(f"{out.name}.png"))
    except OSError as error:
        raise TeranInputError(f"can't write {out}: {error}") from error
    print(f"{out}.png and {out}.html: score {match.score:.3f}, {len(shown)} words")


def _by_model(
    model: Path, detector: Path | None, image: Path | ImageRegions, caption: str
) -> Match:
    with needs("research"):
        import numpy as np

        from teran.detector import RegionDetector
        from teran.detector.decode import decode
        from teran.evaluation.data import Regions
        from teran_research.roads import ModelRoad
    if isinstance(image, ImageRegions):
        regions = Regions(image.features, image.boxes)
    else:
        if detector is None:
            raise TeranInputError(f"{image} is a photo; give what finds its regions as --detector")
        try:
            pixels = decode(image.read_bytes())
        except OSError as error:
            raise TeranInputError(f"can't read {image}: {error}") from error
        (found,) = RegionDetector.from_pretrained(detector).detect([np.asarray(pixels)])
        size = (pixels.shape[1], pixels.shape[0])
        regions = Regions.from_pixels(found.features, found.boxes, size, str(image))
    return ModelRoad(model).match(regions, caption)


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
    with needs("research"):
        from teran.evaluation.data import open_regions, read_split, root_of
        from teran.evaluation.data.captions import CAPTIONS_FILE, write_splits
        from teran.evaluation.data.packed import pack as write
        from teran.evaluation.data.relevance import RELEVANCES
        from teran_research.evaluate import progress_bars
    root = root_of(directory, dataset)
    wanted = [read_split(root, dataset, name) for name in splits]
    images = [image for split in wanted for image in split.image_ids]
    out.mkdir(parents=True, exist_ok=True)
    with progress_bars() as bar:
        refused = write(open_regions(root), images, out, bar("packing images", len(images)))
    write_splits(out / CAPTIONS_FILE, dataset, wanted)
    if (root / RELEVANCES).is_dir():
        shutil.copytree(root / RELEVANCES, out / RELEVANCES, dirs_exist_ok=True)
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
    with needs("research"):
        from teran.evaluation.data.packed import PackedSource
    source = PackedSource(directory)
    damaged = source.verify()
    if damaged:
        raise TeranInputError(f"{directory}: not as they were packed: {', '.join(damaged)}")
    print(f"{directory}: {len(source.ids()):,} images, all as they were packed")
