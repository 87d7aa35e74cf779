"""The `proposals` model: an adapter between Triton and `teran.detector.proposals`."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from teran.detector.config import DetectorConfig
from teran.detector.photo import checked_size
from teran.detector.proposals import propose
from teran.errors import TeranPhotoError
from teran.runtime.step import Arrays, Step


class TritonPythonModel(Step):
    """From maps to boxes, photo by photo."""

    def start(self, config: Mapping[str, Any], parameters: Mapping[str, str]) -> None:  # noqa: ARG002
        self._config = DetectorConfig.from_dict(json.loads(parameters["detector"]))
        self._anchors = np.array(json.loads(parameters["anchors"]), np.float32)

    def answer(self, request: Any, inputs: Arrays) -> Arrays:  # noqa: ARG002
        maps = zip(inputs["objectness"], inputs["deltas"], inputs["photo_size"], strict=True)
        found = [
            propose(objectness, deltas, self._anchors, checked_size(size), self._config)
            for objectness, deltas, size in maps
        ]
        if not all(map(len, found)):
            raise TeranPhotoError("no part of the photo is large enough for a region")
        boxes = np.zeros((len(found), max(map(len, found)), 4), np.float32)
        for row, one in zip(boxes, found, strict=True):
            row[: len(one)] = one
        return {"proposals": boxes}
