"""Bundle to graphs to engines to a published Triton model repository (needs the export extra)."""

from teran.extras import needs

with needs("export"):
    from teran_export.publish import ExportOptions, Published, export

__all__ = ["ExportOptions", "Published", "export"]
