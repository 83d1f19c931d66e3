"""Which ONNX operators, element types and opsets each release of TensorRT's parser takes: data, with its sources.

Sources, all of the parser's repository github.com/onnx/onnx-tensorrt:

- `docs/operators.md` of TensorRT 10.1 (commit 96e7811), 10.14 (c727277), 10.15 (fa5aa9f), 10.16 (6bde659) and 11.1
  (7c51a63) was read; 10.16 differs from 10.15 in nothing but its number.
- `docs/Changelog.md` at 10.15 (fa5aa9f) tells in which of the releases between 10.1 and 10.15 an operator or a type
  came or a restriction went. Releases 10.3 and 10.13 are known by way of these two, not from their own table.
- 11.0's operators are from the release notes in github.com/NVIDIA/TensorRT (CHANGELOG.md at v11.1).

Where that table says less than the parser's code does, the code is followed; `FROM_CODE` names each case.
"""

from __future__ import annotations

# Families of element types, in NumPy's words.
_F = "float32 float16 bfloat16"
_I = "int32 int64"
_B = "bool"

# The oldest release that is known: JetPack 6.2 has it.
OLDEST = (10, 3)

# Operators and types of the oldest release: 10.1's table, to which the change log adds no operator until 10.4.
_FIRST: tuple[tuple[str, str], ...] = (
    (
        _F,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM "
        "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization "
        "PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign "
        "Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        f"{_F} {_I}",
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min "
        "Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum "
        "TopK",
    ),
    (
        f"{_F} {_I} {_B}",
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot "
        "Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    (f"{_F} {_I} {_B} uint8", "Cast CastLike"),
    ("float32 float16", "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    (_B, "And Not Or Xor"),
    ("int8 int4 float8_e4m3fn", "DequantizeLinear"),
)

# What came later, by release. An operator that is there already gains types.
_LATER: dict[tuple[int, int], tuple[tuple[str, str], ...]] = {
    (10, 4): (("float32 float16", "BlackmanWindow HammingWindow HannWindow"),),
    (10, 5): (("float32", "STFT"),),
    (10, 8): (("float4_e2m1", "Constant ConstantOfShape DequantizeLinear"),),
    (10, 12): ((_I, "Pow"),),
    (10, 14): ((f"{_F} int8 float8_e4m3fn", "Attention"),),
    (10, 15): ((_F, "RMSNormalization RotaryEmbedding"), ("float32 float16 bfloat16 int32", "TensorScatter")),
    (11, 0): ((_F, "Swish"),),
}

# Types that the table leaves out and the code takes.
FROM_CODE: dict[str, tuple[str, str]] = {
    "NonZero": (
        "bfloat16 int32 int8 bool",
        "onnxOpImporters.cpp at 10.1, 10.6 and 10.16 lists the types that it takes; int64, which it lists as well, is "
        "left out, since the layer behind it does not (TensorRT's operator reference, NonZero)",
    ),
    "CumSum": (
        _I,
        "onnxOpImporters.cpp at 10.1 makes a loop of sums of it, which take integers; since 10.8 it is the layer "
        "ICumulativeLayer, whose table in NvInfer.h has both integer types",
    ),
    "Scan": (
        f"{_I} {_B}",
        "onnxOpImporters.cpp at 10.1 makes the same layers of it as of Loop, whose row has these types",
    ),
}

# Newest opset, from the release on in whose table it stands; but 21 where the oldest table says 20: the code at 10.1
# refuses no opset (importModel in ModelImporter.cpp), has its INT4 weights, and takes blocks from the scale's shape
# (QuantDequantLinearHelper in onnxOpImporters.cpp). What else came with 21 are types, and another GroupNormalization.
_OPSETS = {(10, 3): 21, (10, 14): 24}
# Operators that mean something else from an opset on than releases before another one know.
CHANGED = {"GroupNormalization": (21, (10, 14))}

# Codes that values are quantized to.
CODES = frozenset({"int8", "int4", "float8_e4m3fn"})
# Sizes of the blocks that int4 weights can have (TensorRT's page "Quantization Schemes").
INT4_BLOCKS = (64, 128)

# Inputs that must be constants when the engine is built, by operator and number of the input.
CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "Dropout": (2,),
    "OneHot": (1,),
    "STFT": (1, 2),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
# Pad's axes as well, before this release.
PAD_TAKES_AXES = (10, 4)

# Types of inputs that are not those that the table speaks of, by operator and number of the input.
INPUT_TYPES = {"Where": {0: frozenset({_B})}}

# Outputs behind the first that must not be used.
ONE_OUTPUT = frozenset({"Attention", "BatchNormalization", "LayerNormalization", "MaxPool"})

# The values that attributes can have, the default first; of a list, those that each of its numbers can have.
FIXED_ATTRIBUTES: dict[str, dict[str, tuple[object, ...]]] = {
    "Attention": {"softcap": (0.0,)},
    **dict.fromkeys(("AveragePool", "MaxPool"), {"dilations": (1,)}),
    "BatchNormalization": {"training_mode": (0,)},
    "LSTM": {"input_forget": (0,), "layout": (0,)},
    "LpNormalization": {"p": (2, 1)},
    "LpPool": {"p": (2, 1), "dilations": (1,)},
    "Resize": {
        "antialias": (0,),
        "coordinate_transformation_mode": (
            *("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn"),
        ),
        "keep_aspect_ratio_policy": ("stretch",),
    },
    # Of ONNX's numbers of types, float32 and float16.
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), {"dtype": (1, 10)}),
    "ScatterND": {"reduction": ("none",)},
    "TensorScatter": {"mode": ("linear",)},
}
# Attributes that must not be there at all.
REFUSED_ATTRIBUTES = {
    "Attention": ("softmax_precision",),
    "Constant": ("sparse_value", "value_string", "value_strings"),
}

# TopK takes fewer than this many.
TOPK_LIMIT = 3840

# Types that an engine can have as inputs and outputs; uint8 goes no further than that.
IO_TYPES = frozenset(f"{_F} {_I} {_B} int8 uint8".split())
# Types that constants can have (convertDtype in the code at 10.1; float4 later).
CONSTANT_TYPES = IO_TYPES | frozenset(["float64", "float8_e4m3fn", "int4", "float4_e2m1"])


def operators(release: tuple[int, int]) -> dict[str, frozenset[str]]:
    """The operators that a release parses, and the element types that each takes, in NumPy's words.

    Raises ValueError for a release older than `OLDEST`.
    """
    if release < OLDEST:
        raise ValueError(f"no table for TensorRT {release[0]}.{release[1]}: the oldest is {OLDEST[0]}.{OLDEST[1]}")
    taken: dict[str, set[str]] = {}
    rows = list(_FIRST) + [row for since, added in _LATER.items() if since <= release for row in added]
    rows += [(types, operator) for operator, (types, _) in FROM_CODE.items()]
    for types, names in rows:
        for name in names.split():
            taken.setdefault(name, set()).update(types.split())
    return {name: frozenset(types) for name, types in taken.items()}


def newest_opset(release: tuple[int, int]) -> int:
    """The newest opset of ONNX's own operators that a release parses."""
    return max(opset for since, opset in _OPSETS.items() if since <= release)
