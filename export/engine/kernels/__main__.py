"""What every kernel takes of every target GPU, without the GPU: `python -m prunevid.export.engine.kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prunevid.export.engine.kernels import MAX_FRAMES, MAX_TOKENS, dpc_knn, group_topk, refine_segments
from prunevid.export.engine.kernels.compiler import GPUS, CompiledKernel, compile_kernel, resources_of


class Case(NamedTuple):
    """A kernel for a size of problem."""

    operator: str
    size: str
    kernel: CompiledKernel


def cases(capability: int, element: str = "fp32") -> Iterator[Case]:
    """The kernels as TensorRT gets them for one GPU: a real size and the largest. element: Triton's name of a float."""
    for tokens in (196, MAX_TOKENS):
        types = [f"*{element}", "*i32", "*i64", "i32", "*i64"]
        constants = {"NEIGHBOURS": 7, **dpc_knn.block_sizes(tokens)}
        compiled = compile_kernel(dpc_knn.dpc_knn_kernel, types, constants, dpc_knn.warps(tokens), capability)
        yield Case("DpcKnn", f"N = {tokens}", compiled)
    types = ["*i64", "i32", "*i64"]
    kernel = refine_segments.refine_segments_kernel
    compiled = compile_kernel(kernel, types, {"BLOCK": MAX_FRAMES}, refine_segments.WARPS, capability)
    yield Case("RefineSegments", f"T = {MAX_FRAMES}", compiled)
    types = [f"*{element}", "*i64", "*i64", "i32", "*i64"]
    constants = {"BLOCK": group_topk.BLOCK, "ROWS": group_topk.ROWS}
    compiled = compile_kernel(group_topk.group_topk_kernel, types, constants, group_topk.WARPS, capability)
    yield Case("GroupTopK", "any", compiled)


def main() -> None:
    """Print a Markdown table."""
    print("| GPU | operator | size | threads | registers per thread | shared bytes | spilled bytes |")
    print("|---|---|---|---|---|---|---|")
    for capability, name in GPUS.items():
        for case in cases(capability):
            found = resources_of(case.kernel)
            print(
                f"| sm_{capability} ({name}) | {case.operator} | {case.size} | {case.kernel.threads} "
                f"| {found.registers} | {found.shared_bytes} | {found.spilled_bytes} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
