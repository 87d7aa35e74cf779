"""Recipes: what to train on what and how, as a file; the eight released ones are here."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from teran.errors import CheckpointError, TeranInputError
from teran.evaluation.data.captions import DATASETS
from teran.model.config import TeranConfig
from teran.training import TrainingConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One training run, but for where the data are."""

    dataset: str
    model: TeranConfig
    training: TrainingConfig
    restval: bool = False
    """Whether COCO's split of that name is trained on too."""

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """Read a file, or one of the released recipes by its name.

        Raises:
            TeranInputError: there is none, or it holds what is no setting.
        """
        path = RECIPES / f"{name}.toml"
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            released = ", ".join(sorted(one.stem for one in RECIPES.glob("*.toml")))
            raise TeranInputError(f"{name} is neither a file nor one of {released}")
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TeranInputError(f"{path}: {error}") from error
        unknown = found.keys() - {"data", "model", "training"}
        if unknown:
            raise TeranInputError(f"{path}: [{min(unknown)}] is no part of a recipe")
        data = found.get("data", {})
        if data.get("dataset") not in DATASETS or data.keys() - {"dataset", "restval"}:
            raise TeranInputError(
                f"{path}: [data] has a dataset, {' or '.join(DATASETS)}, and may have restval"
            )
        try:
            model = TeranConfig.from_dict(found.get("model", {}))
        except CheckpointError as error:
            raise TeranInputError(f"{path}: [model]: {error}") from error
        training = _training(found.get("training", {}), path)
        return cls(data["dataset"], model, training, bool(data.get("restval", False)))

    def changed(self, **training: Any) -> "Recipe":
        """The same with other settings of the training, where they are not None."""
        wanted = {name: value for name, value in training.items() if value is not None}
        return replace(self, training=replace(self.training, **wanted))


def _training(found: Mapping[str, Any], path: Path) -> TrainingConfig:
    defaults = TrainingConfig()
    kinds = {one.name: type(getattr(defaults, one.name)) for one in fields(TrainingConfig)}
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in kinds:
            raise TeranInputError(f"{path}: [training] has no setting {name}")
        kind = kinds[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TeranInputError(f"{path}: {name} is {value!r}, expected {kind.__name__}")
        values[name] = kind(value)
    try:
        return TrainingConfig(**values)
    except TeranInputError as error:
        raise TeranInputError(f"{path}: {error}") from error
