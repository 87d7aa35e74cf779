"""Lays out a Triton model repository: the sources' configs, filled in through Triton's protobuf."""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from teran.contract import USUAL_REGIONS, pack_texts
from teran.detector import DetectorConfig, RegionDetector
from teran.detector.config import ANCHORS, STRIDE
from teran.detector.photo import input_size, map_side
from teran.model import TeranConfig
from teran.resources import MODEL_REPOSITORY
from teran.tokenizer import MAX_WORD_PIECES, WORD_BUCKETS
from teran_export.detector_graphs import PROPOSAL_NETWORK, SIDE_STEP
from teran_export.engines.base import Engine, Source
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, Arrays, Graph, random_inputs
from teran_export.limits import MAX_CELLS, MAX_REGIONS
from teran_export.options import Limits

VERSION = "1"
PHOTO_ENSEMBLES = ("detect_regions", "encode_photo", "match_photo")
PHOTO_GALLERY_ENSEMBLES = ("index_photos", "search_by_photo")
ENSEMBLES = ("encode_caption", "encode_image", "match")
GALLERY_ENSEMBLES = ("index", "search", "index_captions", "search_captions", "change")
GALLERY_POOLINGS = ("MrSw", "MwSr", "symm")
_STATIC_WORDS = (16, 32)
"""Word buckets whose single captions get an engine of their own; 98 % of real ones fall in them."""
_BULK_ON_CPU = {VISUAL_ENCODER: 4, TEXTUAL_ENCODER: 2}
"""Items of many that clients send together. A CPU does more of them hardly faster, and meanwhile
whoever searches has to wait (benchmarks/results/beside_indexing.json)."""
_WARM_CAPTIONS = ("a dog .", "two people on a beach .")


@dataclass(frozen=True)
class _Served:
    """How a graph is served."""

    batch: int
    """The largest; 0 for what is not batched."""
    axes: Mapping[str, tuple[int, int, int]]
    """Least, most and step of an axis's length."""
    samples: Sequence[tuple[int, ...]]
    """Sizes of what it is warmed up with."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """The last axis of outputs."""
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The least and the largest of inputs."""
    parameters: Mapping[str, str] = field(default_factory=dict)


