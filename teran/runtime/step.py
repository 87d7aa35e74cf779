"""What Python models share that answer one request after the other."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from teran.errors import TeranError
from teran.runtime.metrics import Recorder
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response

Arrays = dict[str, npt.NDArray[Any]]


class Step(ABC):
    """A `TritonPythonModel` that is one step of ensembles."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        os.nice(int(values.get("niceness", 0)))
        self._recorder, self._log = Recorder(config["name"]), RequestLog(config["name"])
        self._names = [tensor["name"] for tensor in config["input"]]
        self.start(config, values)

    @abstractmethod
    def start(self, config: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        """Get ready, given the config and its parameters."""

    @abstractmethod
    def answer(self, request: Any, inputs: Arrays) -> Arrays:
        """The outputs of a request, given what it holds.

        Raises:
            TeranError: it can't be done.
        """

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The response to a request, counted and logged."""
        started = perf_counter()
        error: TeranError | None = None
        items = 0
        try:
            tensors = {
                name: pb_utils.get_input_tensor_by_name(request, name) for name in self._names
            }
            inputs = {name: one.as_numpy() for name, one in tensors.items() if one is not None}
            outputs = self.answer(request, inputs)
            items = len(next(iter(outputs.values())))
            response = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(value))
                    for name, value in outputs.items()
                ]
            )
        except TeranError as caught:
            error, response = caught, error_response(caught)
        seconds = perf_counter() - started
        self._recorder.execution(items, [error], seconds)
        self._log.request(request, seconds, error)
        return response
