"""The `gallery` model: an adapter between Triton and `teran.gallery.service`."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from teran.errors import TeranError, TeranInputError
from teran.gallery.galleries import Galleries
from teran.gallery.gallery import Model
from teran.gallery.kernels import kernel
from teran.gallery.service import Arrays, GalleryService, Request
from teran.serving.settings import GALLERY_FLUSH_VARIABLE, GALLERY_VARIABLE, THREADS_VARIABLE

_INPUTS = ("embeddings", "boxes", "tokens", "record")


class TritonPythonModel:
    """Answers searches at once and writes when they are durable."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: entry["string_value"] for name, entry in parameters.items()}
        model = Model(values["fingerprint"], int(values["embed_dim"]), values["pooling"])
        threads = int(os.environ.get(THREADS_VARIABLE.format(model="GALLERY"), "0"))
        flush = os.environ.get(GALLERY_FLUSH_VARIABLE) == "1"
        directory = Path(os.environ[GALLERY_VARIABLE])
        self._galleries = Galleries(directory, model, kernel(threads), flush=flush)
        self._service = GalleryService(self._galleries, model.embed_dim)

    def execute(self, requests: list[Any]) -> list[Any]:
        self._service.handle([_read(request) for request in requests])
        # Every request is answered through its sender, now or from the writing thread.
        return [None] * len(requests)

    def finalize(self) -> None:
        self._galleries.close()


def _read(request: Any) -> Request:
    inputs = {}
    for name in _INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            inputs[name] = tensor.as_numpy()
    sender, lock = request.get_response_sender(), threading.Lock()

    def respond(answer: Arrays | TeranError) -> None:
        if isinstance(answer, TeranError):
            wrong = isinstance(answer, TeranInputError)
            code = pb_utils.TritonError.INVALID_ARG if wrong else pb_utils.TritonError.INTERNAL
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), code))
        else:
            tensors = [pb_utils.Tensor(name, value) for name, value in answer.items()]
            response = pb_utils.InferenceResponse(tensors)
        with lock:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    return Request(json.loads(request.parameters() or "{}"), inputs, respond)
