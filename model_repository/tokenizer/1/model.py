"""The `tokenizer` model: an adapter between Triton and `teran.tokenizer`."""

import json
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from teran.errors import TeranInputError
from teran.serving.metrics import CAPTION_WORD_PIECES, CAPTIONS_TRUNCATED, Recorder
from teran.tokenizer import CaptionTokenizer, Pieces, decode_caption


class TritonPythonModel:
    """Tokenizes all captions of an execution in one call; a bad request fails alone."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        limit = int(parameters["max_word_pieces"]["string_value"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer = CaptionTokenizer(tokenizer, limit)
        self._recorder = Recorder("tokenizer")

    def execute(self, requests: list[Any]) -> list[Any]:
        started = perf_counter()
        captions: list[str] = []
        verbatim: list[bool] = []
        read: list[int | TeranInputError] = []
        for request in requests:
            try:
                texts = _captions(request)
            except TeranInputError as error:
                read.append(error)
                continue
            read.append(len(texts))
            captions += texts
            verbatim += [_is_verbatim(request)] * len(texts)
        split = list(self._tokenizer.split(captions, verbatim))
        rows = iter(split)
        responses = [
            _refuse(count)
            if isinstance(count, TeranInputError)
            else self._answer(request, islice(rows, count))
            for request, count in zip(requests, read, strict=True)
        ]
        pieces = [row for row in split if isinstance(row, Pieces)]
        self._recorder.observe(CAPTION_WORD_PIECES, (len(row.ids) for row in pieces))
        self._recorder.add(CAPTIONS_TRUNCATED, sum(row.truncated for row in pieces))
        refused = sum(response.has_error() for response in responses)
        self._recorder.execution(len(captions), refused, perf_counter() - started)
        return responses

    def _answer(self, request: Any, rows: "islice[Pieces | TeranInputError]") -> Any:
        """One request's response, padded to its own bucket."""
        pieces = []
        for row in list(rows):
            if isinstance(row, TeranInputError):
                return _refuse(row)
            pieces.append(row)
        batch = self._tokenizer.pad(pieces)
        tensors = [
            pb_utils.Tensor("input_ids", batch.input_ids),
            pb_utils.Tensor("attention_mask", batch.attention_mask),
            pb_utils.Tensor("word_mask", batch.word_mask),
            pb_utils.Tensor("tokens", batch.tokens),
            pb_utils.Tensor("truncated", batch.truncated),
        ]
        if passed_on := pb_utils.get_input_tensor_by_name(request, "region_mask"):
            tensors.append(passed_on)
        return pb_utils.InferenceResponse(tensors)


def _captions(request: Any) -> list[str]:
    values = pb_utils.get_input_tensor_by_name(request, "caption").as_numpy().ravel()
    if len(values) == 0:
        raise TeranInputError("the request has no caption")
    return [decode_caption(value) for value in values]


def _is_verbatim(request: Any) -> bool:
    return bool(json.loads(request.parameters() or "{}").get("verbatim", False))


def _refuse(error: TeranInputError) -> Any:
    invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=invalid)
