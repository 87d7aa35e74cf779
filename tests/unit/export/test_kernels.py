"""NVIDIA's own builder on the demo's model and on one of full size.

Plans, recall, and what is fused, which is why the graphs are written as they are.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from teran_export.calibration import CalibrationData
from teran_export.engines import ENGINES
from teran_export.engines.base import Run, Source
from teran_export.engines.tensorrt import TensorRtEngine, typed_graph
from teran_export.gate import Answers, Gate, PrecisionCheck
from teran_export.graphs import (
    ALIGNMENT,
    GRAPHS,
    TEXTUAL_ENCODER,
    VISUAL_ENCODER,
    Graph,
    random_inputs,
)
from teran_export.options import MAX_LOSS, BuildOptions
from teran_export.tensorrt.builder import build_plan
from teran_export.tensorrt.kernels import Kernel, read_kernels

from examples import scenes
from examples.scenes.demo import write_calibration
from teran.model import TeranConfig, TeranModel
from teran.model.random import random_model

trt = pytest.importorskip("tensorrt_rtx_bindings")
FOR = BuildOptions(compute_capabilities="8.9")
ENCODERS = (VISUAL_ENCODER, TEXTUAL_ENCODER)
Check = Callable[[str], PrecisionCheck]


@pytest.fixture(scope="module")
def demo() -> TeranModel:
    return TeranModel.from_pretrained(Path(scenes.__file__).parent / "model")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs are written, each once."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def check(demo: TeranModel, work: Path) -> Check:
    """Build the demo's encoders, and run their graphs on the demo's data."""
    assert demo.tokenizer is not None
    write_calibration(work / "calibration.npz")
    data = CalibrationData.load(work / "calibration.npz", demo.config, demo.tokenizer)
    gate, engine = Gate(Answers.of(demo, data), timed=False), ENGINES["tensorrt-rtx"]

    def build(precision: str) -> PrecisionCheck:
        def load(graph: Graph) -> Run:
            folder = work / precision / graph.name
            folder.mkdir(parents=True)
            source = Source(graph, graph.path(work), demo, options=FOR)
            engine.build(source, folder, precision, data.batches(graph))
            assert (folder / "model.plan").stat().st_size > 1e6
            return engine.load(graph, folder, precision)

        return gate.check(load)

    return build


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_demos_model_keeps_its_recall(precision: str, check: Check) -> None:
    found = check(precision)
    assert found.failure() is None
    assert found.worst_loss is not None
    assert found.worst_loss <= MAX_LOSS


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_demos_alignment_is_built(
    precision: str, demo: TeranModel, work: Path, tmp_path: Path
) -> None:
    source = Source(ALIGNMENT, ALIGNMENT.path(work), demo, options=FOR)
    ENGINES["tensorrt-rtx"].build(source, tmp_path, precision, [])
    assert (tmp_path / "model.plan").stat().st_size > 1e5


def kernels(source: Source, precision: str, folder: Path) -> list[Kernel]:
    """Of a part's plan."""
    log: list[str] = []
    sizes = {ALIGNMENT: (2, 16, 2, 16)}.get(source.graph, (2, 16))
    samples = [random_inputs(source.graph, source.model.config, sizes, seed=0)]
    build_plan(
        trt,
        typed_graph(source, precision, samples),
        folder / "plan",
        TensorRtEngine().profiles(source),
        FOR,
        folder / "timing.cache",
        capabilities=["SM89"],
        listen=log.append,
    )
    return list(read_kernels(log))


@pytest.mark.parametrize("graph", ENCODERS, ids=lambda graph: graph.name)
def test_what_the_builder_fuses(graph: Graph, demo: TeranModel, work: Path, tmp_path: Path) -> None:
    """A layer is eight kernels: projection, heads, attention, matmul, norm, two matmuls, norm."""
    config = demo.config
    own = config.text.num_hidden_layers if graph is TEXTUAL_ENCODER else config.visual_layers
    layers = own + config.joint_layers
    found = kernels(Source(graph, graph.path(work), demo, options=FOR), "fp16", tmp_path)
    for profile in (0, 1):
        mine = [one for one in found if one.profile == profile]
        assert sum(one.attention for one in mine) == layers
        assert sum(one.activation for one in mine) >= layers
        assert sum(one.norm for one in mine) >= 2 * layers - 1
        assert len(mine) <= 8 * layers + 10


@pytest.fixture(scope="module")
def full() -> TeranModel:
    return random_model(TeranConfig())


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_a_model_of_full_size_is_built(graph: Graph, full: TeranModel, tmp_path: Path) -> None:
    source = Source(graph, graph.path(tmp_path), full, options=FOR)
    found = kernels(source, "fp16", tmp_path)
    assert {one.profile for one in found} == set(range(len(TensorRtEngine().profiles(source))))
    if graph is not ALIGNMENT:
        half = (tmp_path / "plan").stat().st_size
        assert kernels(source, "int8", tmp_path)
        assert (tmp_path / "plan").stat().st_size < 0.75 * half
