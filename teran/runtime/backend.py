"""What the Python-based engine backends share: batches in, batches out, bad requests refused.

A backend adds how a file is loaded and run. It is configured by the same parameters as Triton's
own backend of that name, plus these, which others ignore:

    static_rows     row counts, with commas, whose single items may get an engine of their own
    niceness        how far its threads stand back behind those of other models, 0 to 19

and those of `teran.runtime.input_checks`.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from teran.errors import TeranError, TeranInputError
from teran.runtime.admission import Desk, warm_ups
from teran.runtime.environment import THREADS_VARIABLE
from teran.runtime.input_checks import InputChecks
from teran.runtime.metrics import IMAGE_REGIONS, Recorder
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response

Arrays = dict[str, Any]
"""By name: numpy arrays, unless a backend reads its inputs as something else."""
Run = Callable[[Arrays], Arrays]


class EngineBackend(ABC):
    """A `TritonPythonModel` that runs one engine on one batch an execution."""

    # How tensors are read, joined, divided and written: here as numpy arrays.

    def read(self, tensor: Any) -> Any:
        """An input tensor as an array."""
        return tensor.as_numpy()

    def write(self, name: str, value: Any) -> Any:
        """An array as an output tensor."""
        return pb_utils.Tensor(name, value)

    def join(self, parts: list[Any]) -> Any:
        """One array of several, along the first axis."""
        return np.concatenate(parts)

    def divide(self, value: Any, sizes: list[int]) -> list[Any]:
        """The parts of an array, of so many items each."""
        return np.split(value, np.cumsum(sizes)[:-1])

    def is_finite(self, value: Any) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(value).all())

    def counts(self, mask: Any) -> list[int]:
        """How many values are true in every row of a mask."""
        counts: list[int] = mask.sum(axis=1).tolist()
        return counts

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._recorder, self._log = Recorder(config["name"]), RequestLog(config["name"])
        self._desk = Desk(config["name"], warm_ups(config))
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        self._batched = int(config["max_batch_size"]) > 0
        self._checks = InputChecks(parameters, batched=self._batched)
        file = Path(args["model_repository"]) / args["model_version"]
        os.nice(int(parameters.get("niceness", 0)))  # before the engine starts threads
        threads = os.environ.get(THREADS_VARIABLE.format(model=config["name"].upper()))
        self._run = self.load(
            file / config["default_model_filename"], parameters, int(threads) if threads else None
        )

    @abstractmethod
    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:
        """Load the engine at `path` and return what runs it.

        Args:
            path: the model file.
            parameters: the config's parameters, named as Triton's own backend names them.
            threads: how many threads to use, where the server has decided.
        """

    def execute(self, requests: list[Any]) -> list[Any]:
        started = perf_counter()
        responses: list[Any] = [None] * len(requests)
        refused: dict[int, TeranError] = {}
        accepted: list[tuple[int, Arrays]] = []
        for i, (request, verdict) in enumerate(
            zip(requests, self._desk.sort(requests), strict=True)
        ):
            if verdict:
                refused[i] = verdict
                continue
            inputs = {
                name: self.read(pb_utils.get_input_tensor_by_name(request, name))
                for name in self.input_names
            }
            try:
                self._checks.check(inputs, self.is_finite)
            except TeranInputError as error:
                refused[i] = error
            else:
                accepted.append((i, inputs))
        failure: Exception | None = None
        try:
            self._answer(requests, accepted, responses, refused)
        except Exception as error:  # Triton answers all of them with it, and counts no failure
            failure = error
            raise
        finally:
            self._record(requests, accepted, refused, failure, perf_counter() - started)
        for i, reason in refused.items():
            responses[i] = error_response(reason)
        return responses

    def _answer(
        self,
        requests: list[Any],
        accepted: list[tuple[int, Arrays]],
        responses: list[Any],
        refused: dict[int, TeranError],
    ) -> None:
        """Run what was accepted, and put every answer in its place."""
        batches = [accepted] if self._batched else [[one] for one in accepted]
        for batch in filter(None, batches):
            for (i, _), outputs in zip(batch, self._run_batch(batch, len(batches)), strict=True):
                wanted = requests[i].requested_output_names()
                chosen = {name: outputs[name] for name in self.output_names if name in wanted}
                if all(map(self.is_finite, chosen.values())):
                    tensors = [self.write(name, value) for name, value in chosen.items()]
                    responses[i] = pb_utils.InferenceResponse(tensors)
                else:
                    refused[i] = TeranInputError("the inputs lead to no finite result")

    def _record(
        self,
        requests: list[Any],
        accepted: list[tuple[int, Arrays]],
        refused: dict[int, TeranError],
        failure: Exception | None,
        seconds: float,
    ) -> None:
        items = sum(len(inputs[self.input_names[0]]) for _, inputs in accepted)
        errors = [refused.get(i, failure) for i in range(len(requests))]
        self._recorder.execution(items, errors, seconds)
        self._desk.clear([one for one, error in zip(requests, errors, strict=True) if error])
        for _, inputs in accepted:
            if "region_mask" in inputs:
                self._recorder.observe(IMAGE_REGIONS, self.counts(inputs["region_mask"]))
        for request, error in zip(requests, errors, strict=True):
            self._log.request(request, seconds, error)

    def _run_batch(self, batch: list[tuple[int, Arrays]], runs: int) -> list[Arrays]:
        """Run the engine once and give every request its rows.

        An engine may use its output's memory again: where an execution takes several runs, they
        are copied.
        """
        if len(batch) == 1:
            outputs = self._run(batch[0][1])
            if runs > 1:
                outputs = {name: self.join([value]) for name, value in outputs.items()}
            return [outputs]
        joined = {
            name: self.join([inputs[name] for _, inputs in batch]) for name in self.input_names
        }
        results = self._run(joined)
        sizes = [len(inputs[self.input_names[0]]) for _, inputs in batch]
        parts = {name: self.divide(results[name], sizes) for name in self.output_names}
        return [{name: parts[name][i] for name in self.output_names} for i in range(len(batch))]
