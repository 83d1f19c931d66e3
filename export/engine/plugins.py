"""The ``prunevid`` operators as TensorRT plugins: the one place that knows the kernels' interface."""

from __future__ import annotations

import onnx

from prunevid.bundle import Manifest
from prunevid.errors import PruneVidError
from prunevid.export.engine.profiles import FRAMES_AT_ONCE, Limits

DOMAIN = "prunevid"
# Releases from this one on take plugins written in Python whose compiled kernels become part of the engine.
FIRST_RELEASE = (10, 9)
# The operators that have a plugin, as ONNX names them: domain and operator.
OPERATORS = frozenset((DOMAIN, name) for name in ("DpcKnn", "RefineSegments", "GroupTopK"))


def available(release: tuple[int, int]) -> bool:
    """Whether a release of TensorRT (major and minor number) can take the plugins."""
    return release >= FIRST_RELEASE


def check_limits(manifest: Manifest, limits: Limits) -> None:
    """Raise PruneVidError where a video is larger than the kernels take."""


def register() -> None:
    """Make the plugins known to the TensorRT at hand."""


def nodes_of(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that stand for one of the operators where TensorRT has its plugin."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.attribute.append(onnx.helper.make_attribute("plugin_namespace", DOMAIN))
    made.attribute.append(onnx.helper.make_attribute("aot", 1))
    return [made]
