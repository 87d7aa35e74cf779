"""The bundle: a model directory in the Hugging Face layout.

`config.json`, `model.safetensors` and `tokenizer.json`. Reading one needs no torch code but the
weights' own loader, and runs nothing it contains.
"""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer
from torch import nn

from teran.errors import CheckpointError
from teran.model.config import TeranConfig

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def read_config(directory: str | Path) -> TeranConfig:
    """Read `config.json`.

    Raises:
        CheckpointError: it is missing or not a TERAN config.
    """
    path = Path(directory) / CONFIG
    try:
        return TeranConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is not a bundle: it has no {CONFIG}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a JSON object: {error}") from error


def read_tokenizer(directory: str | Path) -> Tokenizer | None:
    """Read `tokenizer.json`, or None where the bundle has none.

    Raises:
        CheckpointError: the file is there but is not a tokenizer.
    """
    path = Path(directory) / TOKENIZER
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from error


def load_weights(model: nn.Module, directory: str | Path) -> None:
    """Load `model.safetensors` into `model`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another architecture.
    """
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a bundle: it has no {WEIGHTS}")
    try:
        load_model(model, path)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit {CONFIG}: {error}") from error


def write(
    directory: str | Path, model: nn.Module, config: TeranConfig, tokenizer: Tokenizer | None
) -> None:
    """Write a bundle. The config goes last, so an interrupted write is not taken for a bundle."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_model(model, str(directory / WEIGHTS), metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(str(directory / TOKENIZER))
    text = json.dumps(config.to_dict(), indent=2)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def fingerprint(directory: str | Path) -> str:
    """SHA-256 over the bundle's three files: what tells one model from another."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        path = Path(directory) / name
        if path.is_file():
            digest.update(name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
