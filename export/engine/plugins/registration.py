"""Registers the operators with TensorRT's builder as quickly deployable plugins with ahead-of-time kernels.

Annotations are part of what TensorRT reads here, so they must not be postponed: no `from __future__` import.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from prunevid.errors import PruneVidError
from prunevid.export.engine.kernels import MAX_FRAMES, MAX_TOKENS
from prunevid.export.engine.plugins.nodes import NAMESPACE

_registered_for: int | None = None


def register(capability: int) -> None:
    """Register the plugins of all operators, with kernels for one kind of GPU, in this process.

    capability: the GPU's compute capability times ten (87 is Orin). Calling again is fine, but not for another GPU,
    since TensorRT keeps what it has. Raises PruneVidError where TensorRT is too old to take plugins' kernels.
    """
    global _registered_for
    import tensorrt as trt

    if _registered_for not in (None, capability):
        raise PruneVidError(f"this process builds for sm_{_registered_for}: build for sm_{capability} in another")
    if _registered_for == capability:
        return
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise PruneVidError(f"TensorRT {trt.__version__} takes no kernels from Python: 10.9 or newer does")
    _register_dpc_knn(capability)
    _register_refine_segments(capability)
    _register_group_topk(capability)
    _registered_for = capability


def _register_dpc_knn(capability: int) -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    from prunevid.export.engine.kernels import dpc_knn
    from prunevid.export.engine.kernels.compiler import compile_kernel

    name = f"{NAMESPACE}::DpcKnn"

    # The attribute is an array of one: TensorRT 10 makes an int of it in a way that NumPy 2.4 refuses.
    @trtp.register(name)
    def describe(
        squared_distances: trtp.TensorDesc,
        valid: trtp.TensorDesc,
        clusters: trtp.TensorDesc,
        neighbours: npt.NDArray[np.int64],
    ) -> trtp.TensorDesc:
        return trtp.from_shape_expr(valid.shape_expr, dtype=trt.int64)

    @trtp.autotune(name)
    def formats(
        squared_distances: trtp.TensorDesc,
        valid: trtp.TensorDesc,
        clusters: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32*FP16*BF16, INT32, INT64, INT64")]

    @trtp.aot_impl(name)
    def kernel(
        squared_distances: trtp.TensorDesc,
        valid: trtp.TensorDesc,
        clusters: trtp.TensorDesc,
        neighbours: npt.NDArray[np.int64],
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        tokens = _size(valid, 1, MAX_TOKENS)
        compiled = compile_kernel(
            dpc_knn.dpc_knn_kernel,
            [_pointer(squared_distances), _pointer(valid), _pointer(clusters), "i32", _pointer(outputs[0])],
            {"NEIGHBOURS": int(neighbours[0]), **dpc_knn.block_sizes(tokens)},
            dpc_knn.warps(tokens),
            capability,
        )
        groups, size = valid.shape_expr
        return _launch(compiled, groups, size)


def _register_refine_segments(capability: int) -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    from prunevid.export.engine.kernels import refine_segments
    from prunevid.export.engine.kernels.compiler import compile_kernel

    name = f"{NAMESPACE}::RefineSegments"

    @trtp.register(name)
    def describe(labels: trtp.TensorDesc) -> trtp.TensorDesc:
        return trtp.from_shape_expr(labels.shape_expr, dtype=trt.int64)

    @trtp.autotune(name)
    def formats(labels: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("INT64, INT64")]

    @trtp.aot_impl(name)
    def kernel(
        labels: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        _size(labels, 0, MAX_FRAMES)
        compiled = compile_kernel(
            refine_segments.refine_segments_kernel,
            [_pointer(labels), "i32", _pointer(outputs[0])],
            {"BLOCK": MAX_FRAMES},
            refine_segments.WARPS,
            capability,
        )
        return _launch(compiled, 1, labels.shape_expr[0])


def _register_group_topk(capability: int) -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    from prunevid.export.engine.kernels import group_topk
    from prunevid.export.engine.kernels.compiler import compile_kernel

    name = f"{NAMESPACE}::GroupTopK"

    @trtp.register(name)
    def describe(scores: trtp.TensorDesc, group: trtp.TensorDesc, quota: trtp.TensorDesc) -> trtp.TensorDesc:
        return trtp.from_shape_expr(scores.shape_expr, dtype=trt.int64)

    @trtp.autotune(name)
    def formats(
        scores: trtp.TensorDesc, group: trtp.TensorDesc, quota: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32*FP16*BF16, INT64, INT64, INT64")]

    @trtp.aot_impl(name)
    def kernel(
        scores: trtp.TensorDesc,
        group: trtp.TensorDesc,
        quota: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        compiled = compile_kernel(
            group_topk.group_topk_kernel,
            [_pointer(scores), _pointer(group), _pointer(quota), "i32", _pointer(outputs[0])],
            {"BLOCK": group_topk.BLOCK, "ROWS": group_topk.ROWS},
            group_topk.WARPS,
            capability,
        )
        return _launch(compiled, trtp.cdiv(scores.shape_expr[0], group_topk.ROWS), scores.shape_expr[0])


def _pointer(tensor: Any) -> str:
    """Triton's name of a pointer to what a tensor holds."""
    import tensorrt as trt

    kinds = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16", trt.int32: "i32", trt.int64: "i64"}
    return f"*{kinds[tensor.dtype]}"


def _size(tensor: Any, axis: int, limit: int) -> int:
    """The size of a dimension, or the largest possible one if it varies.

    TensorRT keeps one kernel of a node for all optimization profiles, so a kernel must not depend on one of them.
    Raises PruneVidError where a profile goes beyond the limit.
    """
    shape = tensor.shape
    largest = int(shape.max[axis] if shape.is_dynamic else shape[axis])
    if largest > limit:
        raise PruneVidError(f"a plugin takes up to {limit} tokens or frames along an axis, not {largest}")
    return largest if int(shape[axis]) >= 0 else limit


def _launch(compiled: Any, programs: Any, size: Any) -> Any:
    """What TensorRT launches: a kernel with one argument beside tensors, a size. Programs and size may be symbols."""
    import tensorrt.plugin as trtp

    launch = trtp.KernelLaunchParams()
    launch.grid_x = programs
    launch.block_x = compiled.threads
    launch.shared_mem = compiled.shared_bytes
    arguments = trtp.SymIntExprs(1)
    arguments[0] = trtp.SymInt32(size)
    return compiled.name, compiled.ptx, launch, arguments
