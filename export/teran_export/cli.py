"""`teran export`, and what makes a bundle to export: `teran convert` and `teran init-random`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from teran.errors import TeranInputError
from teran.extras import needs


def register(app: typer.Typer) -> None:
    """Add the sub-commands to `app`."""
    app.command("export")(export_command)
    app.command()(convert)
    app.command("init-random")(init_random)


def export_command(
    bundle: Annotated[Path, typer.Argument(envvar="TERAN_BUNDLE", help="The model's directory.")],
    out: Annotated[
        Path, typer.Argument(envvar="TERAN_REPOSITORY", help="Where to publish the repository.")
    ],
    engine: Annotated[
        str, typer.Option(envvar="TERAN_ENGINE", help="openvino, onnxruntime, aoti or tensorrt.")
    ] = "openvino",
    precision: Annotated[
        str,
        typer.Option(
            envvar="TERAN_PRECISION",
            help="fp32, fp16, bf16, int8 or fp8, as the engine offers; auto: the fastest that "
            "passes the gate.",
        ),
    ] = "auto",
    calibration: Annotated[
        Path | None,
        typer.Option(
            envvar="TERAN_CALIBRATION",
            help="An .npz of real images and captions: region_features, boxes, region_mask, "
            "captions, image_of_caption.",
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(envvar="TERAN_MAX_IMAGES", min=1, help="Largest batch of images.")
    ] = 32,
    max_captions: Annotated[
        int, typer.Option(envvar="TERAN_MAX_CAPTIONS", min=1, help="Largest batch of captions.")
    ] = 64,
    workspace: Annotated[
        int,
        typer.Option(envvar="TERAN_WORKSPACE", min=0, help="TensorRT: scratch memory, in MiB."),
    ] = 4096,
    optimization_level: Annotated[
        int,
        typer.Option(
            envvar="TERAN_OPTIMIZATION_LEVEL",
            min=0,
            max=5,
            help="TensorRT: higher builds longer, for faster engines.",
        ),
    ] = 3,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            envvar="TERAN_HARDWARE_COMPATIBLE", help="TensorRT: run on other GPUs from Ampere on."
        ),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            envvar="TERAN_VERSION_COMPATIBLE", help="TensorRT: load in later versions as well."
        ),
    ] = False,
    feature_precision: Annotated[
        str,
        typer.Option(
            envvar="TERAN_FEATURE_PRECISION",
            help="What region features are sent in: fp32, or fp16, half as long.",
        ),
    ] = "fp32",
    native: Annotated[
        bool,
        typer.Option(
            envvar="TERAN_NATIVE",
            help="AOTInductor: for Triton's own backend (26.03 or later), not the stand-in.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option(help="Build even what is up to date.")] = False,
) -> None:
    """Compile a bundle and publish a Triton model repository; does nothing where it is up to date.

    Example: teran export bundle/ build/repository --calibration calibration.npz
    """
    with needs("export"):
        from teran_export import ExportOptions, export
        from teran_export.engines.base import BuildOptions
        from teran_export.limits import Limits

    options = ExportOptions(
        bundle=bundle,
        out=out,
        engine=engine,
        precision=precision,
        calibration=calibration,
        feature_precision=feature_precision,
        limits=Limits(max_images, max_captions),
        build=BuildOptions(
            workspace << 20, optimization_level, hardware_compatible, version_compatible, native
        ),
        force=force,
    )
    published = export(options, typer.echo)
    state = "published" if published.built else "up to date"
    typer.echo(f"{published.path}: {state}, {engine} in {published.manifest.precision}")


Vocabulary = Annotated[
    Path, typer.Option(help="BERT's vocab.txt; for bert-base-uncased it has 30522 lines.")
]


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="One of the authors' .pth files.")],
    out: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    vocabulary: Vocabulary,
    text_config: Annotated[
        Path | None,
        typer.Option(help="BERT's config.json, where it is not bert-base-uncased."),
    ] = None,
) -> None:
    """Turn the authors' checkpoint into a bundle, running no code it may contain.

    Example: teran convert teran_coco_MrSw.pth bundle/ --vocabulary vocab.txt
    """
    with needs("export"):
        from teran.model import TeranModel
        from teran.tokenizer import wordpiece_tokenizer
    text = None
    if text_config is not None:
        try:
            text = json.loads(text_config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TeranInputError(f"can't read {text_config}: {error}") from error
    model = TeranModel.from_checkpoint(checkpoint, text, wordpiece_tokenizer(vocabulary))
    model.save_pretrained(out)
    typer.echo(f"{out}: {model.config.pooling} bundle written")


def init_random(
    out: Annotated[Path, typer.Argument(help="The bundle's directory.")],
    vocabulary: Vocabulary,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write a full-size bundle with random weights, to measure speed without a checkpoint.

    Example: teran init-random build/full --vocabulary vocab.txt
    """
    with needs("export"):
        from teran.model import TeranConfig, TextConfig
        from teran.model.random import random_model
        from teran.tokenizer import wordpiece_tokenizer
    tokenizer = wordpiece_tokenizer(vocabulary)
    text = TextConfig(vocab_size=tokenizer.get_vocab_size())
    model = random_model(TeranConfig(text=text), seed)
    model.tokenizer = tokenizer
    model.save_pretrained(out)
    typer.echo(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights written")
