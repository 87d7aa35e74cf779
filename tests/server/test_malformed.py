"""Whatever a client sends, it gets an error that says why, and the next request works."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from teran_client import TeranClient, TeranInputError
from tritonclient.utils import InferenceServerException

from teran.cli.background import BackgroundServer
from tests.conftest import TINY

F, E = TINY.feature_dim, TINY.embed_dim
Tensors = dict[str, np.ndarray]


def caption(value: object) -> Tensors:
    return {"caption": np.array([[value]], np.object_)}


def picture(regions: int = 2, **changes: np.ndarray) -> Tensors:
    return {
        "region_features": np.ones((1, regions, F), np.float32),
        "boxes": np.ones((1, regions, 4), np.float32),
        "region_mask": np.ones((1, regions), np.bool_),
        **changes,
    }


def words(length: int = 5, **changes: np.ndarray) -> Tensors:
    return {
        "input_ids": np.ones((1, length), np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "word_mask": np.ones((1, length), np.bool_),
        **changes,
    }


def sets(images: int, regions: int, captions: int, length: int, dim: int = E) -> Tensors:
    return {
        "region_embeddings": np.ones((images, regions, dim), np.float32),
        "word_embeddings": np.ones((captions, length, dim), np.float32),
    }


nan = np.full((1, 2, F), np.nan, np.float32)
CASES: dict[str, tuple[str, Tensors, str]] = {
    "empty caption": ("encode_caption", caption(b""), "empty"),
    "blank caption": ("encode_caption", caption(b"  \n"), "empty"),
    "no word": ("encode_caption", caption(b"."), "no word to align"),
    "invalid UTF-8": ("encode_caption", caption(b"\xff\xfe\xfd"), "UTF-8"),
    "10 MB caption": ("encode_caption", caption(b"dog " * 2_500_000), "10000000 bytes"),
    "caption of numbers": ("encode_caption", {"caption": np.ones((1, 1), np.float32)}, "data-type"),
    "caption of rank 3": (
        "encode_caption", {"caption": np.array([[[b"a dog"]]], np.object_)}, "shape",
    ),
    "wrong name": ("encode_caption", {"text": np.array([[b"a dog"]], np.object_)}, "text"),
    "no input": ("encode_caption", {}, "input"),
    "too many captions": (
        "encode_caption", {"caption": np.array([[b"a dog"]] * 100, np.object_)}, "batch",
    ),
    "no region": ("visual_encoder", picture(0), "empty shape"),
    "too many regions": ("visual_encoder", picture(500), "500 regions; at most 128"),
    "NaN feature": ("visual_encoder", picture(region_features=nan), "NaN"),
    "infinite box": (
        "visual_encoder", picture(boxes=np.full((1, 2, 4), np.inf, np.float32)), "infinite",
    ),
    "wrong feature size": (
        "visual_encoder", picture(region_features=np.ones((1, 2, F + 1), np.float32)), "shape",
    ),
    "wrong dtype": (
        "visual_encoder", picture(region_features=np.ones((1, 2, F), np.float64)), "data-type",
    ),
    "boxes that do not pair up": (
        "visual_encoder", picture(boxes=np.ones((1, 3, 4), np.float32)), "number of regions",
    ),
    "missing mask": (
        "visual_encoder", {k: v for k, v in picture().items() if k != "region_mask"}, "expected 3",
    ),
    "unknown id": ("textual_encoder", words(input_ids=np.full((1, 5), 10**9)), "within 0 and 59"),
    "negative id": ("textual_encoder", words(input_ids=np.full((1, 5), -1)), "within 0 and 59"),
    "too many words": ("textual_encoder", words(500), "500 words; at most 96"),
    "no words": ("textual_encoder", words(0), "empty shape"),
    "wrong embedding size": ("alignment", sets(1, 2, 1, 3, dim=E + 1), "shape"),
    "no caption": ("alignment", sets(1, 2, 0, 3), "empty shape"),
    "too many pairs": ("alignment", sets(900, 100, 900, 90), "at once"),
    "match without words": ("match", {**picture(), **caption(b".")}, "no word to align"),
    "match with NaN": ("match", {**picture(region_features=nan), **caption(b"a dog")}, "NaN"),
    "mask alone": ("tokenizer", {"region_mask": np.ones((1, 3), np.bool_)}, "no caption"),
    "unknown model": ("nothing", caption(b"a dog"), "unknown model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(server: BackgroundServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url) as connection:
        yield connection


def infer(raw: triton.InferenceServerClient, model: str, tensors: Tensors) -> triton.InferResult:
    inputs = []
    for name, value in tensors.items():
        datatype = {"O": "BYTES", "b": "BOOL"}.get(value.dtype.kind)
        datatype = (
            datatype or {"float32": "FP32", "float64": "FP64", "int64": "INT64"}[str(value.dtype)]
        )
        tensor = triton.InferInput(name, list(value.shape), datatype)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return raw.infer(model, inputs, client_timeout=30)


@pytest.mark.parametrize("case", ["match without words", "match with NaN"])
def test_errors_in_an_ensemble_never_hang(raw: triton.InferenceServerClient, case: str) -> None:
    model, tensors, reason = CASES[case]
    for _ in range(200):
        with pytest.raises(InferenceServerException, match=reason):
            infer(raw, model, tensors)


@pytest.mark.parametrize("case", CASES)
def test_error_then_next_request_works(
    raw: triton.InferenceServerClient, client: TeranClient, case: str
) -> None:
    model, tensors, reason = CASES[case]
    with pytest.raises(InferenceServerException, match=reason):
        infer(raw, model, tensors)
    good = infer(raw, "match", {**picture(40), **caption(b"a dog runs")})
    assert np.isfinite(good.as_numpy("scores")).all()
    assert client.encode_captions("a dog").tokens[1] == "a"


def test_a_bad_request_spoils_no_other(
    client: TeranClient, raw: triton.InferenceServerClient
) -> None:
    expected = client.encode_captions("a dog runs").word_embeddings

    def bad(_: int) -> None:
        with pytest.raises(InferenceServerException):
            infer(raw, "encode_caption", caption(b"\xff"))

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(bad, i) for i in range(30)]
        results = [client.encode_captions("a dog runs") for _ in range(60)]
        for job in jobs:
            job.result()
    for result in results:
        np.testing.assert_allclose(result.word_embeddings, expected, atol=1e-5)


def test_edges(raw: triton.InferenceServerClient) -> None:
    hidden = picture(3, region_mask=np.zeros((1, 3), np.bool_))
    assert not infer(raw, "visual_encoder", hidden).as_numpy("region_embeddings").any()
    scores = infer(raw, "alignment", {k: v * 0 for k, v in sets(2, 3, 2, 4).items()})
    assert (scores.as_numpy("scores") == 0).all()
    huge = picture(2, region_features=np.full((1, 2, F), 1e30, np.float32))
    with pytest.raises(InferenceServerException, match="no finite result"):
        infer(raw, "visual_encoder", huge)


def test_many_pairs_at_a_time_are_no_overload(raw: triton.InferenceServerClient) -> None:
    """Triton counts a request to the alignment as one item, however many pairs it has."""
    pairs = {name: np.repeat(value, 4, axis=0) for name, value in picture(40).items()}
    pairs["caption"] = np.array([[b"a dog runs"]] * 4, np.object_)
    for _ in range(100):
        assert infer(raw, "match", pairs).as_numpy("scores").shape == (4, 4)
        time.sleep(0.05)


def test_client_translates_server_errors(client: TeranClient) -> None:
    with pytest.raises(TeranInputError, match="no word to align"):
        client.encode_captions(["a dog", "."])