class RepositoryBuilder:
    """Writes one repository into an empty directory, model by model."""

    def __init__(
        self, directory: Path, config: TeranConfig, limits: Limits, feature_precision: str = "fp32"
    ) -> None:
        self.directory, self._config, self._limits = directory, config, limits
        self._photos = 0
        self._feature_type = pb.DataType.Value(f"TYPE_{feature_precision.upper()}")
        self._max_words = min(MAX_WORD_PIECES, config.text.max_position_embeddings)

    def version_directory(self, model: str) -> Path:
        """The directory of a model's files, made if need be."""
        path = self.directory / model / VERSION
        path.mkdir(parents=True, exist_ok=True)
        return path

    def add_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Add the `tokenizer` model."""
        folder = self._add_code("tokenizer")
        tokenizer.save(str(folder / "tokenizer.json"))
        config = _source("tokenizer")
        config.max_batch_size = self._limits.max_captions
        config.parameters["max_word_pieces"].string_value = str(self._max_words)
        for i, caption in enumerate(_WARM_CAPTIONS):
            self._warm_up(config, f"sample_{i}", {"caption": np.array([[caption]], np.object_)})
        self._write(config)

    def add_engine(self, source: Source, engine: Engine, precision: str) -> None:
        """Add the config of a model whose engine files are in place already."""
        graph, model = source.graph, source.model.config
        served = self._served(source, engine)
        config = _source(graph.name)
        config.backend = engine.backend
        config.default_model_filename = engine.files[0]
        kinds = pb.ModelInstanceGroup
        kind = kinds.KIND_GPU if engine.on_gpu else kinds.KIND_CPU
        config.instance_group.add(kind=kind, count=1)
        config.max_batch_size = served.batch
        first = int(served.batch > 0)
        for tensor in config.input:
            tensor.dims[:] = graph.shape(tensor.name, model, {})[first:]
        if graph == VISUAL_ENCODER:
            config.input[0].data_type = self._feature_type
        for tensor in config.output:
            if (width := served.widths.get(tensor.name)) is not None:
                tensor.dims[-1] = width
        shapes = {
            name: [axis if isinstance(axis, str) else None for axis in axes[first:]]
            for name, axes in graph.inputs.items()
        }
        checks = {"shapes": shapes, "axes": served.axes, "values": served.values}
        parameters = {key: json.dumps(value) for key, value in checks.items()}
        parameters |= served.parameters
        if graph in _BULK_ON_CPU and not engine.on_gpu:
            parameters["bulk_batch"] = str(min(served.batch, _BULK_ON_CPU[graph]))
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        engine.configure(config, source, precision)
        for i, sizes in enumerate(served.samples):
            self._warm_up(config, f"sample_{i}", random_inputs(graph, model, sizes, seed=i))
        self._write(config)

    def _served(self, source: Source, engine: Engine) -> "_Served":
        """How a graph is served."""
        graph, batch = source.graph, source.largest_batch
        if isinstance(source.model, RegionDetector):
            return _served_detector(graph, source.model.config, batch if engine.on_gpu else 1)
        embed = self._config.embed_dim
        if graph == VISUAL_ENCODER:
            return _Served(
                batch,
                {"regions": (1, MAX_REGIONS, 1)},
                [(1, USUAL_REGIONS), (1, 8), (min(4, batch), USUAL_REGIONS)],
                {"region_embeddings": embed},
                parameters={"static_rows": str(USUAL_REGIONS)},
            )
        if graph == TEXTUAL_ENCODER:
            widths = [width for width in WORD_BUCKETS if width <= self._max_words]
            return _Served(
                batch,
                {"words": (1, self._max_words, 1)},
                [*((1, width) for width in widths), (min(4, batch), widths[0])],
                {"word_embeddings": embed},
                {"input_ids": (0, self._config.text.vocab_size - 1), "attention_mask": (0, 1)},
                {"static_rows": ",".join(str(w) for w in widths if w in _STATIC_WORDS)},
            )
        return _Served(
            0,
            {"regions": (1, MAX_REGIONS, 1), "words": (1, MAX_REGIONS, 1)},
            [(1, USUAL_REGIONS, 1, 16), (8, USUAL_REGIONS, 1, 16)],
            parameters={"max_cells": str(MAX_CELLS), "pooling": self._config.pooling.value},
        )

    def add_photo_models(self, detector: RegionDetector, batch: int) -> None:
        """Add what is before, between and behind the detector's networks.

        Args:
            detector: whose networks they are.
            batch: photos that go through the networks together, at most.
        """
        config, self._photos = detector.config, batch
        parameters = {
            "detector": json.dumps(config.to_dict()),
            "side_step": str(SIDE_STEP),
            "anchors": json.dumps(detector.anchors.tolist()),
            "feature_precision": "fp16" if self._feature_type == pb.TYPE_FP16 else "fp32",
        }
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), "grey").save(picture, "PNG")
        size = np.array([[48, 64]], np.int32)
        cells = tuple(map(map_side, input_size((48, 64), config)))
        boxes = np.array([[[0, 0, 31, 31]]], np.float32)
        samples: dict[str, Arrays] = {
            "photo": {"photo": np.frombuffer(picture.getvalue(), np.uint8)[None]},
            "proposals": {
                "objectness": np.zeros((1, ANCHORS, *cells), np.float32),
                "deltas": np.zeros((1, 4 * ANCHORS, *cells), np.float32),
                "photo_size": size,
            },
            "regions": {
                "proposal_features": np.zeros((1, 1, config.feature_dim), np.float32),
                "class_scores": np.zeros((1, 1, 1 + config.classes), np.float32),
                "proposals": boxes,
                "photo_size": size,
            },
        }
        for name, sample in samples.items():
            self._add_code(name)
            model = _source(name)
            model.max_batch_size = batch
            for tensor in model.output:
                if tensor.name == "region_features":
                    tensor.dims[-1], tensor.data_type = config.feature_dim, self._feature_type
            for key, value in (parameters | _checks_of_step(name, config)).items():
                model.parameters[key].string_value = value
            self._warm_up(model, "ping", sample)
            self._write(model)

    def add_gallery(self, fingerprint: str) -> None:
        """Add the `gallery` model, bound to the bundle's fingerprint."""
        self._add_code("gallery")
        config = _source("gallery")
        config.max_batch_size = max(self._limits.max_images, self._limits.max_captions)
        config.input[0].dims[1] = self._config.embed_dim
        values = {
            "fingerprint": fingerprint,
            "embed_dim": str(self._config.embed_dim),
            "pooling": self._config.pooling.value,
        }
        for key, value in values.items():
            config.parameters[key].string_value = value
        self._warm_up(config, "ping", {"record": pack_texts([b"{}"])})
        self._write(config)

    def add_admission(self) -> None:
        """Add the `admission` model, where ensembles with images begin."""
        self._add_helper("admission", {"region_mask": np.ones((1, USUAL_REGIONS), np.bool_)})

    def add_stored(self) -> None:
        """Add the `stored` model, where ensembles that write end."""
        self._add_helper("stored", {"ticket": np.zeros((1, 1), np.int64)})

    def _add_helper(self, name: str, sample: Arrays) -> None:
        self._add_code(name)
        config = _source(name)
        config.max_batch_size = max(self._limits.max_images, self._limits.max_captions)
        self._warm_up(config, "ping", sample)
        self._write(config)

    def add_ensembles(self, names: Sequence[str]) -> None:
        """Add ensembles, whose tensors follow from the models they are made of."""
        embed, features = self._config.embed_dim, self._config.feature_dim
        for name in names:
            config = _source(name)
            for tensor in config.input:
                if tensor.name == "region_features":
                    tensor.dims[-1] = features
                    tensor.data_type = self._feature_type
            for tensor in config.output:
                if tensor.name in ("word_embeddings", "region_embeddings"):
                    tensor.dims[-1] = embed
                if tensor.name == "region_features":
                    tensor.dims[-1], tensor.data_type = features, self._feature_type
            if config.max_batch_size:
                limits = self._limits
                of = {"caption": limits.max_captions, "photo": self._photos}
                config.max_batch_size = of.get(config.input[0].name, limits.max_images)
            self._write(config)
            # An empty version directory would not survive version control or some file copies.
            (self.version_directory(name) / ".keep").touch()

    def _add_code(self, model: str) -> Path:
        """Copy a model's own code, and return where it is."""
        folder = self.version_directory(model)
        shutil.copyfile(MODEL_REPOSITORY / model / VERSION / "model.py", folder / "model.py")
        return folder

    def _warm_up(self, config: pb.ModelConfig, name: str, inputs: Mapping[str, object]) -> None:
        """Add a warm-up sample. Triton reads its bytes from files beside the model."""
        arrays: Arrays = {key: np.asarray(value) for key, value in inputs.items()}
        batched = config.max_batch_size > 0
        sample = config.model_warmup.add(name=name)
        sample.batch_size = len(next(iter(arrays.values()))) if batched else 0
        folder = self.directory / config.name / "warmup"
        folder.mkdir(parents=True, exist_ok=True)
        types = {tensor.name: tensor.data_type for tensor in config.input}
        for key, value in arrays.items():
            # With a batch size, the file holds one item, which Triton repeats.
            data = value[:1] if batched else value
            file = f"{name}_{key}"
            raw = serialize_byte_tensor(data).item() if data.dtype == np.object_ else data.tobytes()
            (folder / file).write_bytes(raw)
            entry = sample.inputs[key]
            entry.data_type = types[key]
            entry.dims.extend(data.shape[1:] if batched else data.shape)
            entry.input_data_file = file

    def _write(self, config: pb.ModelConfig) -> None:
        folder = self.directory / config.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def _source(model: str) -> pb.ModelConfig:
    """Parse a model's source config; a misspelt field fails here, not when the server loads it."""
    text = (MODEL_REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, pb.ModelConfig())


