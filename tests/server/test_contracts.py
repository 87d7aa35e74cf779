"""Names, shapes and types of every model, as other clients rely on them."""

from typing import Any

import pytest
import tritonclient.grpc as triton
from teran_client import TeranClient

from teran.cli.background import BackgroundServer

E, F = 16, 24
CONTRACTS: dict[str, tuple[dict[str, tuple[str, list[int]]], dict[str, tuple[str, list[int]]]]] = {
    "tokenizer": (
        {"caption": ("BYTES", [-1, 1]), "region_mask": ("BOOL", [-1, -1])},
        {
            "region_mask": ("BOOL", [-1, -1]),
            "input_ids": ("INT64", [-1, -1]),
            "attention_mask": ("INT64", [-1, -1]),
            "word_mask": ("BOOL", [-1, -1]),
            "tokens": ("BYTES", [-1, -1]),
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
}


def tensors(entries: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in entries}


@pytest.mark.parametrize("model", CONTRACTS)
def test_contract(server: BackgroundServer, model: str) -> None:
    metadata = triton.InferenceServerClient(server.url).get_model_metadata(model)
    assert (tensors(metadata.inputs), tensors(metadata.outputs)) == CONTRACTS[model]


def test_encoders_batch_dynamically_and_are_warmed_up(server: BackgroundServer) -> None:
    connection = triton.InferenceServerClient(server.url)
    for model in ("tokenizer", "visual_encoder", "textual_encoder"):
        config = connection.get_model_config(model).config
        assert config.HasField("dynamic_batching")
        assert len(config.model_warmup) >= 2


def test_client_reads_the_limits(client: TeranClient) -> None:
    info = client.info()
    assert (info.feature_dim, info.embed_dim) == (F, E)
    assert (info.max_images, info.max_captions, info.max_regions) == (32, 64, 128)
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
