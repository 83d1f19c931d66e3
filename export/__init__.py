"""From checkpoints to bundles of ONNX graphs: needs the `export` extra (torch, transformers, onnx)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunevid.export.exporter import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    """Load the exporter on first use: the command line's help does not need it."""
    if name != "export":
        raise AttributeError(f"module 'prunevid.export' has no attribute {name!r}")
    from prunevid.export.exporter import export

    return export
