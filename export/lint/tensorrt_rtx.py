"""What TensorRT-RTX takes otherwise than TensorRT does: data, with reasons.

Every row was found by giving the real parser and builder (tensorrt_rtx 1.7.1.116) ONNX's own node tests, in every
element type and with constants in the place of inputs; `tests/test_tensorrt_parser.py` does so again. Rows are
differences from `BASE`'s documents. Where TensorRT's code may well do the same, the row says so: it was not tried
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# The release that was tried; newer ones are taken to be like it.
OLDEST = (1, 7)
# The TensorRT that it is compared with: the newest whose documents were read.
BASE = (11, 1)


class Difference(NamedTuple):
    """Operators and element types that are taken (or not) otherwise than by TensorRT, and why."""

    operators: str
    types: str
    why: str


# Operators that are not there at all.
MISSING = (
    Difference("NonZero DeformConv", "", "a plugin of TensorRT's, and TensorRT-RTX comes without its plugin library"),
    Difference("NonMaxSuppression", "", "parsed, but the builder has no implementation of it"),
    Difference("RoiAlign", "", "its plugin asks for CUDA's driver while the graph is parsed, and a build needs none"),
)

# Types that an operator does not take.
REFUSED = (
    Difference(
        "Celu GRU HardSwish LpNormalization LpPool",
        "bfloat16",
        "the parser adds constants in float32, which strongly typed networks do not mix with other types",
    ),
    Difference("Attention", "float32", "the builder has no kernel for it, and does not take it apart"),
    Difference("Celu", "float16", "as for bfloat16"),
    Difference("ConvTranspose", "bfloat16", "parsed, but the builder finds no type for its output"),
    Difference("GridSample", "float16", "the parser takes float32 alone"),
    Difference("Relu TensorScatter", "int32", "the layer does not take it; Relu takes int64"),
    Difference(
        "ReduceL2 ReduceLogSum ReduceLogSumExp", "int32 int64", "the layers of roots and logarithms take no integers"
    ),
)

# Types that an operator takes beyond the table's.
TAKEN = (
    Difference(
        "Abs Add ArgMax ArgMin Cast CastLike Concat DepthToSpace Div Equal Erf Expand EyeLike Flatten Gather "
        "GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max MaxPool Min Mul Neg OneHot Pad "
        "ReduceMax ReduceMin Relu Reshape Resize ReverseSequence Scatter ScatterElements ScatterND Shape Shrink Sign "
        "Size Slice SpaceToDepth Split Squeeze Sub Tile TopK Transpose Trilu Unsqueeze Upsample Where",
        "int8",
        "TensorRT's table left int8 out together with implicit quantization; the layers take it",
    ),
    Difference("Equal Pad Scatter ScatterElements ScatterND", "bool", "the table leaves it out, the layers take it"),
    Difference("Clip", "int32 int64 int8", "the table leaves them out, the parser makes Min and Max of it"),
    Difference(
        "Flatten Identity Reshape Transpose",
        "float8_e4m3fn float4_e2m1 int4",
        "a change of shape moves any type",
    ),
    Difference("Shape Size", "float8_e4m3fn float4_e2m1 int4 uint8", "asked for its shape alone"),
    Difference("Equal Identity", "uint8", "the table leaves it out, the layers take it"),
    Difference("Dropout", "float8_e4m3fn", "passed on untouched"),
    Difference("STFT", "bfloat16 float16", "the table has float32 alone"),
)

# What is taken and the lint refuses all the same.
STRICTER = (
    Difference("QuantizeLinear", "uint8", "its codes are made as int8, from -128 to 127, which is not what ONNX says"),
    Difference("QuantizeLinear DequantizeLinear", "float8_e4m3fn", "zero points other than zero are not looked at"),
    Difference(
        "operators of com.microsoft, SimplifiedLayerNormalization",
        "",
        "of ONNX Runtime's operators the parser has some (MultiHeadAttention, GroupQueryAttention, MatMulNBits, "
        "RotaryEmbedding, SkipSimplifiedLayerNormalization, QMoE), each within limits that no document tells, and it "
        "takes any other for ONNX's of the same name; TensorRT has none, and a bundle is for both",
    ),
    Difference(
        "TopK",
        "",
        "the builder holds K against 3840 at a profile's smallest and usual sizes alone, and what an engine does at "
        "larger ones is not told",
    ),
)

# A float64 is read as a float32, wherever it stands. TensorRT's code at 10.1 does the same (convertDtype), and its
# documents say nothing of it.
READ_AS = {"float64": "float32"}
# TopK takes so many; "up to 3840" in the builder's words, "less than 3840" in the parser's document.
TOPK_MOST = 3840
# Attention has no kernel for heads that are smaller.
LEAST_HEAD = 16
# Operators whose inputs need not be constants, though the table wants that of one.
VARIABLE = frozenset({"CumSum", "OneHot"})
_NUMBERS = frozenset(["float32", "float16", "bfloat16", "int32", "int64"])
# Types of inputs that are not those that the table speaks of, by operator and number of the input.
INPUT_TYPES: dict[str, dict[int, frozenset[str]]] = {
    "LSTM": {7: frozenset({"float32"})},
    "OneHot": {0: _NUMBERS | {"int8"}, 1: _NUMBERS},
}
# Constants of quantized codes that are taken where they are not dequantized: types and numbers of inputs.
CODE_CONSTANTS: dict[str, frozenset[tuple[str, int]]] = {
    "Clip": frozenset({("int8", 1), ("int8", 2)}),
    "Dropout": frozenset({("float8_e4m3fn", 1)}),
    "OneHot": frozenset({("uint8", 1)}),
    "Pow": frozenset({("uint8", 1)}),
}
# Types of inputs and outputs beyond the table's.
MORE_IO_TYPES = frozenset({"float8_e4m3fn", "float4_e2m1", "int4"})
# Attributes and the values that they can have, where those are others than the table's.
FIXED_ATTRIBUTES: dict[str, dict[str, tuple[object, ...]]] = {
    # The reductions are a plugin of TensorRT's.
    "ScatterElements": {"reduction": ("none",)},
    "LSTM": {"input_forget": (0,)},
}


def operators(base: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """The operators that TensorRT-RTX takes and their types, made of those that TensorRT takes."""
    taken = {name: set(types) for name, types in base.items()}
    for row in TAKEN:
        for name in row.operators.split():
            taken[name].update(row.types.split())
    for row in REFUSED:
        for name in row.operators.split():
            taken[name].difference_update(row.types.split())
    missing = {name for row in MISSING for name in row.operators.split()}
    return {name: frozenset(types) for name, types in taken.items() if name not in missing}
