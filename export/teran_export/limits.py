"""What a published repository takes at most."""

from dataclasses import dataclass

MAX_REGIONS = 128
MAX_CELLS = 1 << 26
"""Most region x word cosines of one alignment request: 256 MiB of fp32."""


@dataclass(frozen=True)
class Limits:
    """The largest batches the encoders form."""

    images: int = 32
    captions: int = 64
