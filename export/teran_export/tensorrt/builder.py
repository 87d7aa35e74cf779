"""Builds one plan from one ONNX file, through the Python API of TensorRT (10.x and 11.x) or RTX.

Networks are strongly typed: precision is in the graph, so no precision flag is set. `trt` is the
module, passed in: there are two of them, with one API.
"""

import re
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teran.errors import ExportError
from teran_export.options import BuildOptions
from teran_export.tensorrt.profiles import Profile

Report = Callable[[str], None]
_LAYER = re.compile(r"(?:node|layer|Node|Layer)[^\[{'\"]*[\[{'\"]+([^\]}'\"]+)")
_STEPS_BETWEEN_REPORTS = 20


@dataclass(frozen=True)
class Built:
    """What building took."""

    seconds: float
    peak_host_bytes: int
    plan_bytes: int


def build_plan(
    trt: Any,
    onnx: Path,
    plan: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    timing_cache: Path,
    report: Report = lambda _: None,
    capabilities: Sequence[str] = (),
    listen: Report | None = None,
) -> Built:
    """Build `plan` from `onnx`; the timing cache is read, used and written back.

    Args:
        trt: the builder's module.
        onnx: the graph.
        plan: the file to write.
        profiles: shapes to build for.
        options: how to build.
        timing_cache: what builders have measured before.
        report: told of every step.
        capabilities: the GPUs to build for, as TensorRT-RTX names them ("SM89"); without any, for
            the one that is here.
        listen: told whatever the builder logs, every kernel it chose among that.

    Raises:
        ExportError: the graph can't be parsed, or no kernel was found; names the layer.
    """
    started = time.monotonic()
    logger = make_logger(trt, listen)
    builder = trt.Builder(logger)
    # Version 11 knows strongly typed networks only, and ignores the flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{e.node_name() or 'graph'}: {e.desc()}" for e in errors)
        raise ExportError(f"TensorRT can't parse {onnx.name}: {reasons or logger.summary()}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    config.builder_optimization_level = options.optimization_level
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if listen:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    config.progress_monitor = _make_monitor(trt, onnx.stem, report)
    known = timing_cache.read_bytes() if timing_cache.is_file() else b""
    # A cache of another GPU or version is refused: it starts empty then.
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, shapes.smallest, shapes.usual, shapes.largest)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"TensorRT refuses a profile of {onnx.name}: {logger.summary()}")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(
            f"TensorRT can't build {onnx.name}{_failed_layer(logger.messages)}: {logger.summary()}"
        )
    data = bytes(memoryview(serialized))
    plan.write_bytes(data)
    timing_cache.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Built(round(time.monotonic() - started, 1), peak, len(data))


def make_logger(trt: Any, listen: Report | None = None) -> Any:
    """A logger that keeps errors, and passes all there is to `listen`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if listen:
                listen(message)
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.messages.append(message)

        def summary(self) -> str:
            return "; ".join(self.messages[-3:]) or "it gave no reason"

    return Logger()


def _make_monitor(trt: Any, name: str, report: Report) -> Any:
    """Reports the phases of a build; the outermost ones only."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            if parent is None:
                report(f"  {name}: {phase}")

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self._steps.get(phase, 0)
            if steps >= _STEPS_BETWEEN_REPORTS and step and step % _STEPS_BETWEEN_REPORTS == 0:
                report(f"  {name}: {phase}, {step} of {steps}")
            return True

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _failed_layer(messages: Sequence[str]) -> str:
    """The layer that the errors name."""
    for message in messages:
        if found := _LAYER.search(message):
            return f" at layer {found[1].strip()}"
    return ""
