"""The parsers that the lint speaks for: one of TensorRT's releases, or TensorRT-RTX's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunevid.errors import PruneVidError
from prunevid.export.engine import plugins
from prunevid.export.lint import tensorrt, tensorrt_rtx
from prunevid.export.lint.scope import Scope

# How a version of TensorRT-RTX is told from TensorRT's: "rtx-1.7.1.116".
RTX = "rtx-"
_OLDEST_OPSET = 9


@dataclass(frozen=True)
class Parser:
    """What a parser takes.

    operators: the types that each takes, in NumPy's words. opsets: oldest and newest, None where none is refused.
    plugins: whether the `prunevid` operators are plugins there. changed: operators whose newer meaning it does not
    know. constant_inputs: numbers of inputs that must be constants. fixed_attributes: the values that attributes can
    have. topk_most: the largest K. int4_blocks: sizes of blocks, None for any. io_types: of inputs and outputs.
    input_types: of inputs that `operators` does not speak of. code_constants: where constants of quantized codes can
    stand beside DequantizeLinear. least_head: the smallest head of attention. read_as: types that it takes for others.
    """

    title: str
    operators: Mapping[str, frozenset[str]]
    opsets: tuple[int, int] | None
    plugins: bool
    changed: frozenset[str]
    constant_inputs: Mapping[str, tuple[int, ...]]
    fixed_attributes: Mapping[str, Mapping[str, tuple[object, ...]]]
    topk_most: int
    int4_blocks: tuple[int, ...] | None
    io_types: frozenset[str]
    input_types: Mapping[str, Mapping[int, frozenset[str]]]
    code_constants: Mapping[str, frozenset[tuple[str, int]]] = field(default_factory=dict)
    least_head: int = 0
    read_as: Mapping[str, str] = field(default_factory=dict)

    def type_of(self, scope: Scope, name: str) -> str:
        """The element type that it takes a value to be of; empty where that is not known."""
        kind = scope.types.get(name, "")
        return self.read_as.get(kind, kind)


def parser_of(version: str) -> Parser:
    """The parser of a version: "10.3", "10.13.2.6", or "rtx-1.7.1.116" of TensorRT-RTX.

    Raises PruneVidError for what is no version, and for one older than those that are known.
    """
    if version.startswith(RTX):
        return _rtx(version.removeprefix(RTX))
    release = release_of(version)
    if release < tensorrt.OLDEST:
        raise _too_old("TensorRT", version, tensorrt.OLDEST)
    constants = dict(tensorrt.CONSTANT_INPUTS)
    if release < tensorrt.PAD_TAKES_AXES:
        constants["Pad"] = (3,)
    return Parser(
        title=f"TensorRT {version}",
        operators=tensorrt.operators(release),
        opsets=(_OLDEST_OPSET, tensorrt.newest_opset(release)),
        plugins=plugins.available(release),
        changed=frozenset(name for name, (_, known) in tensorrt.CHANGED.items() if release < known),
        constant_inputs=constants,
        fixed_attributes=tensorrt.FIXED_ATTRIBUTES,
        topk_most=tensorrt.TOPK_LIMIT - 1,
        int4_blocks=tensorrt.INT4_BLOCKS,
        io_types=tensorrt.IO_TYPES,
        input_types={"Pow": {1: tensorrt.operators(release)["Pow"]}, **tensorrt.INPUT_TYPES},
    )


def release_of(version: str) -> tuple[int, int]:
    """Major and minor number of a version ("10.13.2.6" is (10, 13)). Raises PruneVidError for what is none."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        raise PruneVidError(f"{version!r} is no version of TensorRT: versions look like 10.13.2") from None
    return major, minor


def _rtx(version: str) -> Parser:
    if release_of(version) < tensorrt_rtx.OLDEST:
        raise _too_old("TensorRT-RTX", version, tensorrt_rtx.OLDEST)
    return Parser(
        title=f"TensorRT-RTX {version}",
        operators=tensorrt_rtx.operators(tensorrt.operators(tensorrt_rtx.BASE)),
        opsets=None,
        plugins=False,
        changed=frozenset(),
        constant_inputs={
            name: places for name, places in tensorrt.CONSTANT_INPUTS.items() if name not in tensorrt_rtx.VARIABLE
        },
        fixed_attributes={**tensorrt.FIXED_ATTRIBUTES, **tensorrt_rtx.FIXED_ATTRIBUTES},
        topk_most=tensorrt_rtx.TOPK_MOST,
        int4_blocks=None,
        io_types=tensorrt.IO_TYPES | tensorrt_rtx.MORE_IO_TYPES,
        input_types={**tensorrt.INPUT_TYPES, **tensorrt_rtx.INPUT_TYPES},
        code_constants=tensorrt_rtx.CODE_CONSTANTS,
        least_head=tensorrt_rtx.LEAST_HEAD,
        read_as=tensorrt_rtx.READ_AS,
    )


def _too_old(product: str, version: str, oldest: tuple[int, int]) -> PruneVidError:
    return PruneVidError(f"{product} {version} is too old: its parser is known from {oldest[0]}.{oldest[1]} on")
