"""Kernels to PTX for a GPU that need not be there, and what a kernel takes of it.

TensorRT embeds the PTX into its engines and hands a kernel its tensors and sizes, nothing else. What Triton adds of its
own is removed here: two hidden pointers behind the arguments, and notes of where the source lay.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from prunevid.errors import PruneVidError

GPUS = {87: "Jetson Orin", 89: "Ada", 90: "Hopper", 110: "Jetson Thor", 120: "Blackwell workstation"}
"""Compute capabilities, times ten, that kernels are compiled for in tests."""

# The GPUs that kernels can be compiled for, and the PTX version of a GPU's first CUDA toolkit (12.0 for those older):
# every driver that knows the GPU takes it, which is not true of the newest version, Triton's own choice.
_PTX_VERSIONS = {80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 100: 86, 103: 88, 110: 90, 120: 87, 121: 88}

_PARAMETERS = re.compile(r"\.entry \w+\((.*?)\n\)", re.DOTALL)
_USE = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as PTX text, its entry's name, the threads of a program and the bytes of shared memory it is given."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    capability: int


@dataclass(frozen=True)
class Resources:
    """What a thread takes of registers and a program of shared memory (bytes), and the bytes spilled to memory."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_kernel(
    kernel: Any, types: Sequence[str], constants: Mapping[str, int], warps: int, capability: int
) -> CompiledKernel:
    """Compile a Triton kernel ahead of time.

    types: Triton's types of the arguments, in order (`*fp32`, `i32`); constants: the values of the rest, by name;
    capability: of the GPU, times ten (87 is sm_87). Raises PruneVidError for a GPU that is not known.
    """
    if capability not in _PTX_VERSIONS:  # LLVM would end the process
        known = ", ".join(f"sm_{number}" for number in _PTX_VERSIONS)
        raise PruneVidError(f"there are no kernels for sm_{capability}: known are {known}")
    signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, dict(constants))
    # Multiply and add round on their own, as they do in the graphs.
    options = {"num_warps": warps, "enable_fp_fusion": False, "ptx_version": _PTX_VERSIONS[capability]}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or getattr(metadata, "profile_scratch_size", 0) or metadata.num_ctas != 1:
        raise PruneVidError(f"{metadata.name} needs more of a launch than its arguments: it was compiled for debugging")
    ptx = _without_hidden_arguments(compiled.asm["ptx"], len(types))
    return CompiledKernel(metadata.name, ptx, 32 * metadata.num_warps, metadata.shared, capability)


def resources_of(kernel: CompiledKernel) -> Resources:
    """Assemble the PTX with the assembler that comes with Triton, and read off what it takes."""
    suffix = "a" if kernel.capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.ptx)
        assembler = get_ptxas(kernel.capability).path
        command = [assembler, "-v", f"--gpu-name=sm_{kernel.capability}{suffix}", str(source), "-o", f"{folder}/out"]
        found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode:
        raise PruneVidError(f"{kernel.name} does not assemble for sm_{kernel.capability}: {found.stderr.strip()}")
    registers, spills = _USE.search(found.stderr), _SPILLS.search(found.stderr)
    if registers is None or spills is None:
        raise PruneVidError(f"the assembler says nothing of {kernel.name}'s registers: {found.stderr.strip()}")
    return Resources(int(registers[1]), kernel.shared_bytes, int(spills[1]) + int(spills[2]))


def _without_hidden_arguments(ptx: str, arguments: int) -> str:
    """Drop what Triton appends to the arguments (scratch memory that these kernels do not use)."""
    match = _PARAMETERS.search(ptx)
    if match is None:
        raise PruneVidError("Triton's PTX has no entry point with arguments")
    declared = match[1].split(",")
    for hidden in declared[arguments:]:
        name = hidden.split()[-1]
        if re.search(rf"\b{name}\b", ptx[match.end() :]):
            raise PruneVidError(f"the kernel uses Triton's scratch memory ({name}), which TensorRT does not give it")
    return ptx[: match.start(1)] + ",".join(declared[:arguments]) + ptx[match.end(1) :]
