"""The data an engine is calibrated on and judged by."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from teran.errors import ExportError
from teran.evaluation.data import Regions, open_regions, read_split, root_of
from teran.evaluation.data.captions import dataset_of
from teran.model import TeranConfig
from teran.tokenizer import WORD_BUCKETS, CaptionTokenizer
from teran_export.graphs import (
    FEATURE_TYPES,
    TEXTUAL_ENCODER,
    VISUAL_ENCODER,
    Arrays,
    Graph,
    random_inputs,
)

BATCH = 16


@dataclass(frozen=True)
class CalibrationData:
    """Inputs of both encoders, and which caption belongs to which image where that is known."""

    source: str
    """The file's name, or "synthetic"."""
    images: Arrays
    """`region_features` (N, R, F), `boxes` (N, R, 4), `region_mask` (N, R)"""
    captions: Arrays
    """`input_ids`, `attention_mask`, `word_mask` (M, W)"""
    image_of_caption: npt.NDArray[np.int64] | None

    @classmethod
    def load(cls, path: Path, config: TeranConfig, tokenizer: Tokenizer) -> "CalibrationData":
        """Read real images and captions: an `.npz`, or a table of bottom-up attention's.

        A table has no captions; random ones stand in for them, and there is no recall. The keys of
        an `.npz`: `region_features` (N, R, F), `boxes` (N, R, 4), `region_mask` (N, R), `captions`
        (M,) strings, and `image_of_caption` (M,) for the recall check.

        Raises:
            ExportError: the file can't be read, or does not fit the model.
            TeranInputError: the table can't be.
        """
        if path.suffix == ".tsv":
            source = open_regions(path)
            images = _padded([source.read(image) for image in source.ids()], path, config)
            synthetic = cls.synthetic(config)
            return cls(path.name, images, synthetic.captions, None)
        try:
            with np.load(path) as archive:
                images = {
                    "region_features": archive["region_features"].astype(np.float32),
                    "boxes": archive["boxes"].astype(np.float32),
                    "region_mask": archive["region_mask"].astype(bool),
                }
                captions = [str(caption) for caption in archive["captions"]]
                owner = archive["image_of_caption"].astype(np.int64)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ExportError(f"can't use {path} for calibration: {error}") from error
        if images["region_features"].shape[2] != config.feature_dim:
            raise ExportError(
                f"{path} has features of {images['region_features'].shape[2]} values, the model "
                f"takes {config.feature_dim}"
            )
        batch = CaptionTokenizer(tokenizer, config.text.max_position_embeddings).encode(captions)
        tokens = {name: getattr(batch, name) for name in TEXTUAL_ENCODER.inputs}
        return cls(path.name, images, tokens, owner)

    @classmethod
    def of_dataset(
        cls, directory: Path, split: str, most: int, config: TeranConfig, tokenizer: Tokenizer
    ) -> "CalibrationData":
        """Read the first images of a data set's split, with their captions taken verbatim.

        Args:
            directory: of the data set.
            split: its name.
            most: images.
            config: of the model.
            tokenizer: the model's.

        Raises:
            TeranInputError: the data set can't be used.
            ExportError: it does not fit the model.
        """
        dataset = dataset_of(directory)
        directory = root_of(directory, dataset)
        whole = read_split(directory, dataset, split)
        part = whole.part(0, min(most, len(whole.image_ids)))
        source = open_regions(directory)
        regions = [source.read(image) for image in part.image_ids]
        images = _padded(regions, directory, config)
        pieces = CaptionTokenizer(tokenizer, config.text.max_position_embeddings)
        batch = pieces.encode(part.captions, verbatim=True)
        tokens = {name: getattr(batch, name) for name in TEXTUAL_ENCODER.inputs}
        return cls(f"{whole.dataset} {split}, {len(regions)} images", images, tokens, part.owner)

    @classmethod
    def synthetic(cls, config: TeranConfig) -> "CalibrationData":
        """Random valid inputs: enough for speed and numerical checks, not for recall."""
        images = random_inputs(VISUAL_ENCODER, config, (64, 36), seed=1)
        captions = random_inputs(TEXTUAL_ENCODER, config, (128, 16), seed=2)
        return cls("synthetic", images, captions, None)

    def to_arrays(self) -> Arrays:
        """Everything, as an archive holds it."""
        arrays: Arrays = {"source": np.array(self.source), **self.images, **self.captions}
        if self.image_of_caption is not None:
            arrays["image_of_caption"] = self.image_of_caption
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "CalibrationData":
        """The data that `to_arrays` gave."""
        images, captions = (
            {name: arrays[name] for name in graph.inputs}
            for graph in (VISUAL_ENCODER, TEXTUAL_ENCODER)
        )
        owner = arrays.get("image_of_caption")
        return cls(
            str(arrays["source"]),
            images,
            captions,
            None if owner is None else owner.astype(np.int64),
        )

    def with_features(self, precision: str) -> "CalibrationData":
        """The same data with region features in "fp32" or "fp16", as they will be sent."""
        features = self.images["region_features"].astype(FEATURE_TYPES[precision])
        return replace(self, images={**self.images, "region_features": features})

    def inputs(self, graph: Graph) -> Arrays:
        """All inputs of one encoder."""
        return self.images if graph == VISUAL_ENCODER else self.captions

    def batches(self, graph: Graph) -> Iterator[Arrays]:
        """The inputs of one encoder in batches, captions no wider than a batch is served."""
        inputs = self.inputs(graph)
        count = len(next(iter(inputs.values())))
        for start in range(0, count, BATCH):
            batch = {name: value[start : start + BATCH] for name, value in inputs.items()}
            if graph == TEXTUAL_ENCODER:
                longest = int(batch["attention_mask"].sum(axis=1).max())
                width = next((one for one in WORD_BUCKETS if longest <= one), None)
                batch = {name: value[:, :width] for name, value in batch.items()}
            yield batch


def _padded(regions: Sequence[Regions], path: Path, config: TeranConfig) -> Arrays:
    """The inputs of the visual encoder, (N, R, ...).

    Raises:
        ExportError: the model takes other features.
    """
    width = regions[0].features.shape[1]
    if width != config.feature_dim:
        raise ExportError(
            f"{path} has features of {width} values, the model takes {config.feature_dim}"
        )
    shape = len(regions), max(len(one) for one in regions)
    images: Arrays = {
        "region_features": np.zeros((*shape, width), np.float32),
        "boxes": np.zeros((*shape, 4), np.float32),
        "region_mask": np.zeros(shape, bool),
    }
    for i, one in enumerate(regions):
        images["region_features"][i, : len(one)] = one.features
        images["boxes"][i, : len(one)] = one.boxes
        images["region_mask"][i, : len(one)] = True
    return images
