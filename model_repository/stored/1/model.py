"""The `stored` model: answers writes when they are stored."""

from time import perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from teran.errors import TeranError
from teran.runtime.metrics import Recorder
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response
from teran.runtime.tickets import TicketHolder


class TritonPythonModel:
    """Waits for all tickets of an execution: they are done in the order they were given."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        self._holder = TicketHolder()
        self._recorder, self._log = Recorder("stored"), RequestLog("stored")

    def execute(self, requests: list[Any]) -> list[Any]:
        started = perf_counter()
        tickets = [
            pb_utils.get_input_tensor_by_name(request, "ticket").as_numpy() for request in requests
        ]
        answers = self._holder.redeem([int(values.flat[0]) for values in tickets])
        errors = [one if isinstance(one, TeranError) else None for one in answers]
        seconds = perf_counter() - started
        self._recorder.execution(sum(map(len, tickets)), errors, seconds)
        for request, error in zip(requests, errors, strict=True):
            self._log.request(request, seconds, error)
        return [
            error_response(answer)
            if isinstance(answer, TeranError)
            else pb_utils.InferenceResponse(
                [pb_utils.Tensor("report", np.array([[one] for one in answer], np.object_))]
            )
            for answer in answers
        ]
