"""What client and server agree on: what a request may hold at most, and what it is called by."""

MAX_CAPTION_BYTES = 64 * 1024
"""Longest caption in bytes; longer ones are refused."""
USUAL_REGIONS = 36
"""Regions of an image from bottom-up attention. The authors' evaluation pads smaller ones to it."""
MAX_RESULTS = 1000
"""Most hits of one search."""
DEFAULT_GALLERY = "default"
"""The gallery that is meant where none is named."""
WRITE_KEY_HEADER = "teran-write-key"
"""Metadata that comes with writes, where the server asks for a key."""
ADMIN_KEY_HEADER = "triton-grpc-protocol-teran-admin-key"
"""Metadata that comes with calls that load models or change the server, likewise."""
