"""Which kernels NVIDIA's builder makes of the graphs, told on a machine without a GPU.

    python -m benchmarks.kernels

Both encoders at full size in every precision that serves, and four ways of writing an attention,
by TensorRT-RTX's builder. What a kernel costs only a GPU can tell; how many there are, and what is
fused in them, decides how a graph is written.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import tensorrt_rtx_bindings as trt
import torch
from rich.console import Console
from rich.table import Table
from teran_export.engines.base import Source
from teran_export.engines.tensorrt import typed_graph
from teran_export.engines.tensorrt_rtx import TensorRtRtxEngine
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, random_inputs
from teran_export.options import BuildOptions
from teran_export.tensorrt.builder import build_plan
from teran_export.tensorrt.kernels import Kernel, read_kernels
from teran_export.tensorrt.profiles import Profile, Range
from torch import Tensor, nn

from benchmarks import machine
from teran.errors import ExportError
from teran.model import TeranConfig
from teran.model.layers import SelfAttention, TransformerLayer, attention_bias, widened
from teran.model.random import random_model

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
HEADS = ((768, 12), (1024, 4), (2048, 4))
"""Width and heads of BERT's layers, of those in the common space, and of the visual encoder's."""
_LAYERS, _OPSET = 2, 23
console = Console(width=100)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention in plain operators, (B, H, L, D) each, to (B, L, H x D); the softmax in fp32."""
    weights = (widened(torch.matmul(q * scale, k.transpose(-1, -2))) + bias).softmax(dim=-1)
    return torch.matmul(weights.to(v.dtype), v).transpose(1, 2).flatten(2)


class SplitFirst(SelfAttention):
    """Query, key and value are taken apart before the heads are."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        result: Tensor = self.out(attend(q, k, v, bias, self.scale))
        return result


class ThreeProjections(SelfAttention):
    """Query, key and value by a projection each."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.parts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.parts)
        q, k, v = heads
        result: Tensor = self.out(attend(q, k, v, bias, self.scale))
        return result


class OneOperator(SelfAttention):
    """ONNX's own operator. Its softmax is in its inputs' precision: the parser knows no other."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = heads.chunk(3, dim=1)
        mask = bias.to(x.dtype).expand(-1, 1, x.shape[1], -1)
        context, *_ = torch.onnx.ops.attention(q, k, v, attn_mask=mask, scale=self.scale)
        result: Tensor = self.out(context.transpose(1, 2).flatten(2))
        return result


FORMS: dict[str, type[SelfAttention]] = {
    "heads first (the model's)": SelfAttention,
    "query, key and value first": SplitFirst,
    "three projections": ThreeProjections,
    "the operator Attention": OneOperator,
}


class Layers(nn.Module):
    """A few layers, of which the attention is written in one way."""

    def __init__(self, form: type[SelfAttention], dim: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, dim, "gelu", 1e-5, 0.0) for _ in range(_LAYERS)
        )
        for layer in self.layers:
            layer.attention = form(dim, heads, 0.0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.half()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = attention_bias(mask)
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def write(self, path: Path, dim: int) -> list[Profile]:
        """As an ONNX file; returns the shapes to build it for."""
        batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=128)
        axes = {0: batch, 1: length}
        program = torch.onnx.export(
            self.eval(),
            (torch.randn(2, 5, dim).half(), torch.ones(2, 5)),
            input_names=["x", "mask"],
            output_names=["y"],
            dynamic_shapes={"x": axes, "mask": axes},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        onnx.save(program.model_proto, path)
        return [
            {
                "x": Range((low, 2, dim), (usual, 37, dim), (high, 128, dim)),
                "mask": Range((low, 2), (usual, 37), (high, 128)),
            }
            for low, usual, high in ((1, 1, 1), (2, 32, 32))
        ]


def kernels_of(
    graph: Path, profiles: Sequence[Profile], capability: str, kept: Path, precision: str = "fp16"
) -> list[Kernel]:
    """Build a plan and read its kernels.

    Raises:
        ExportError: it can't be built.
    """
    engine, log = TensorRtRtxEngine(), list[str]()
    options = BuildOptions(compute_capabilities=capability)
    names = engine.capabilities(options, precision)
    build_plan(
        trt,
        graph,
        kept / "plan",
        profiles,
        options,
        kept / "timing.cache",
        capabilities=names,
        listen=log.append,
    )
    return list(read_kernels(log))


def parts(capability: str) -> Iterator[dict[str, Any]]:
    """What the full-size encoders are made of, in every precision and profile."""
    model = random_model(TeranConfig())
    layers = {
        TEXTUAL_ENCODER: model.config.text.num_hidden_layers + model.config.joint_layers,
        VISUAL_ENCODER: model.config.visual_layers + model.config.joint_layers,
    }
    for graph, count in layers.items():
        samples = [random_inputs(graph, model.config, (8, 16), seed) for seed in range(2)]
        with TemporaryDirectory() as folder:
            source = Source(graph, graph.path(Path(folder)), model)
            for precision in PRECISIONS:
                path = typed_graph(source, precision, samples)
                profiles = TensorRtRtxEngine().profiles(source)
                found = kernels_of(path, profiles, capability, Path(folder), precision)
                for profile, name in enumerate(("one item", "batches")):
                    mine = [one for one in found if one.profile == profile]
                    yield {
                        "part": graph.name,
                        "precision": precision,
                        "profile": name,
                        "layers": count,
                        "kernels": len(mine),
                        "attention": sum(one.attention for one in mine),
                        "matmul": sum(one.matmul for one in mine),
                        "matmul_with_activation": sum(one.activation for one in mine),
                        "residual_with_norm": sum(one.norm for one in mine),
                        "names": [one.name for one in mine],
                    }


def forms(capability: str) -> Iterator[dict[str, Any]]:
    """What each way of writing an attention becomes, in fp16."""
    for name, form in FORMS.items():
        for dim, heads in HEADS:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "layers.onnx"
                profiles = Layers(form, dim, heads).write(path, dim)
                row: dict[str, Any] = {"form": name, "head": dim // heads}
                try:
                    found = kernels_of(path, profiles, capability, Path(folder))
                except ExportError as error:
                    yield {**row, "error": str(error)}
                    continue
            single = [one for one in found if one.profile == 0]
            yield {
                **row,
                "kernels": len(single),
                "attention": sum(one.attention for one in single),
                "names": [one.name for one in single],
            }


def main() -> None:
    """Build as the command line says, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute-capability", default="8.9", help="of the GPU to build for")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    table = Table("part", "precision", "profile", "kernels", "attention", "activation", "norm")
    seen = []
    for row in parts(options.compute_capability):
        seen.append(row)
        counts = ("kernels", "attention", "matmul_with_activation", "residual_with_norm")
        texts = [str(row[name]) for name in counts]
        table.add_row(row["part"], row["precision"], row["profile"], *texts)
    console.print(table)
    ways = list(forms(options.compute_capability))
    table = Table("attention written as", "head", f"kernels of {_LAYERS} layers", "attention")
    for row in ways:
        texts = [str(row.get(name, "not built")) for name in ("head", "kernels", "attention")]
        table.add_row(row["form"], *texts)
    console.print(table)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "builder": f"tensorrt-rtx-cu12 {trt.__version__}",
        "compute_capability": options.compute_capability,
        "parts": seen,
        "forms": ways,
    }
    path = options.out / "kernels.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
