"""From checkpoints to bundles of ONNX graphs: needs the ``export`` extra (torch, transformers, onnx)."""

from prunevid.export.exporter import export

__all__ = ["export"]
