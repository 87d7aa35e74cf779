"""The TERAN network: encoders, alignment, and its checkpoint and bundle formats (needs torch)."""

from teran.extras import needs

with needs("export"):
    from teran.model.alignment import align
    from teran.model.config import Pooling, TeranConfig, TextConfig
    from teran.model.encoders import word_mask
    from teran.model.teran import TeranModel

__all__ = ["Pooling", "TeranConfig", "TeranModel", "TextConfig", "align", "word_mask"]
