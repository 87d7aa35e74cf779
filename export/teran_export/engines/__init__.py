"""The engines a graph can be compiled for. A new one is a module here and a line in `_CLASSES`."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from teran.extras import needs
from teran_export.engines.base import Engine

_CLASSES = {
    "openvino": "OpenVinoEngine",
    "onnxruntime": "OnnxRuntimeEngine",
    "aoti": "AotiEngine",
    "tensorrt": "TensorRtEngine",
    "tensorrt-rtx": "TensorRtRtxEngine",
}


@cache
def _load(name: str) -> Engine:
    """Import an engine, with the libraries it needs, when it is asked for."""
    with needs("export"):
        module = import_module(f"teran_export.engines.{name.replace('-', '_')}")
    engine: Engine = getattr(module, _CLASSES[name])()
    return engine


class _Engines(Mapping[str, Engine]):
    def __getitem__(self, name: str) -> Engine:
        if name not in _CLASSES:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


ENGINES: Mapping[str, Engine] = _Engines()

__all__ = ["ENGINES", "Engine"]
