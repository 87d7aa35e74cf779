"""The `admission` model: lets images in, or refuses them while too much is waiting."""

import json
from time import monotonic_ns, perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from teran.errors import TeranError
from teran.runtime.admission import Door, warm_ups
from teran.runtime.metrics import Recorder
from teran.runtime.request import parameters_of
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response

_NEEDED = ("visual_encoder",)
"""The models of every ensemble that begins here."""
_SEARCHED = ("gallery",)
"""Where searches go on to, overtaken meanwhile by those for captions."""


class TritonPythonModel:
    """Admits every request by itself."""

    def initialize(self, args: dict[str, str]) -> None:
        self._door = Door("admission", warm_ups(json.loads(args["model_config"])))
        self._recorder, self._log = Recorder("admission"), RequestLog("admission")

    def execute(self, requests: list[Any]) -> list[Any]:
        started, items = perf_counter(), 0
        responses: list[Any] = []
        errors: list[TeranError | None] = []
        for request in requests:
            mask = pb_utils.get_input_tensor_by_name(request, "region_mask")
            count = len(mask.as_numpy())
            come_in = pb_utils.get_input_tensor_by_name(request, "after") is not None
            try:
                is_search = "accepted_at" in request.requested_output_names()
                later = _SEARCHED if is_search else ()
                if not come_in:
                    self._door.admit(request, parameters_of(request), count, _NEEDED, later)
            except TeranError as error:
                errors.append(error)
                responses.append(error_response(error))
                continue
            items += count
            errors.append(None)
            accepted_at = pb_utils.Tensor("accepted_at", np.full((count, 1), monotonic_ns()))
            responses.append(pb_utils.InferenceResponse([mask, accepted_at]))
        seconds = perf_counter() - started
        self._recorder.execution(items, errors, seconds)
        for request, error in zip(requests, errors, strict=True):
            self._log.request(request, seconds, error)
        return responses
