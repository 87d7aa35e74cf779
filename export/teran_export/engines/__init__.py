"""The engines a graph can be compiled for. A new one is a module here and a line in `ENGINES`."""

from teran_export.engines.aoti import AotiEngine
from teran_export.engines.base import Engine
from teran_export.engines.onnxruntime import OnnxRuntimeEngine
from teran_export.engines.openvino import OpenVinoEngine

_ALL: tuple[Engine, ...] = (OpenVinoEngine(), OnnxRuntimeEngine(), AotiEngine())
ENGINES = {engine.name: engine for engine in _ALL}

__all__ = ["ENGINES", "Engine"]
