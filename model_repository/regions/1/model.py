"""The `regions` model: an adapter between Triton and `teran.detector.regions`."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from teran.detector.config import DetectorConfig
from teran.detector.photo import checked_size, scale_of
from teran.detector.regions import Regions, choose
from teran.runtime.step import Arrays, Step

FEATURE_TYPES = {"fp32": np.float32, "fp16": np.float16}


class TritonPythonModel(Step):
    """From proposals to regions, photo by photo."""

    def start(self, config: Mapping[str, Any], parameters: Mapping[str, str]) -> None:  # noqa: ARG002
        self._config = DetectorConfig.from_dict(json.loads(parameters["detector"]))
        self._type = FEATURE_TYPES[parameters["feature_precision"]]

    def answer(self, request: Any, inputs: Arrays) -> Arrays:  # noqa: ARG002
        names = ("proposal_features", "class_scores", "proposals", "photo_size")
        found = [self._regions(*one) for one in zip(*(inputs[name] for name in names), strict=True)]
        shape = (len(found), max(len(one.boxes) for one in found))
        width = inputs["proposal_features"].shape[2]
        outputs: Arrays = {
            "region_features": np.zeros((*shape, width), self._type),
            "boxes": np.zeros((*shape, 4), np.float32),
            "region_mask": np.zeros(shape, np.bool_),
            "confidence": np.zeros(shape, np.float32),
            "labels": np.zeros(shape, np.int64),
        }
        for i, one in enumerate(found):
            count = len(one.boxes)
            outputs["region_features"][i, :count] = one.features
            outputs["boxes"][i, :count] = one.boxes / np.tile(inputs["photo_size"][i, ::-1], 2)
            outputs["region_mask"][i, :count] = True
            outputs["confidence"][i, :count] = one.confidence
            outputs["labels"][i, :count] = one.labels
        return outputs

    def _regions(self, features: Any, classes: Any, proposals: Any, size: Any) -> Regions:
        count = int(proposals.any(axis=1).sum())  # others fill up a request of several photos
        boxes = proposals[:count] / np.float32(scale_of(checked_size(size), self._config))
        if len(features) == len(classes) == len(proposals):
            features, classes = features[:count], classes[:count]
        return choose(features, classes, boxes, self._config)
