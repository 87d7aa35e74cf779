"""The `tokenizer` model: an adapter between Triton and `teran.tokenizer`."""

import json
from itertools import islice
from pathlib import Path
from time import monotonic_ns, perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from teran.commandline import from_environment
from teran.errors import TeranError, TeranInputError
from teran.runtime.admission import Door
from teran.runtime.metrics import CAPTION_WORD_PIECES, CAPTIONS_TRUNCATED, Recorder
from teran.runtime.request import parameters_of
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response
from teran.runtime.settings import RequestLimits
from teran.tokenizer import CaptionTokenizer, Pieces, decode_caption


class TritonPythonModel:
    """Tokenizes all captions of an execution in one call; a bad request fails alone."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        limit = int(parameters["max_word_pieces"]["string_value"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer = CaptionTokenizer(tokenizer, limit)
        self._most_bytes = from_environment(RequestLimits).max_caption_bytes
        self._door = Door("tokenizer")
        self._recorder, self._log = Recorder("tokenizer"), RequestLog("tokenizer")

    def execute(self, requests: list[Any]) -> list[Any]:
        started, accepted_at = perf_counter(), monotonic_ns()
        captions: list[str] = []
        verbatim: list[bool] = []
        read: list[int | TeranError] = []
        for request in requests:
            try:
                texts, parameters = _captions(request, self._most_bytes), parameters_of(request)
                self._door.admit(request, parameters, len(texts), _needed(request))
            except TeranError as error:
                read.append(error)
                continue
            read.append(len(texts))
            captions += texts
            verbatim += [bool(parameters.get("verbatim", False))] * len(texts)
        split = list(self._tokenizer.split(captions, verbatim))
        rows = iter(split)
        answers = [
            count
            if isinstance(count, TeranError)
            else self._answer(request, list(islice(rows, count)), accepted_at)
            for request, count in zip(requests, read, strict=True)
        ]
        pieces = [row for row in split if isinstance(row, Pieces)]
        self._recorder.observe(CAPTION_WORD_PIECES, (len(row.ids) for row in pieces))
        self._recorder.add(CAPTIONS_TRUNCATED, sum(row.truncated for row in pieces))
        errors = [answer if isinstance(answer, TeranError) else None for answer in answers]
        seconds = perf_counter() - started
        self._recorder.execution(len(captions), errors, seconds)
        for request, error in zip(requests, errors, strict=True):
            self._log.request(request, seconds, error)
        return [error_response(one) if isinstance(one, TeranError) else one for one in answers]

    def _answer(self, request: Any, rows: list[Pieces | TeranInputError], accepted_at: int) -> Any:
        """One request's response, padded to its own bucket, or why there is none."""
        pieces = []
        for row in rows:
            if isinstance(row, TeranInputError):
                self._door.count(_needed(request), -len(rows))
                return row
            pieces.append(row)
        batch = self._tokenizer.pad(pieces)
        tensors = [
            pb_utils.Tensor("input_ids", batch.input_ids),
            pb_utils.Tensor("attention_mask", batch.attention_mask),
            pb_utils.Tensor("word_mask", batch.word_mask),
            pb_utils.Tensor("tokens", batch.tokens),
            pb_utils.Tensor("truncated", batch.truncated),
            pb_utils.Tensor("accepted_at", np.full((len(pieces), 1), accepted_at)),
        ]
        if passed_on := pb_utils.get_input_tensor_by_name(request, "region_mask"):
            tensors.append(passed_on)
        return pb_utils.InferenceResponse(tensors)


def _captions(request: Any, most_bytes: int) -> list[str]:
    values = pb_utils.get_input_tensor_by_name(request, "caption").as_numpy().ravel()
    if len(values) == 0:
        raise TeranInputError("the request has no caption")
    return [decode_caption(value, most_bytes) for value in values]


def _needed(request: Any) -> list[str]:
    """The models that come after this one in the request's ensemble, by what they need of it."""
    wanted = request.requested_output_names()
    if "input_ids" not in wanted:
        return []
    images = ["visual_encoder", "alignment"] if "region_mask" in wanted else []
    return ["textual_encoder", *images, *(["gallery"] if "accepted_at" in wanted else [])]
