"""The `photo` model: an adapter between Triton and the first part of `teran.detector`."""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic_ns
from typing import Any

import numpy as np

from teran.commandline import from_environment
from teran.detector.config import DetectorConfig
from teran.detector.decode import decode
from teran.detector.photo import padded, prepared, scale_of
from teran.errors import TeranError, TeranInputError, TeranPhotoError
from teran.runtime.admission import FEW_PHOTOS, Door, warm_ups
from teran.runtime.request import parameters_of
from teran.runtime.settings import RequestLimits
from teran.runtime.step import Arrays, Step

_NEEDED = ("proposal_network", "region_network")
"""The models that take long."""
_SEARCHED = ("gallery",)
"""Where searches go on to, overtaken meanwhile by those for captions."""
_MOST_THREADS = 8


class TritonPythonModel(Step):
    """Decodes the photos of an execution side by side."""

    is_door = True

    def start(self, config: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        self._config = DetectorConfig.from_dict(json.loads(parameters["detector"]))
        self._step = int(parameters["side_step"])
        self._most_bytes = from_environment(RequestLimits).max_photo_bytes
        self._door = Door("photo", warm_ups(config), FEW_PHOTOS)
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))

    def respond_all(
        self, requests: list[tuple[Any, TeranError | None]]
    ) -> list[tuple[Any, TeranError | None]]:
        return list(self._pool.map(lambda one: self.respond(*one), requests))

    def answer(self, request: Any, inputs: Arrays) -> Arrays:
        accepted_at, rows = monotonic_ns(), inputs.get("photo")
        if rows is None:  # Triton counts inputs only
            raise TeranInputError("the request has no photo")
        if rows.shape[1] > self._most_bytes:
            raise TeranPhotoError(
                f"a photo has {rows.shape[1]:,} bytes; at most {self._most_bytes:,} are accepted"
            )
        is_let_in = "after" in inputs  # by the model that this waits for
        later = _SEARCHED if "accepted_at" in request.requested_output_names() else ()
        if not is_let_in:
            self._door.admit(request, parameters_of(request), len(rows), _NEEDED, later)
        try:
            outputs = self._prepared([row.tobytes() for row in rows])
        except BaseException:
            self._door.count(_NEEDED, -len(rows))
            raise
        return outputs | {"accepted_at": np.full((len(rows), 1), accepted_at)}

    def _prepared(self, photos: list[bytes]) -> Arrays:
        """Photos of one request, each in a frame of the same size."""
        arrays, sizes = [], []
        for photo in photos:
            pixels = decode(photo)
            sizes.append(pixels.shape[:2])
            arrays.append(prepared(pixels, scale_of((sizes[-1][0], sizes[-1][1]), self._config)))
        largest = np.max([one.shape[1:] for one in arrays], axis=0)
        frame = (largest + -largest % self._step).tolist()
        framed, masks = zip(*(padded(one, *frame) for one in arrays), strict=True)
        return {
            "pixels": np.stack(framed),
            "pixel_mask": np.stack(masks),
            "photo_size": np.array(sizes, np.int32),
        }
