"""`teran detector`: weights of the region detector."""

from pathlib import Path

from cyclopts import App

from teran.extras import needs

detector_app = App(name="detector", help="Convert and check the weights of a region detector.")


@detector_app.command
def convert(
    checkpoint: Path,
    out: Path,
    /,
    *,
    regions: tuple[int, int] = (36, 36),
    labels: Path | None = None,
) -> None:
    """Make a detector of public weights; no code in them is run.

    They are those of MILVLG's bottom-up-attention.pytorch, or unc-nlp/frcnn-vg-finetuned.

    Example: teran detector convert bua-caffe-frcn-r101-k36.pth detector/

    Args:
        checkpoint: A .pth, .bin or .safetensors.
        out: The directory to write.
        regions: The fewest and the most of a photo, as 36 36 or 10 100.
        labels: Names of the classes, a line each (objects_vocab.txt of the original).
    """
    with needs("detector"):
        from dataclasses import replace

        from teran.detector import RegionDetector
    names = labels.read_text(encoding="utf-8").splitlines() if labels else []
    detector = RegionDetector.from_checkpoint(checkpoint)
    fewest, most = regions
    detector.config = replace(detector.config, min_regions=fewest, max_regions=most)
    detector.save_pretrained(out, names)
    depth, classes = detector.config.depth, detector.config.classes
    print(f"{out}: ResNet-{depth}, {classes} classes, {fewest} to {most} regions a photo")


@detector_app.command(name="init-random")
def init_random(out: Path, /) -> None:
    """Write a full-size detector with random weights, to measure speed without a checkpoint.

    Example: teran detector init-random build/detector

    Args:
        out: The directory to write.
    """
    with needs("detector"):
        from teran.detector import DetectorConfig
        from teran.detector.random import random_detector
    random_detector(DetectorConfig()).save_pretrained(out)
    print(f"{out}: random weights; what it finds is as good as chance")


@detector_app.command
def verify(detector: Path, originals: Path, /) -> None:
    """Say how far a detector agrees with the original, on photos whose regions that one has found.

    Example: teran detector verify detector/ caffe10/

    Args:
        detector: From `teran detector convert`.
        originals: A directory with a .tsv of the original's regions, and the photos.
    """
    with needs("detector"):
        from teran.detector import RegionDetector
        from teran.detector.agreement import compare, total
    found = []
    for one in compare(RegionDetector.from_pretrained(detector), originals):
        print(one, flush=True)
        found.append(one)
    print(total(found))
