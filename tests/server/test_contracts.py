"""Names, shapes and types of every model, as other clients rely on them."""

from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from teran_client import TeranClient
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from teran.cli.background import BackgroundServer

E, F = 16, 24
Tensors = dict[str, tuple[str, list[int]]]
FOUND: Tensors = {
    "ids": ("BYTES", [-1, -1]),
    "scores": ("FP32", [-1, -1]),
    "scores_per_word": ("FP32", [-1, -1]),
    "records": ("BYTES", [-1, -1]),
}
CONTRACTS: dict[str, tuple[Tensors, Tensors]] = {
    "tokenizer": (
        {
            "caption": ("BYTES", [-1, 1]),
            "region_mask": ("BOOL", [-1, -1]),
            "photo": ("UINT8", [-1, -1]),
        },
        {
            "region_mask": ("BOOL", [-1, -1]),
            "photo": ("UINT8", [-1, -1]),
            "input_ids": ("INT64", [-1, -1]),
            "attention_mask": ("INT64", [-1, -1]),
            "word_mask": ("BOOL", [-1, -1]),
            "tokens": ("BYTES", [-1, -1]),
            "token_bytes": ("UINT8", [-1, -1, -1]),
            "truncated": ("BOOL", [-1, 1]),
            "accepted_at": ("INT64", [-1, 1]),
        },
    ),
    "visual_encoder": (
        {
            "region_features": ("FP32", [-1, -1, F]),
            "boxes": ("FP32", [-1, -1, 4]),
            "region_mask": ("BOOL", [-1, -1]),
        },
        {"region_embeddings": ("FP32", [-1, -1, E])},
    ),
    "textual_encoder": (
        {
            "input_ids": ("INT64", [-1, -1]),
            "attention_mask": ("INT64", [-1, -1]),
            "word_mask": ("BOOL", [-1, -1]),
        },
        {"word_embeddings": ("FP32", [-1, -1, E])},
    ),
    "alignment": (
        {"region_embeddings": ("FP32", [-1, -1, E]), "word_embeddings": ("FP32", [-1, -1, E])},
        {"scores": ("FP32", [-1, -1]), "region_word_similarity": ("FP32", [-1, -1, -1, -1])},
    ),
    "encode_caption": (
        {"caption": ("BYTES", [-1, 1])},
        {
            "word_embeddings": ("FP32", [-1, -1, E]),
            "word_mask": ("BOOL", [-1, -1]),
            "tokens": ("BYTES", [-1, -1]),
            "truncated": ("BOOL", [-1, 1]),
        },
    ),
    "encode_image": (
        {
            "region_features": ("FP32", [-1, -1, F]),
            "boxes": ("FP32", [-1, -1, 4]),
            "region_mask": ("BOOL", [-1, -1]),
        },
        {"region_embeddings": ("FP32", [-1, -1, E])},
    ),
    "match": (
        {
            "caption": ("BYTES", [-1, 1]),
            "region_features": ("FP32", [-1, -1, F]),
            "boxes": ("FP32", [-1, -1, 4]),
            "region_mask": ("BOOL", [-1, -1]),
        },
        {
            "scores": ("FP32", [-1, -1]),
            "region_word_similarity": ("FP32", [-1, -1, -1, -1]),
            "word_mask": ("BOOL", [-1, -1]),
            "tokens": ("BYTES", [-1, -1]),
            "truncated": ("BOOL", [-1, 1]),
        },
    ),
    "gallery": (
        {
            "embeddings": ("FP32", [-1, -1, E]),
            "boxes": ("FP32", [-1, -1, 4]),
            "tokens": ("UINT8", [-1, -1, -1]),
            "record": ("UINT8", [-1, -1]),
            "accepted_at": ("INT64", [-1, 1]),
        },
        {**FOUND, "report": ("BYTES", [-1, 1]), "ticket": ("INT64", [-1, 1])},
    ),
    "search": (
        {"caption": ("BYTES", [-1, 1])},
        {**FOUND, "report": ("BYTES", [-1, 1]), "truncated": ("BOOL", [-1, 1])},
    ),
    "index": (
        {
            "region_features": ("FP32", [-1, -1, F]),
            "boxes": ("FP32", [-1, -1, 4]),
            "region_mask": ("BOOL", [-1, -1]),
            "record": ("UINT8", [-1, -1]),
        },
        {"report": ("BYTES", [-1, 1])},
    ),
    "index_captions": (
        {"caption": ("BYTES", [-1, 1]), "record": ("UINT8", [-1, -1])},
        {"report": ("BYTES", [-1, 1]), "truncated": ("BOOL", [-1, 1])},
    ),
    "change": ({"record": ("UINT8", [-1, -1])}, {"report": ("BYTES", [-1, 1])}),
}


def tensors(entries: Any) -> Tensors:
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in entries}


@pytest.mark.parametrize("model", CONTRACTS)
def test_contract(server: BackgroundServer, model: str) -> None:
    metadata = triton.InferenceServerClient(server.url).get_model_metadata(model)
    assert (tensors(metadata.inputs), tensors(metadata.outputs)) == CONTRACTS[model]


def test_encoders_batch_dynamically_and_are_warmed_up(server: BackgroundServer) -> None:
    connection = triton.InferenceServerClient(server.url)
    for model in ("tokenizer", "visual_encoder", "textual_encoder"):
        config = connection.get_model_config(model).config
        assert config.HasField("dynamic_batching") is (model != "tokenizer")
        assert len(config.model_warmup) >= 2


def test_what_takes_strings_does_not_batch(server: BackgroundServer, repository: Path) -> None:
    """Triton fails all requests of an execution in which one has a string that can't be read."""
    connection = triton.InferenceServerClient(server.url)
    models = [path.parent.name for path in repository.glob("*/config.pbtxt")]
    configs = [connection.get_model_config(model).config for model in models]
    takers = [
        config
        for config in configs
        if not config.HasField("ensemble_scheduling")
        and any(tensor.data_type == DataType.TYPE_STRING for tensor in config.input)
    ]
    assert [config.name for config in takers] == ["tokenizer"]
    assert not any(config.HasField("dynamic_batching") for config in takers)


def test_client_reads_the_limits(client: TeranClient) -> None:
    info = client.info()
    assert (info.feature_dim, info.embed_dim) == (F, E)
    assert (info.max_images, info.max_captions, info.max_regions) == (32, 64, 128)
    assert (info.bulk_images, info.bulk_captions) == (4, 2)
    assert client.is_ready()


def test_every_ensemble_begins_with_one_step(server: BackgroundServer) -> None:
    """Triton deadlocks where one of several first steps fails at once."""
    connection = triton.InferenceServerClient(server.url)
    for model in ("encode_caption", "match"):
        config = connection.get_model_config(model).config
        given = {tensor.name for tensor in config.input}
        steps = config.ensemble_scheduling.step
        first = [step.model_name for step in steps if set(step.input_map.values()) <= given]
        assert first == ["tokenizer"], model


def test_no_ensemble_runs_two_steps_at_once(repository: Path) -> None:
    """Triton never lets go of a request one of whose steps fails while another runs."""
    for path in repository.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        known = {one.name for one in config.input}
        waiting = list(config.ensemble_scheduling.step)
        while waiting:
            ready = [step for step in waiting if set(step.input_map.values()) <= known]
            assert len(ready) == 1, (path.parent.name, [step.model_name for step in ready])
            known |= set(ready[0].output_map.values())
            waiting.remove(ready[0])