def _checks_of_step(name: str, config: DetectorConfig) -> dict[str, str]:
    """What the inputs of a step must be like; see `teran.runtime.input_checks`."""
    cells = _largest_side(config) // STRIDE
    features, scores = config.feature_dim, 1 + config.classes
    maps = [None, "map_height", "map_width"]
    if name == "proposals":
        shapes: dict[str, list[str | None]] = {"objectness": maps, "deltas": maps}
        axes = {"map_height": (1, cells, 1), "map_width": (1, cells, 1)}
    elif name == "regions":
        shapes = {
            "proposals": ["proposals", None],
            "proposal_features": ["proposals", "features"],
            "class_scores": ["proposals", "classes"],
        }
        axes = {
            "proposals": (1, config.proposals, 1),
            "features": (features, features, 1),
            "classes": (scores, scores, 1),
        }
    else:
        return {}
    return {"shapes": json.dumps(shapes), "axes": json.dumps(axes)}


def _largest_side(detector: DetectorConfig) -> int:
    """Pixels of a photo as the network takes it."""
    return -(-max(detector.min_side, detector.max_side) // SIDE_STEP) * SIDE_STEP


def _served_detector(graph: Graph, config: DetectorConfig, batch: int) -> _Served:
    """How one of its networks is served. The first sample, with which it is watched, is small."""
    largest = _largest_side(config)
    short, long = (
        -(-side // SIDE_STEP) * SIDE_STEP for side in (config.min_side, config.min_side * 4 // 3)
    )
    long = min(long, largest)
    if graph == PROPOSAL_NETWORK:
        sides = (SIDE_STEP, largest, SIDE_STEP)
        return _Served(
            batch,
            {"height": sides, "width": sides},
            [(1, 2 * SIDE_STEP, 2 * SIDE_STEP), (1, short, long)],
            values={"pixels": (-128, 256)},
        )
    cells = largest // STRIDE
    return _Served(
        batch,
        {
            "map_height": (1, cells, 1),
            "map_width": (1, cells, 1),
            "proposals": (1, config.proposals, 1),
        },
        [(1, 4, 4, 1), (1, short // STRIDE, long // STRIDE, config.proposals)],
        {"proposal_features": config.feature_dim, "class_scores": 1 + config.classes},
        {"proposals": (0, largest)},
    )
