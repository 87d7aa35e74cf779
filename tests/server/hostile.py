"""Requests that nobody would send by mistake, and what came of them.

`make hostile` sends ten thousand.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from benchmarks import machine
from teran.contract import pack_texts
from tests.conftest import TINY

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "1500"))
RESULT = os.environ.get("HOSTILE_RESULT")
"""A file for what came of them."""
MODELS = (
    "tokenizer", "textual_encoder", "visual_encoder", "alignment", "gallery", "admission", "stored",
    "encode_caption", "encode_image", "match", "index", "search", "index_captions",
    "search_captions", "change", "nothing",
)  # fmt: skip
TENSORS = (
    "caption", "region_features", "boxes", "region_mask", "input_ids", "attention_mask",
    "word_mask", "region_embeddings", "word_embeddings", "embeddings", "tokens", "record",
    "accepted_at", "ticket",
)  # fmt: skip
TYPES = {
    "BOOL": np.bool_, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64,
}  # fmt: skip
USUAL = {
    "caption": ("BYTES", (1,)), "region_features": ("FP32", (3, TINY.feature_dim)),
    "boxes": ("FP32", (3, 4)), "region_mask": ("BOOL", (3,)), "input_ids": ("INT64", (5,)),
    "attention_mask": ("INT64", (5,)), "word_mask": ("BOOL", (5,)),
    "region_embeddings": ("FP32", (3, TINY.embed_dim)), "embeddings": ("FP32", (3, TINY.embed_dim)),
    "word_embeddings": ("FP32", (5, TINY.embed_dim)), "tokens": ("UINT8", (3, 6)),
    "record": ("UINT8", (40,)), "accepted_at": ("INT64", (1,)), "ticket": ("INT64", (1,)),
}  # fmt: skip
INPUTS = {
    "tokenizer": ("caption",), "encode_caption": ("caption",), "search": ("caption",),
    "textual_encoder": ("input_ids", "attention_mask", "word_mask"),
    "visual_encoder": ("region_features", "boxes", "region_mask"),
    "encode_image": ("region_features", "boxes", "region_mask"),
    "search_captions": ("region_features", "boxes", "region_mask"),
    "index": ("region_features", "boxes", "region_mask", "record"),
    "index_captions": ("caption", "record"), "change": ("record",), "stored": ("ticket",),
    "admission": ("region_mask",), "gallery": ("embeddings", "record", "tokens", "boxes"),
    "alignment": ("region_embeddings", "word_embeddings"),
    "match": ("caption", "region_features", "boxes", "region_mask"),
}  # fmt: skip
OF_STRINGS = ("tokenizer", "encode_caption", "search", "index_captions", "match")
TEXT = st.text(max_size=40) | st.sampled_from(
    ["", ".", "a dog runs", "\x00", "\x1b[31m", "../../etc/passwd", "a" * 100_000, "😀‍😀", "‮"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.one_of(
    JSON.map(json.dumps),
    st.fixed_dictionaries({"id": TEXT, "metadata": JSON, "uri": TEXT}).map(json.dumps),
    TEXT,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
BYTES = TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=30)
OPERATIONS = (
    "search", "like", "upsert", "delete", "get", "known", "info", "alias", "unalias", "drop",
    "snapshot", "restore", "job", "ping", "",
)  # fmt: skip
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 1200)
PARAMETERS: dict[str, Any] = {
    "operation": st.sampled_from(OPERATIONS) | TEXT,
    "gallery": st.sampled_from(["new", "a b", ".."]) | TEXT,
    "k": NUMBERS, "where": JSON.map(json.dumps) | TEXT, "min_score_per_word": st.floats(),
    "explain": st.booleans(), "exact": st.booleans(), "verbatim": st.booleans(), "bulk": TEXT,
    "alias": TEXT, "snapshot": TEXT, "job": NUMBERS, "timeout": NUMBERS, "priority": NUMBERS,
    "sequence_id": NUMBERS, "shared_memory_region": TEXT,
}  # fmt: skip
VALUES = (0.0, 1.0, -1.0, 1e30, float("nan"), float("inf"), 7e37)


def packed(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


TRITON_S = {"timeout", "priority", "sequence_id", "shared_memory_region"}
"""Parameters that Triton reads itself, and refuses where it does not like them."""
OWN = sorted(set(PARAMETERS) - TRITON_S)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Sometimes nearly right, sometimes nothing like it."""
    dice = draw(st.randoms(use_true_random=True))

    def rarely(times: int = 8) -> bool:
        return dice.random() < 1 / times  # hypothesis itself would not let it be rare

    model = dice.choice(MODELS)
    request = pb.ModelInferRequest(model_name=model, id=draw(TEXT) if rarely(4) else "")
    names = INPUTS.get(model, ())
    if model == "gallery":
        names = tuple(name for name in names if rarely(2))
    if rarely():
        names = tuple(draw(st.lists(st.sampled_from(TENSORS), max_size=4)))
    batch = dice.randint(1, 3)
    for name in names:
        datatype, shape = USUAL[name]
        dims = [batch, *shape]
        if rarely(20):
            dims = draw(st.lists(st.integers(-1, 9), max_size=4))
        if rarely(20):
            datatype = draw(st.sampled_from([*TYPES, "BYTES", "UINT8", "", "NONSENSE"]))
        request.inputs.add(name=name, datatype=datatype, shape=dims)
        count = int(np.prod([max(0, one) for one in dims])) if dims else 1
        if name == "record" and datatype == "UINT8" and not rarely(20):
            rows = pack_texts([draw(RECORDS) for _ in range(batch)])
            request.inputs[-1].shape[:] = rows.shape
            data = rows.tobytes()
        elif datatype == "BYTES":
            data = packed([draw(BYTES) for _ in range(min(count, 12))])
        elif datatype == "UINT8":
            data = draw(st.binary(min_size=count, max_size=count))
        elif "embeddings" in name and datatype == "FP32" and draw(st.booleans()):
            rows = np.zeros(count, np.float32)
            rows[:: TINY.embed_dim] = 1  # normalised
            data = rows.tobytes()
        else:
            filling = draw(st.sampled_from(VALUES)) if rarely(4) else 1.0
            with np.errstate(all="ignore"):
                data = np.full(count, filling).astype(TYPES.get(datatype, np.uint8)).tobytes()
        if rarely(20):
            data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
        request.raw_input_contents.append(data)
    chosen = draw(st.lists(st.sampled_from(OWN), max_size=dice.choice([0, 0, 1, 3]), unique=True))
    if rarely(20):
        chosen += draw(st.lists(st.sampled_from(sorted(TRITON_S)), max_size=2, unique=True))
    for name in chosen:
        value = draw(PARAMETERS[name])
        if rarely():
            value = draw(st.booleans() | NUMBERS | st.floats() | TEXT)
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        try:
            setattr(request.parameters[name], kind[type(value)], value)
        except ValueError:  # a surrogate, which the wire can't carry
            del request.parameters[name]
    if rarely():
        for name in draw(st.lists(st.sampled_from(["report", "ids", "ticket", *TENSORS]))):
            request.outputs.add(name=name)
    return request


def note(protocol: str, told: dict[str, int], **more: float) -> None:
    """Print what came of it, and add it to the file of results where there is to be one."""
    found = {"requests": sum(told.values()), "answers": told, **more}
    print(protocol, found)
    if RESULT:
        file = Path(RESULT)
        before = json.loads(file.read_text())["results"] if file.exists() else {}
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make hostile",
            "machine": machine.describe(),
            "results": {**before, protocol: found},
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
