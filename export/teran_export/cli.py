"""`teran export`, and what makes a bundle to export: `teran convert` and `teran init-random`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from teran.errors import TeranInputError
from teran.extras import needs
from teran_export.options import ExportOptions

Vocabulary = Annotated[
    Path, Parameter(help="BERT's vocab.txt; for bert-base-uncased it has 30522 lines.")
]


def register(app: App) -> None:
    """Add the sub-commands to `app`."""
    app.command(export_command, name="export")
    app.command(verify)
    app.command(convert)
    app.command(init_random)


def export_command(
    bundle: Annotated[Path, Parameter(env_var="TERAN_BUNDLE")],
    out: Annotated[Path, Parameter(env_var="TERAN_REPOSITORY")],
    /,
    *,
    options: ExportOptions = ExportOptions(),
) -> None:
    """Compile a bundle and publish a Triton model repository; does nothing where it is up to date.

    Example: teran export bundle/ build/repository --calibration calibration.npz

    Args:
        bundle: The model's directory.
        out: Where to publish the repository.
    """
    with needs("export"):
        from teran_export import export

    published = export(replace(options, bundle=bundle, out=out), print)
    state = "published" if published.built else "up to date"
    print(f"{published.path}: {state}, {options.engine} in {published.manifest.precision}")


def verify(repository: Annotated[Path, Parameter(env_var="TERAN_REPOSITORY")], /) -> None:
    """Check engines on the GPU they are served on, where they were built without one.

    `teran serve` does it before it begins. What is found is kept for this GPU.

    Example: teran verify build/repository

    Args:
        repository: From `teran export`.
    """
    with needs("export"):
        from teran_export.verification import verify

    print(f"{repository}: {verify(repository, print)}")


def convert(
    source: Path,
    out: Path,
    /,
    *,
    vocabulary: Vocabulary | None = None,
    text_config: Path | None = None,
) -> None:
    """Turn the authors' checkpoint into a bundle, running no code in it, or a bundle into one.

    Example: teran convert teran_coco_MrSw.pth bundle/ --vocabulary vocab.txt
    Example: teran convert bundle/ for_the_authors_code.pth

    Args:
        source: One of the authors' .pth files, or a bundle.
        out: The bundle's directory, or the .pth.
        text_config: BERT's config.json, where it is not bert-base-uncased.
    """
    with needs("export"):
        from teran.model import TeranModel
        from teran.tokenizer import wordpiece_tokenizer
    if source.is_dir():
        TeranModel.from_pretrained(source).save_checkpoint(out)
        print(f"{out}: checkpoint written")
        return
    if vocabulary is None:
        raise TeranInputError(f"{source} holds no tokenizer; give BERT's vocab.txt as --vocabulary")
    text = None
    if text_config is not None:
        try:
            text = json.loads(text_config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TeranInputError(f"can't read {text_config}: {error}") from error
    model = TeranModel.from_checkpoint(source, text, wordpiece_tokenizer(vocabulary))
    model.save_pretrained(out)
    print(f"{out}: {model.config.pooling} bundle written")


def init_random(out: Path, /, *, vocabulary: Vocabulary, seed: int = 0) -> None:
    """Write a full-size bundle with random weights, to measure speed without a checkpoint.

    Example: teran init-random build/full --vocabulary vocab.txt

    Args:
        out: The bundle's directory.
        seed: The same seed gives the same weights.
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
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights written")
