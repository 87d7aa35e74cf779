"""Bundle to graphs to engines to a published Triton model repository (needs the export extra)."""

from typing import TYPE_CHECKING, Any

from teran.extras import needs

if TYPE_CHECKING:
    from teran_export.options import ExportOptions
    from teran_export.publish import Published, export

__all__ = ["ExportOptions", "Published", "export"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line loads this package even in a base install."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("export"):
        from teran_export import publish
    return getattr(publish, name)
