"""The `prunevid` operators as TensorRT plugins (TensorRT 10.9 or newer), and what the builder asks of them.

`nodes` makes a graph's nodes ready for TensorRT's parser, `registration` registers the plugins that they name with the
builder of this process. Both work on the machine that the engine is for, so they need neither torch nor transformers:
`nodes` needs onnx, `registration` TensorRT and Triton. The engine itself needs none of them: it holds the kernels.
"""

from __future__ import annotations

import onnx

from prunevid.bundle import Manifest
from prunevid.bundle.sections.engine_sets import EngineDevice
from prunevid.errors import PruneVidError
from prunevid.export.engine.kernels import MAX_FRAMES, MAX_TOKENS
from prunevid.export.engine.plugins.nodes import NAMESPACE, PLUGINS, plugin_nodes
from prunevid.export.engine.profiles import BuildLimits, largest_sizes, profiles_of

# Releases from this one on take plugins written in Python whose compiled kernels become part of the engine.
FIRST_RELEASE = (10, 9)
# The operators that have a plugin, as ONNX names them: domain and operator.
OPERATORS = frozenset((NAMESPACE, name) for name in PLUGINS)


def available(release: tuple[int, int]) -> bool:
    """Whether a release of TensorRT (major and minor number) can take the plugins."""
    return release >= FIRST_RELEASE


def is_plugin(node: onnx.NodeProto) -> bool:
    """Whether a node is one of the operators that have a plugin."""
    return (node.domain, node.op_type) in OPERATORS


def nodes_of(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that stand for one of the operators where TensorRT has its plugin."""
    return plugin_nodes(node)


def check_limits(manifest: Manifest, limits: BuildLimits) -> None:
    """Raise PruneVidError where a frame or a video is larger than the kernels take."""
    tokens = manifest.token_layout.tokens_per_frame
    if tokens > MAX_TOKENS:
        raise PruneVidError(f"a frame of this model has {tokens} visual tokens: the plugins take up to {MAX_TOKENS}")
    sizes = largest_sizes(profiles_of(manifest, "vision_merge", limits))
    frames = sizes["frame_counts"] - 1
    if frames > MAX_FRAMES:
        raise PruneVidError(
            f"{limits.frames} frames are too many for the plugins, which take up to {MAX_FRAMES} at once"
        )


def register(device: EngineDevice) -> None:
    """Register the plugins with the TensorRT of this process. Raises PruneVidError where Triton is missing."""
    try:
        from prunevid.export.engine.plugins.registration import register as register_for
    except ModuleNotFoundError as error:
        raise PruneVidError(f"{error.name} is missing: pip install 'prunevid[tensorrt]'") from error
    register_for(int(device.compute_capability.replace(".", "")))
