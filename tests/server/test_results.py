"""What the server answers equals the same model in PyTorch, whatever else is going on."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from teran_client import (
    AsyncTeranClient,
    EncodedCaption,
    ImageRegions,
    TeranClient,
    TeranError,
    TeranInputError,
)
from tritonclient.grpc import service_pb2

from teran.cli.background import BackgroundServer
from teran.model import TeranModel
from teran.tokenizer import CaptionTokenizer
from tests.data import captions, images
from tests.server.test_supervision import model_process


@torch.inference_mode()
def torch_image(model: TeranModel, image: ImageRegions) -> np.ndarray:
    features, boxes = torch.from_numpy(image.features), torch.from_numpy(image.boxes)
    return model.encode_images(features[None], boxes[None])[0].numpy()


@torch.inference_mode()
def torch_caption(model: TeranModel, caption: str, verbatim: bool = False) -> np.ndarray:
    assert model.tokenizer is not None
    batch = CaptionTokenizer(model.tokenizer).encode([caption], verbatim)
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    return model.encode_captions(ids, mask)[0, : int(mask.sum())].numpy()


def test_images_of_any_size(client: TeranClient, tiny_model: TeranModel) -> None:
    sent = images(70, longest=100)
    for image, embeddings in zip(sent, client.encode_images(sent), strict=True):
        np.testing.assert_allclose(embeddings, torch_image(tiny_model, image), atol=1e-4)


def test_captions_of_any_length(client: TeranClient, tiny_model: TeranModel) -> None:
    sent = captions(150, longest=90)
    for caption, encoded in zip(sent, client.encode_captions(sent), strict=True):
        assert encoded.caption == caption
        expected = torch_caption(tiny_model, caption)
        np.testing.assert_allclose(encoded.word_embeddings, expected, atol=1e-4)
        assert encoded.word_mask.sum() == len(encoded.tokens) - 3


def test_one_item_a_list_and_a_generator_agree(client: TeranClient) -> None:
    sent = captions(5)
    listed = client.encode_captions(sent)
    assert isinstance(listed, list)
    for one, streamed in zip(listed, client.encode_captions(c for c in sent), strict=True):
        alone = client.encode_captions(one.caption)
        assert isinstance(alone, EncodedCaption)
        np.testing.assert_allclose(alone.word_embeddings, one.word_embeddings, atol=1e-5)
        np.testing.assert_allclose(streamed.word_embeddings, one.word_embeddings, atol=1e-5)
    assert client.encode_captions([]) == []


def test_truncation_and_verbatim(client: TeranClient, tiny_model: TeranModel) -> None:
    long = client.encode_captions("dog " * 300)
    assert long.truncated
    assert len(long.tokens) == 96
    assert not client.encode_captions("dog " * 92).truncated
    assert client.encode_captions("a dog").tokens == ("[CLS]", "a", "dog", ".", "[SEP]")
    verbatim = client.encode_captions("a dog", verbatim=True)
    assert verbatim.tokens == ("[CLS]", "a", "dog", "[SEP]")
    expected = torch_caption(tiny_model, "a dog", verbatim=True)
    np.testing.assert_allclose(verbatim.word_embeddings, expected, atol=1e-4)


@torch.inference_mode()
def test_scores_match_and_rank_agree(client: TeranClient, tiny_model: TeranModel) -> None:
    photos, sentences = images(9), captions(4)
    scores = client.score(photos, sentences)
    for i, photo in enumerate(photos):
        for j, sentence in enumerate(sentences):
            regions = torch.from_numpy(torch_image(tiny_model, photo))[None]
            words = torch.from_numpy(torch_caption(tiny_model, sentence))[None]
            assert scores[i, j] == pytest.approx(float(tiny_model.align(regions, words)), abs=1e-4)
    match = client.match(photos[2], sentences[1])
    assert match.score == pytest.approx(scores[2, 1], abs=1e-4)
    assert match.similarity.shape == (len(photos[2]), len(match.tokens))
    if len(photos[2]) >= 36:
        best = [cosine for _, _, cosine in match.best_regions()]
        assert sum(best) == pytest.approx(match.score, abs=1e-3)
    ranking = client.rank(sentences[3], photos, k=5)
    assert [entry.index for entry in ranking] == np.argsort(-scores[:, 3])[:5].tolist()
    assert [entry.name for entry in ranking] == [f"image-{entry.index}" for entry in ranking]
    encoded = client.encode_images(photos)
    again = client.rank(client.encode_captions(sentences[3]), encoded, k=5)
    assert [entry.index for entry in again] == [entry.index for entry in ranking]


def test_concurrent_clients_get_their_own_results(
    server: BackgroundServer, tiny_model: TeranModel
) -> None:
    def work(seed: int) -> None:
        photos, sentences = images(12, seed), captions(12, seed)
        with TeranClient(server.url, batch_size=3) as own:
            encoded = own.encode_images(photos)
            words = own.encode_captions(sentences)
            matches = [own.match(p, s) for p, s in zip(photos[:4], sentences[:4], strict=True)]
        for photo, embeddings in zip(photos, encoded, strict=True):
            np.testing.assert_allclose(embeddings, torch_image(tiny_model, photo), atol=1e-4)
        for sentence, one in zip(sentences, words, strict=True):
            expected = torch_caption(tiny_model, sentence)
            np.testing.assert_allclose(one.word_embeddings, expected, atol=1e-4)
        for i, match in enumerate(matches):
            expected_matrix = encoded[i] @ words[i].word_embeddings.T
            np.testing.assert_allclose(match.similarity, expected_matrix, atol=1e-3)

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(work, seed) for seed in range(6)]:
            result.result()


def test_requests_form_batches(server: BackgroundServer) -> None:
    async def run() -> tuple[int, int]:
        async with AsyncTeranClient(server.url) as client:

            async def statistics() -> tuple[int, int]:
                request = service_pb2.ModelStatisticsRequest(name="textual_encoder")
                (stats,) = (await client._channel.call("ModelStatistics", request)).model_stats
                return stats.inference_count, stats.execution_count

            before = await statistics()
            # Few enough that none is refused, however slow the encoder seems to be.
            calls = [client.encode_captions("a dog runs") for _ in range(8)]
            encoder = model_process(server, "textual_encoder")
            encoder.suspend()  # it may be faster than requests come
            try:
                answers = asyncio.gather(*calls)
                await asyncio.sleep(0.3)
            finally:
                encoder.resume()
            await answers
            while (after := await statistics())[0] < before[0] + 8:  # Triton answers, then counts
                await asyncio.sleep(0.01)
        return after[0] - before[0], after[1] - before[1]

    inferences, executions = asyncio.run(asyncio.wait_for(run(), timeout=60))
    assert inferences <= 12  # the supervisor's canaries count too
    assert executions < 6


def test_many_items_go_in_small_requests(server: BackgroundServer) -> None:
    """Others need not wait for all of them."""

    async def requests(count: int, batch_size: int | None) -> int:
        async with AsyncTeranClient(server.url, batch_size=batch_size) as client:

            async def done() -> int:
                return (await client._channel.statistics())["encode_caption"][0]

            before = await done()
            await client.encode_captions(captions(count))
            while (after := await done()) == before:  # Triton answers, then counts
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            after = await done()
        return after - before

    assert asyncio.run(requests(20, None)) == 10
    assert asyncio.run(requests(8, None)) == 1, "somebody waits for these few"
    assert asyncio.run(requests(20, 20)) == 1


def test_profile_accounts_for_the_time(client: TeranClient) -> None:
    profile = client.profile("a dog runs", images(1)[0], calls=20)
    encoders = {"textual_encoder", "visual_encoder"}
    assert set(profile.models) == {"tokenizer", "admission", *encoders, "alignment"}
    assert 0 < profile.client < profile.total
    assert all(compute > 0 for _, compute in profile.models.values())
    assert "textual_encoder: queue" in str(profile)


def test_a_closed_client_says_so(server: BackgroundServer) -> None:
    client = TeranClient(server.url)
    stream = client.encode_captions(iter(captions(500)))
    next(stream)
    client.close()
    client.close()
    with pytest.raises(TeranError, match="closed"):
        client.encode_captions("a dog")
    with pytest.raises(TeranError, match="closed"):
        next(stream)


def test_closing_ends_the_calls_of_other_threads() -> None:
    client = TeranClient("127.0.0.1:9", retries=10**6, timeout=600)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode_captions, "a dog")
        time.sleep(0.5)
        client.close()
        with pytest.raises(TeranError, match="closed"):
            call.result(10)


def test_wrong_items_are_named_before_anything_is_sent(client: TeranClient) -> None:
    with pytest.raises(TeranInputError, match="image 1 is int"):
        client.score([images(1)[0], 7], ["a dog"])  # type: ignore[list-item]
    with pytest.raises(TeranInputError, match=r"there is no photo 'photo\.jpg'"):
        client.score([images(1)[0], "photo.jpg"], ["a dog"])
    with pytest.raises(TeranInputError, match="captions is one string"):
        client.score(images(1), "a dog")
    with pytest.raises(TeranInputError, match="k is 0"):
        client.rank("a dog", images(1), k=0)
