"""What the Python models share that are steps between the engines."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from teran.errors import ServingError, TeranError
from teran.runtime.admission import Desk, warm_ups
from teran.runtime.input_checks import InputChecks
from teran.runtime.metrics import Recorder
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response

Arrays = dict[str, npt.NDArray[Any]]


class Step(ABC):
    """A `TritonPythonModel` that answers one request after the other.

    Its config's parameters are those of `teran.runtime.input_checks`, `niceness`, and its own.
    """

    is_door = False
    """Whether it lets requests in: what fails it counts out itself."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        os.nice(int(values.get("niceness", 0)))
        self._recorder, self._log = Recorder(config["name"]), RequestLog(config["name"])
        self._desk = Desk(config["name"], warm_ups(config))
        self._names = [tensor["name"] for tensor in config["input"]]
        self._checks = InputChecks(values, batched=True)
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
        verdicts = self._desk.sort(requests)
        answered = self.respond_all(list(zip(requests, verdicts, strict=True)))
        failed = [one for one, (_, error) in zip(requests, answered, strict=True) if error]
        self._desk.clear(() if self.is_door else failed)
        return [response for response, _ in answered]

    def respond_all(
        self, requests: list[tuple[Any, TeranError | None]]
    ) -> list[tuple[Any, TeranError | None]]:
        """The responses, and errors, of requests and why they need not be done."""
        return [self.respond(*one) for one in requests]

    def respond(self, request: Any, verdict: TeranError | None) -> tuple[Any, TeranError | None]:
        """The response to a request, counted and logged, and its error."""
        started = perf_counter()
        error: TeranError | None = None
        items = 0
        try:
            if verdict:
                raise verdict
            outputs = self.answer(request, self._read(request))
            items = len(next(iter(outputs.values())))
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(value))
                for name, value in outputs.items()
            ]
            response = pb_utils.InferenceResponse(tensors)
        except TeranError as caught:
            error = caught
        except Exception as caught:  # or Triton would answer the others with it, too
            error = ServingError(f"it failed with {type(caught).__name__}")
            error.__cause__ = caught
        if error:
            response = error_response(error)
        seconds = perf_counter() - started
        self._recorder.execution(items, [error], seconds)
        self._log.request(request, seconds, error)
        return response, error

    def _read(self, request: Any) -> Arrays:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._names}
        inputs = {name: one.as_numpy() for name, one in tensors.items() if one is not None}
        self._checks.check(inputs, lambda value: bool(np.isfinite(value).all()))
        return inputs
