"""What a published repository takes at most, whatever its options."""

MAX_REGIONS = 128
MAX_CELLS = 1 << 26
"""Most region x word cosines of one alignment request: 256 MiB of fp32."""
