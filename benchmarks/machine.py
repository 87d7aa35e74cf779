"""What a result was measured on, and the ceilings of that machine."""

import importlib
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Those that decide how fast an engine can be, as Linux names them."""


def describe() -> dict[str, object]:
    """CPU, cores, system and the versions of the libraries that do the work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = set(info.get("flags", "").split())
    libraries = (
        "torch",
        "openvino",
        "nncf",
        "onnxruntime",
        "tritonclient",
        "nvidia-pytriton",
        "numpy",
    )
    return {
        "cpu": info.get("model name", "unknown"),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in libraries if (found := _version(name))},
    }


def command() -> str:
    """How this program was started, without where things lie on this machine."""
    module = sys.modules["__main__"].__spec__
    assert module is not None
    arguments = (re.sub(r"(^|=)(?:/|\.\./)\S*/", r"\1", one) for one in sys.argv[1:])
    return " ".join(["python -m", module.name, *arguments])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def matmul_ceiling(hint: str, size: int = 2048, rows: int = 1184) -> float:
    """Billions of operations per second of one large matmul in OpenVINO, on all cores.

    Args:
        hint: "f32" or "bf16".
        size: inner and outer dimension, as in the visual encoder.
        rows: 32 images of 37 rows.
    """
    from teran.runtime.silent_openvino import openvino  # which a GPU machine may lack

    ops = importlib.import_module("openvino.opset13")

    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    parameter = ops.parameter([rows, size], np.float32)
    model = openvino.Model([ops.matmul(parameter, weight, False, True)], [parameter])
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    data = np.random.default_rng(1).standard_normal((rows, size)).astype(np.float32)
    request.infer([data])
    times = []
    for _ in range(15):
        start = perf_counter()
        request.infer([data], share_inputs=True, share_outputs=True)
        times.append(perf_counter() - start)
    return 2 * rows * size * size / median(times) / 1e9
