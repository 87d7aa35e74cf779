"""The `gallery` model: an adapter between Triton and `teran.gallery.protocol`."""

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from time import monotonic, monotonic_ns, perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from teran.commandline import from_environment
from teran.errors import TeranError, TeranInputError
from teran.gallery.catalog import Model
from teran.gallery.opening import open_catalog
from teran.gallery.protocol.request import Arrays, Request
from teran.gallery.protocol.service import WRITES, GalleryService
from teran.runtime.admission import Desk, warm_ups
from teran.runtime.metrics import SEARCH_SECONDS, Recorder
from teran.runtime.request import id_of, parameters_of
from teran.runtime.request_log import RequestLog
from teran.runtime.response import error_response
from teran.runtime.settings import GallerySettings
from teran.runtime.tickets import Reports, TicketOffice

_REPORT_EVERY = 1.0
"""Seconds between words on the galleries, of which the supervisor tells."""
_LONGEST = 3600.0
"""Seconds; a search that took longer has not: its request says when it came, and may be wrong."""
_SWITCH = 0.0005
"""Seconds after which a writing thread makes way for a search."""
_INPUTS = ("embeddings", "boxes", "tokens", "record", "accepted_at")


class TritonPythonModel:
    """Answers every execution's searches together, and commits its writes together.

    Writes whose requests want a ticket get that at once, and are answered by the `stored` model;
    others hold the execution up until they are done.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        model = Model(values["fingerprint"], int(values["embed_dim"]), values["pooling"])
        settings = from_environment(GallerySettings)
        self._galleries = open_catalog(model, settings)
        self._desk, self._tickets = Desk("gallery", warm_ups(config)), TicketOffice()
        sys.setswitchinterval(_SWITCH)
        self._recorder, self._log = Recorder("gallery"), RequestLog("gallery")
        self._service = GalleryService(
            self._galleries, model.embed_dim, settings.write_key, self._recorder, settings
        )
        self._reporter, self._reported = ThreadPoolExecutor(1), 0.0
        self._reporting = self._reporter.submit(self._report)

    def execute(self, requests: list[Any]) -> list[Any]:
        started = perf_counter()
        answers: list[Future[Arrays | TeranError]] = [Future() for _ in requests]
        for verdict, answer in zip(self._desk.sort(requests), answers, strict=True):
            if verdict:
                answer.set_result(verdict)
        read = [_read(one, answer) for one, answer in zip(requests, answers, strict=True)]
        self._service.handle([one for one in read if one])
        results = [
            self._ticket(id_of(request), asked, answer)
            if _wants_ticket(request)
            else answer.result()
            for request, asked, answer in zip(requests, read, answers, strict=True)
        ]
        items = sum(len(next(iter(one.values()))) for one in results if isinstance(one, dict))
        errors = [one if isinstance(one, TeranError) else None for one in results]
        seconds = perf_counter() - started
        self._recorder.execution(items, errors, seconds)
        self._desk.clear([one for one, error in zip(requests, errors, strict=True) if error])
        for request, asked, error in zip(requests, read, errors, strict=True):
            self._log.request(request, seconds, error, operation=asked and asked.named_operation)
            is_search = asked is not None and asked.named_operation == "search"
            if asked and is_search and error is None and "accepted_at" in asked.inputs:
                taken = (monotonic_ns() - int(asked.inputs["accepted_at"].flat[0])) / 1e9
                if 0 <= taken < _LONGEST:
                    self._recorder.observe(SEARCH_SECONDS, [taken])
        if monotonic() - self._reported > _REPORT_EVERY:
            self._reported = monotonic()
            if self._reporting.done():
                self._reporting = self._reporter.submit(self._report)  # a cluster may let it wait
        return [_response(one) for one in results]

    def _ticket(
        self, request_id: str, asked: Request | None, answer: "Future[Arrays | TeranError]"
    ) -> Arrays | TeranError:
        """A ticket for a write, for each item of its request; an error that is known already."""
        if answer.done() and isinstance(error := answer.result(), TeranError):
            return error
        if asked is None or asked.named_operation not in WRITES:
            return TeranInputError("only what changes galleries has a ticket; ask for the report")
        reports: Future[Reports | TeranError] = Future()

        def finish(done: "Future[Arrays | TeranError]") -> None:
            result = done.result()
            reports.set_result(_reports(result))
            if isinstance(result, TeranError):
                self._log.defect(request_id, result)  # its cause stays here

        answer.add_done_callback(finish)
        try:
            number = self._tickets.ticket(reports)
        except TeranError as error:
            return error
        return {"ticket": np.full((max(map(len, asked.inputs.values())), 1), number)}

    def _report(self) -> None:
        """Leave word of the galleries for the supervisor."""
        try:
            info = self._galleries.info()
        except TeranError as error:
            info = {"galleries": [], "unusable": {"all": str(error)}}
        with suppress(OSError):  # the directory goes away with the supervisor
            self._recorder.report_galleries(info)

    def finalize(self) -> None:
        self._reporter.shutdown()
        self._galleries.close()
        self._tickets.close()


def _wants_ticket(request: Any) -> bool:
    """Whether this is a step of an ensemble that waits elsewhere."""
    wanted = request.requested_output_names()
    return "ticket" in wanted and "report" not in wanted


def _reports(answer: Arrays | TeranError) -> Reports | TeranError:
    return answer if isinstance(answer, TeranError) else list(answer["report"].ravel())


def _read(request: Any, answer: "Future[Arrays | TeranError]") -> Request | None:
    """Read a request that has no answer yet, or answer it at once where it can't be read."""
    if answer.done():
        return None
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in _INPUTS}
    inputs = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
    try:
        parameters = parameters_of(request)
    except TeranInputError as error:
        answer.set_result(error)
        return None
    return Request(parameters, inputs, answer.set_result)


def _response(answer: Arrays | TeranError) -> Any:
    if isinstance(answer, TeranError):
        return error_response(answer)
    return pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in answer.items()])
