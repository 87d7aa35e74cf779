"""Every option of `teran export`, in one place."""

from dataclasses import KW_ONLY, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from teran.commandline import Positive, Unparsed, options

AUTO = "auto"
MAX_LOSS = 0.5
"""Percentage points of any recall that an engine may lose."""


@options
class Limits:
    """The largest batches the encoders form."""

    max_images: Positive = 32
    """Largest batch of images."""
    max_captions: Positive = 64
    """Largest batch of captions."""
    max_photos: Positive = 4
    """Largest batch of photos on a GPU; a CPU takes them one by one."""


@options
class BuildOptions:
    """How engines are built; each uses those it knows."""

    workspace: Annotated[int, Parameter(validator=Number(gte=0))] = 4096
    """TensorRT: scratch memory, in MiB."""
    optimization_level: Annotated[int, Parameter(validator=Number(gte=0, lte=5))] = 3
    """TensorRT: higher builds longer, for faster engines."""
    hardware_compatible: bool = False
    """TensorRT: run on other GPUs from Ampere on."""
    version_compatible: bool = False
    """TensorRT: load in later versions as well."""
    compute_capabilities: str = ""
    """TensorRT-RTX: GPUs to build for, as 8.9,12.0; by default the one that is here, else all that
    the precision can be built for."""
    native: bool = False
    """AOTInductor: for Triton's own backend (26.03 or later), not the stand-in."""


@options
class ExportOptions:
    """What to publish, and where."""

    bundle: Annotated[Path, Unparsed] = Path("bundle")
    out: Annotated[Path, Unparsed] = Path("repository")
    engine: str = "openvino"
    """openvino, onnxruntime, aoti, tensorrt or tensorrt-rtx."""
    precision: str = AUTO
    """fp32, fp16, bf16, int8 or fp8, as the engine offers; auto: the fastest that passes the gate,
    int8 among them only with real calibration data, and fp16 where none can be run."""
    _: KW_ONLY
    calibration: Path | None = None
    """An .npz of real images and captions: region_features, boxes, region_mask, captions,
    image_of_caption; or a .tsv of real regions, as bottom-up attention writes them."""
    gate: Path | None = None
    """A data set, as `teran evaluate` takes it: engines are judged by recall on it."""
    gate_split: str = "val"
    """Which images of it."""
    gate_images: Positive = 1000
    """How many of them."""
    max_loss: Annotated[float, Parameter(validator=Number(gte=0))] = MAX_LOSS
    """Points of any recall that an engine may lose against PyTorch in fp32."""
    detector: Path | None = None
    """A region detector, from `teran detector convert`: photos are taken then, not only regions."""
    photos: Path | None = None
    """A directory of photos that the detector is calibrated on and judged by; ten are enough."""
    proposals: Positive | None = None
    """Boxes that regions are chosen from, where not the detector's own 300: fewer are quicker."""
    feature_precision: str = "fp32"
    """What region features are sent in: fp32, or fp16, half as long."""
    limits: Limits = field(default_factory=Limits)
    build: BuildOptions = field(default_factory=BuildOptions)
    force: Annotated[bool, Parameter(env_var=())] = False
    """Build even what is up to date."""
