"""Builds inference requests and reads responses: no input or output, so both clients share it."""

import asyncio
import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from teran.contract import MAX_CAPTION_BYTES, QUERY_ROWS, USUAL_REGIONS
from teran.errors import TeranInputError, TeranServerError
from teran_client.images import Floats, ImageRegions
from teran_client.photos import Photo, is_photo
from teran_client.results import Detection, EncodedCaption, Hit, Match, SearchResult
from teran_client.segment import Segment

Arrays = dict[str, npt.NDArray[Any]]
Parameters = Mapping[str, bool | int | float | str]
_PARAMETER_FIELDS = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


@dataclass(frozen=True)
class ModelInfo:
    """What the server's model takes, read from its configuration."""

    feature_dim: int
    embed_dim: int
    max_images: int
    max_captions: int
    max_regions: int
    max_cells: int
    bulk_images: int
    """Images that go together when there are many, so that others need not wait long."""
    bulk_captions: int
    """Captions, likewise."""
    half_features: bool = False
    """Whether region features are sent in fp16."""
    pooling: str | None = None
    """How cosines become a score; None of a repository that does not say."""

    @classmethod
    def from_configs(cls, visual: Any, textual: Any, alignment: Any) -> "ModelInfo":
        """Read the configs of the three engines."""

        def parameter(config: Any, name: str, default: str) -> str:
            value = config.parameters[name].string_value if name in config.parameters else ""
            return value or default

        def limit(config: Any, name: str, default: int) -> int:
            return int(parameter(config, name, str(default)))

        features = next(tensor for tensor in visual.input if tensor.name == "region_features")
        return cls(
            feature_dim=features.dims[-1],
            half_features=features.data_type == DataType.TYPE_FP16,
            embed_dim=visual.output[0].dims[-1],
            max_images=visual.max_batch_size,
            max_captions=textual.max_batch_size,
            max_regions=_most(visual, "regions"),
            max_cells=limit(alignment, "max_cells", 1 << 26),
            bulk_images=limit(visual, "bulk_batch", visual.max_batch_size),
            bulk_captions=limit(textual, "bulk_batch", textual.max_batch_size),
            pooling=parameter(alignment, "pooling", "") or None,
        )

    def bulk(self, content: object) -> int:
        """Items with contents of one kind that go together when there are many."""
        if isinstance(content, Photo):
            return 1
        return self.bulk_captions if isinstance(content, str) else self.bulk_images

    def bulk_queries(self, query: Sized) -> int:
        """Queries that go together, by the longest: a sentence has no more words than letters."""
        return min(self.bulk(query), max(1, QUERY_ROWS // max(1, len(query))))


def _most(config: Any, axis: str) -> int:
    """The largest length of an axis that a model takes."""
    if "axes" not in config.parameters:  # of an older server
        return 1 << 30
    _, most, _ = json.loads(config.parameters["axes"].string_value)[axis]
    return int(most)


def infer_request(
    model: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str],
    parameters: Parameters | None = None,
    segment: Segment | None = None,
) -> Any:
    """Build a request for the named outputs; numbers go into `segment`, where there is one."""
    request = pb.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        datatype = np_to_triton_dtype(value.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        if segment is not None and datatype != "BYTES":
            tensor.parameters["shared_memory_region"].string_param = segment.name
            tensor.parameters["shared_memory_offset"].int64_param = segment.write(value)
            tensor.parameters["shared_memory_byte_size"].int64_param = value.nbytes
            continue
        raw = serialize_byte_tensor(value).item() if datatype == "BYTES" else value.tobytes()
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    for name, setting in (parameters or {}).items():
        setattr(request.parameters[name], _PARAMETER_FIELDS[type(setting)], setting)
    return request


def read_response(response: Any) -> Arrays:
    """Read every output of a response, without a copy where it holds numbers."""
    result: Arrays = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            flat = deserialize_bytes_tensor(raw)
        else:
            flat = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
        result[tensor.name] = flat.reshape(tuple(tensor.shape))
    return result


def check_caption(caption: object, name: str) -> str:
    """Check one caption.

    Raises:
        TeranInputError: it is not text, empty, or too long.
    """
    if not isinstance(caption, str):
        raise TeranInputError(f"{name} is {type(caption).__name__}, expected a string")
    if not caption.strip():
        raise TeranInputError(f"{name} is empty")
    try:
        size = len(caption.encode())
    except UnicodeEncodeError as error:
        raise TeranInputError(f"{name} can't be written as UTF-8: {error}") from error
    if size > MAX_CAPTION_BYTES:
        raise TeranInputError(f"{name} has {size} bytes; at most {MAX_CAPTION_BYTES} are accepted")
    return caption


def check_image(image: object, name: str, info: ModelInfo) -> ImageRegions | Photo:
    """Check that an image fits the server's model; what a photo holds the server finds out.

    Raises:
        TeranInputError: it does not.
    """
    if isinstance(image, str) or is_photo(image):
        return Photo.of(image, name)
    if not isinstance(image, ImageRegions):
        raise TeranInputError(
            f"{name} is {type(image).__name__}, expected ImageRegions (features and boxes) or a "
            "photo (a path, bytes or a Pillow image)"
        )
    if image.features.shape[1] != info.feature_dim:
        raise TeranInputError(
            f"{name} ({image.name}): features have {image.features.shape[1]} dims, the server's "
            f"model takes {info.feature_dim}"
        )
    if len(image) > info.max_regions:
        raise TeranInputError(
            f"{name} ({image.name}): {len(image)} regions; at most {info.max_regions} are accepted"
        )
    if info.half_features and np.abs(image.features).max() > np.finfo(np.float16).max:
        raise TeranInputError(
            f"{name} ({image.name}): features reach {np.abs(image.features).max():g}, beyond fp16, "
            "in which this server takes them"
        )
    return image


def image_inputs(images: Sequence[ImageRegions], info: ModelInfo) -> Arrays:
    """Pad images to the longest of them, or to the usual 36 regions: requests of equal shapes."""
    length = max(USUAL_REGIONS, *(len(image) for image in images))
    shape = (len(images), length)
    dtype = np.float16 if info.half_features else np.float32
    features = np.zeros((*shape, images[0].features.shape[1]), dtype)
    boxes, mask = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.bool_)
    for i, image in enumerate(images):
        features[i, : len(image)] = image.features
        boxes[i, : len(image)] = image.boxes
        mask[i, : len(image)] = True
    return {"region_features": features, "boxes": boxes, "region_mask": mask}


async def photo_inputs(photo: Photo) -> Arrays:
    """A photo as the server takes it; files are read beside other work."""
    data = await asyncio.to_thread(photo.read)
    return {"photo": np.frombuffer(data, np.uint8)[None]}


def read_photo(outputs: Arrays) -> Floats:
    """A photo's region embeddings (R, E)."""
    embeddings: Floats = outputs["region_embeddings"][0, outputs["region_mask"][0]]
    return embeddings


def present_boxes(outputs: Arrays) -> Floats:
    """The boxes (R, 4) of a photo's regions."""
    boxes: Floats = outputs["boxes"][0, outputs["region_mask"][0]]
    return boxes


def read_detection(outputs: Arrays, name: str) -> Detection:
    """What was found in a photo."""
    present = outputs["region_mask"][0]
    height, width = outputs["photo_size"][0].tolist()
    regions = ImageRegions(
        outputs["region_features"][0, present], outputs["boxes"][0, present], name
    )
    confidence, labels = (outputs[key][0, present] for key in ("confidence", "labels"))
    return Detection(regions, confidence, labels, (width, height))


def caption_inputs(captions: Sequence[str]) -> Arrays:
    """Captions as the server takes them."""
    return {"caption": np.array([[caption.encode()] for caption in captions], np.object_)}


def read_images(outputs: Arrays, images: Sequence[ImageRegions]) -> list[Floats]:
    """Every image's region embeddings (R, E), without padding."""
    embeddings = outputs["region_embeddings"]
    return [embeddings[i, : len(image)] for i, image in enumerate(images)]


def read_captions(outputs: Arrays, captions: Sequence[str]) -> list[EncodedCaption]:
    """Every caption's word embeddings, without padding."""
    results = []
    for i, caption in enumerate(captions):
        tokens = tuple(token.decode() for token in outputs["tokens"][i] if token)
        length = len(tokens)
        results.append(
            EncodedCaption(
                caption,
                tokens,
                outputs["word_embeddings"][i, :length],
                outputs["word_mask"][i, :length],
                bool(outputs["truncated"][i, 0]),
            )
        )
    return results


def read_match(outputs: Arrays, boxes: Floats) -> Match:
    """The one pair of a `match` response, and where the image's regions are."""
    tokens = tuple(token.decode() for token in outputs["tokens"][0] if token)
    mask = outputs["word_mask"][0, : len(tokens)]
    score = float(outputs["scores"][0, 0])
    return Match(
        score=score,
        score_per_word=score / max(int(mask.sum()), 1),
        similarity=outputs["region_word_similarity"][0, : len(boxes), 0, : len(tokens)],
        tokens=tokens,
        word_mask=mask,
        truncated=bool(outputs["truncated"][0, 0]),
        boxes=boxes,
    )


def read_results(outputs: Arrays) -> list[SearchResult]:
    """Every query's results, without the empty places."""
    results = []
    for i, text in enumerate(outputs["report"][:, 0]):
        hits = []
        for j, identifier in enumerate(outputs["ids"][i]):
            if not identifier:
                break
            record = json.loads(outputs["records"][i, j])
            hits.append(
                Hit(
                    id=identifier.decode(),
                    score=float(outputs["scores"][i, j]),
                    score_per_word=float(outputs["scores_per_word"][i, j]),
                    uri=record.get("uri"),
                    text=record.get("text"),
                    metadata=record.get("metadata", {}),
                    matches=record.get("matches", []),
                )
            )
        report = json.loads(text)
        truncated = bool(outputs["truncated"][i, 0]) if "truncated" in outputs else False
        items, pruned, exact = (report[name] for name in ("items", "pruned", "exact"))
        results.append(SearchResult(hits, items, pruned, exact, truncated))
    return results


def stack(sets: Sequence[Floats], name: str, embed_dim: int) -> Floats:
    """Stack embedding sets (L_i, E) to (N, L, E), zero rows for the absent.

    Raises:
        TeranInputError: a set has another shape, or values that are not finite.
    """
    length = max((len(one) for one in sets), default=0)
    result = np.zeros((len(sets), length, embed_dim), np.float32)
    for i, one in enumerate(sets):
        if one.ndim != 2 or one.shape[1] != embed_dim or len(one) == 0:
            raise TeranInputError(f"{name} {i} has shape {one.shape}, expected (rows, {embed_dim})")
        result[i, : len(one)] = one
    if not np.isfinite(result).all():
        raise TeranInputError(f"{name} hold NaN or infinite values")
    return result


def require(outputs: Arrays, *names: str) -> Arrays:
    """Check that a response holds what was asked for.

    Raises:
        TeranServerError: it does not: the server runs something else.
    """
    missing = [name for name in names if name not in outputs]
    if missing:
        raise TeranServerError(f"the server's answer lacks {', '.join(missing)}")
    return outputs
