"""The `tokenizer` model: an adapter between Triton and `teran.tokenizer`."""

import json
from pathlib import Path
from time import monotonic_ns, perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from teran.commandline import from_environment
from teran.contract import pack_texts
from teran.errors import TeranError, TeranInputError
from teran.runtime.admission import Desk, Door, warm_ups
from teran.runtime.metrics import CAPTION_WORD_PIECES, CAPTIONS_TRUNCATED, Recorder
from teran.runtime.request import parameters_of
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response
from teran.runtime.settings import RequestLimits
from teran.tokenizer import CaptionTokenizer, TokenBatch, decode_caption

_PASSED_ON = ("region_mask", "photo")


class TritonPythonModel:
    """Tokenizes all captions of a request in one call."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        limit = int(config["parameters"]["max_word_pieces"]["string_value"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer = CaptionTokenizer(tokenizer, limit)
        self._most_bytes = from_environment(RequestLimits).max_caption_bytes
        self._desk = Desk("tokenizer", warm_ups(config))
        self._door = Door("tokenizer", warm_ups(config))
        self._recorder, self._log = Recorder("tokenizer"), RequestLog("tokenizer")

    def execute(self, requests: list[Any]) -> list[Any]:
        verdicts = self._desk.sort(requests)
        responses = [self._respond(*one) for one in zip(requests, verdicts, strict=True)]
        self._desk.clear(())  # what failed was counted out again
        return responses

    def _respond(self, request: Any, verdict: TeranError | None) -> Any:
        started, accepted_at = perf_counter(), monotonic_ns()
        error: TeranError | None = None
        batch: TokenBatch | None = None
        try:
            if verdict:
                raise verdict
            batch = self._tokenize(request)
            response = _response(request, batch, accepted_at)
        except TeranError as caught:
            error, response = caught, error_response(caught)
        if batch:
            self._recorder.observe(CAPTION_WORD_PIECES, batch.attention_mask.sum(axis=1))
            self._recorder.add(CAPTIONS_TRUNCATED, int(batch.truncated.sum()))
        seconds = perf_counter() - started
        self._recorder.execution(len(batch.tokens) if batch else 0, [error], seconds)
        self._log.request(request, seconds, error)
        return response

    def _tokenize(self, request: Any) -> TokenBatch:
        captions, parameters = _captions(request, self._most_bytes), parameters_of(request)
        needed = _needed(request)
        self._door.admit(request, parameters, len(captions), needed)
        try:
            return self._tokenizer.encode(captions, bool(parameters.get("verbatim", False)))
        except TeranError:
            self._door.count(needed, -len(captions))
            raise


def _response(request: Any, batch: TokenBatch, accepted_at: int) -> Any:
    tensors = [
        pb_utils.Tensor("input_ids", batch.input_ids),
        pb_utils.Tensor("attention_mask", batch.attention_mask),
        pb_utils.Tensor("word_mask", batch.word_mask),
        pb_utils.Tensor("truncated", batch.truncated),
        pb_utils.Tensor("accepted_at", np.full((len(batch.tokens), 1), accepted_at)),
    ]
    wanted = request.requested_output_names()
    if "tokens" in wanted:
        tensors.append(pb_utils.Tensor("tokens", batch.tokens))
    if "token_bytes" in wanted:
        packed = pack_texts([token.encode() for token in batch.tokens.flat])
        packed = packed.reshape(*batch.tokens.shape, -1)
        tensors.append(pb_utils.Tensor("token_bytes", packed))
    passed_on = (pb_utils.get_input_tensor_by_name(request, name) for name in _PASSED_ON)
    tensors += [tensor for tensor in passed_on if tensor is not None]
    return pb_utils.InferenceResponse(tensors)


def _captions(request: Any, most_bytes: int) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, "caption")
    values = () if tensor is None else tensor.as_numpy().ravel()  # Triton counts inputs only
    if len(values) == 0:
        raise TeranInputError("the request has no caption")
    return [decode_caption(value, most_bytes) for value in values]


def _needed(request: Any) -> list[str]:
    """The models that come after this one in the request's ensemble, by what they need of it."""
    wanted = request.requested_output_names()
    if "input_ids" not in wanted:
        return []
    photos = ["proposal_network", "region_network"] if "photo" in wanted else []
    has_image = photos or "region_mask" in wanted
    images = ["visual_encoder", "alignment"] if has_image else []
    searched = ["gallery"] if "accepted_at" in wanted else []
    return ["textual_encoder", *photos, *images, *searched]
