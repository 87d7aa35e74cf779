"""The ways from an image or a sentence to its embeddings: PyTorch, or a server."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from teran_client import ImageRegions, Match, TeranClient
from torch.nn.utils.rnn import pad_sequence

from teran.errors import CheckpointError, TeranInputError
from teran.evaluation.data import Regions
from teran.model import TeranModel, bundle
from teran.model.config import Pooling
from teran.tokenizer import CaptionTokenizer

Floats = npt.NDArray[np.float32]
_IMAGES, _CAPTIONS = 32, 64
"""Of a batch in PyTorch."""


class Road(Protocol):
    """Encodes images and sentences."""

    name: str
    """What it is called in a report."""
    pooling: Pooling
    fingerprint: str
    """What tells its embeddings from those of others."""

    def images(self, images: Sequence[Regions]) -> list[Floats]:
        """Region embeddings (R, E) of every image."""

    def captions(self, captions: Sequence[str]) -> list[Floats]:
        """Word embeddings (W, E) of every sentence, taken verbatim."""


class ModelRoad:
    """A bundle in PyTorch, in fp32; on a GPU, if there is one."""

    def __init__(self, directory: Path) -> None:
        """Load it.

        Raises:
            CheckpointError: it can't be read, or has no tokenizer.
        """
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = TeranModel.from_pretrained(directory).to(self._device)
        if self._model.tokenizer is None:
            raise CheckpointError(f"{directory} has no tokenizer.json")
        config = self._model.config
        limit = config.text.max_position_embeddings
        self._tokenizer = CaptionTokenizer(self._model.tokenizer, limit)
        self._features = config.feature_dim
        self.name = "PyTorch fp32"
        self.pooling = Pooling(self._model.config.pooling)
        self.fingerprint = bundle.fingerprint(directory)

    @torch.inference_mode()
    def images(self, images: Sequence[Regions]) -> list[Floats]:
        """Region embeddings (R, E) of every image."""

        def encode(places: Sequence[int]) -> list[Floats]:
            batch = [images[i] for i in places]
            for i in places:
                check_width(images[i], self._features)
            features, boxes, mask = (
                pad_sequence(rows, batch_first=True).to(self._device)
                for rows in (
                    [torch.tensor(one.features) for one in batch],
                    [torch.tensor(one.boxes) for one in batch],
                    [torch.ones(len(one), dtype=torch.bool) for one in batch],
                )
            )
            found = self._model.encode_images(features, boxes, mask).cpu().numpy()
            return [rows[: len(one)] for rows, one in zip(found, batch, strict=True)]

        return _by_length([len(one) for one in images], _IMAGES, encode)

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> list[Floats]:
        """Word embeddings (W, E) of every sentence, taken verbatim."""

        def encode(places: Sequence[int]) -> list[Floats]:
            tokens = self._tokenizer.encode([captions[i] for i in places], verbatim=True)
            ids, mask = (
                torch.from_numpy(one).to(self._device)
                for one in (tokens.input_ids, tokens.attention_mask)
            )
            found = self._model.encode_captions(ids, mask).cpu().numpy()
            return [rows[kept] for rows, kept in zip(found, tokens.word_mask > 0, strict=True)]

        return _by_length([len(one) for one in captions], _CAPTIONS, encode)

    @torch.inference_mode()
    def match(self, regions: Regions, caption: str) -> Match:
        """Match an image with a sentence as the server does: closed by a full stop, if it is open.

        Raises:
            TeranInputError: the sentence has no word.
        """
        check_width(regions, self._features)
        tokens = self._tokenizer.encode([caption])
        ids, mask = (
            torch.from_numpy(one).to(self._device)
            for one in (tokens.input_ids, tokens.attention_mask)
        )
        features, boxes = (
            torch.tensor(one)[None].to(self._device) for one in (regions.features, regions.boxes)
        )
        score, cosines = self._model.align_with_matrix(
            self._model.encode_images(features, boxes), self._model.encode_captions(ids, mask)
        )
        words = tokens.word_mask[0] > 0
        return Match(
            score=float(score),
            score_per_word=float(score) / int(words.sum()),
            similarity=cosines[0, 0].cpu().numpy(),
            tokens=tuple(str(token) for token in tokens.tokens[0]),
            word_mask=words,
            truncated=bool(tokens.truncated[0]),
            boxes=regions.boxes,
        )


class ServerRoad:
    """A server, asked over gRPC."""

    def __init__(self, client: TeranClient) -> None:
        """Ask by a client, which stays open.

        Raises:
            TeranInputError: the server does not say how it makes scores.
        """
        self._client, info = client, client.info()
        if info.pooling is None:
            raise TeranInputError(
                "the server's repository does not say how it pools cosines; export it again"
            )
        self._features = info.feature_dim
        self.pooling = Pooling(info.pooling)
        self.name = "server"
        self.fingerprint = self._probe()

    def images(self, images: Sequence[Regions]) -> list[Floats]:
        """Region embeddings (R, E) of every image."""
        return self._client.encode_images([sent(one, f"image {i}") for i, one in enumerate(images)])

    def captions(self, captions: Sequence[str]) -> list[Floats]:
        """Word embeddings (W, E) of every sentence, taken verbatim."""
        encoded = self._client.encode_captions(captions, verbatim=True)
        return [one.word_embeddings[one.word_mask] for one in encoded]

    def _probe(self) -> str:
        """Tell one engine from another by what it makes of the same image and sentence.

        What is served at an address may change, and its precision with it; the bits of an embedding
        then differ.
        """
        generator = np.random.default_rng(0)
        features = generator.random((36, self._features), np.float32)
        boxes = np.tile(np.array([0.1, 0.2, 0.8, 0.9], np.float32), (36, 1))
        image = self._client.encode_images(ImageRegions(features, boxes, "probe"))
        words = self._client.encode_captions("a dog runs on the beach .", verbatim=True)
        return sha256(image.tobytes() + words.word_embeddings.tobytes()).hexdigest()


def check_width(regions: Regions, wanted: int) -> None:
    """Make sure that a model takes an image's features.

    Raises:
        TeranInputError: it takes others.
    """
    if regions.features.shape[1] != wanted:
        raise TeranInputError(
            f"features have {regions.features.shape[1]} values, the model takes {wanted}"
        )


def sent(regions: Regions, name: str) -> ImageRegions:
    """Regions as the client sends them."""
    return ImageRegions(regions.features, regions.boxes, name)


def _by_length(
    lengths: Sequence[int], most: int, encode: Callable[[Sequence[int]], list[Floats]]
) -> list[Floats]:
    """Encode items in batches of about the same length, by their places."""
    result: dict[int, Floats] = {}
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for first in range(0, len(order), most):
        places = order[first : first + most]
        result |= zip(places, encode(places), strict=True)
    return [result[i] for i in range(len(lengths))]
