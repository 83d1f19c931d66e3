"""The operators that an export writes, by where it writes them. A bundle's graphs hold no others.

So nothing in a graph runs longer than its inputs say: `Scan` has one step a frame, `If` none, and there is no
`Loop`; functions call no functions, and what stands inside `Scan` and `If` contains neither. A test holds this
list against the graphs of every dialect, precision and recipe, in both directions.
"""

from __future__ import annotations

from prunevid.onnx_file import OnnxFile, OnnxNode

IR_VERSION = 10
OPSETS = {"": (20, 21), "com.microsoft": (1,), "prunevid": (1,)}
"""The versions of each operator domain that exports are written in."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GRAPH = _names(
    "Add And AveragePool Cast CastLike Concat Constant Conv Cos Div Equal Expand Gather Gelu Gemm Greater "
    "LayerNormalization Less LessOrEqual MatMul Max Mul Not Range ReduceMax ReduceMean ReduceSum ReduceSumSquare "
    "Reshape Resize ScatterElements Shape Sigmoid Sin Slice Softmax Sqrt Squeeze Sub Transpose Unsqueeze Where "
    "prunevid.DpcKnn prunevid.GroupTopK prunevid.RefineSegments"
)
GRAPH_OPERATORS = {
    "ort": _GRAPH
    | _names(
        "If SimplifiedLayerNormalization com.microsoft.DynamicQuantizeMatMul com.microsoft.GroupQueryAttention "
        "com.microsoft.MatMulNBits com.microsoft.MultiHeadAttention com.microsoft.RotaryEmbedding"
    ),
    "portable": _GRAPH | _names("DequantizeLinear GreaterOrEqual Or QuantizeLinear Split"),
}
"""By dialect, the operators of graphs themselves, as `DOMAIN.NAME`, or `NAME` where they are ONNX's own."""

FUNCTION_OPERATORS = {
    "prunevid.DpcKnn": _names(
        "And ArgMin Cast CastLike Constant Div Equal Expand GatherElements Greater GreaterOrEqual Less Log MatMul Max "
        "Min Mul Or Range ReduceMax ReduceMin ReduceSum ScatterElements Shape Squeeze Sub TopK Transpose Unsqueeze "
        "Where"
    ),
    "prunevid.GroupTopK": _names(
        "Add Cast CastLike Concat Constant Equal Expand Gather Less Max Min Mul Range ReduceSum Reshape "
        "ScatterElements Shape Squeeze Sub TopK Unsqueeze Where"
    ),
    "prunevid.RefineSegments": _names(
        "And ArgMax Cast CastLike Concat Constant Equal Gather Greater GreaterOrEqual Less Mul Not Range ReduceMax "
        "ReduceSum Scan Shape Slice Squeeze Transpose Unsqueeze Where"
    ),
}
"""The operators inside the functions that a file may bring along, by the function's name."""

BODY_OPERATORS = {
    "If": _names("Cast QuantizeLinear Reshape ScatterND Slice Transpose com.microsoft.GroupQueryAttention"),
    "Scan": _names("Add And Equal Greater GreaterOrEqual Identity Where"),
}
"""The operators inside the operators that contain graphs."""


def check_operators(file: OnnxFile, dialect: str) -> None:
    """Raise ValueError where a file has an operator that no export writes there, or is in another version of them."""
    if file.ir_version != IR_VERSION:
        raise ValueError(f"it is in version {file.ir_version} of the format, not {IR_VERSION}")
    _check_opsets(file.opsets)
    _check_nodes(file.nodes, GRAPH_OPERATORS[dialect])
    names = [full_name(function.domain, function.name) for function in file.functions]
    for name, function in zip(names, file.functions, strict=True):
        if name not in FUNCTION_OPERATORS or names.count(name) > 1:
            raise ValueError(f"it defines the operator {name[:80]!r}, which no export does")
        _check_opsets(function.opsets)
        _check_nodes(function.nodes, FUNCTION_OPERATORS[name])


def full_name(domain: str, operator: str) -> str:
    """An operator's name with its domain; ONNX's own are called by their names alone."""
    return f"{domain}.{operator}" if domain else operator


def _check_nodes(nodes: tuple[OnnxNode, ...], allowed: frozenset[str]) -> None:
    for node in nodes:
        name = full_name(node.domain, node.operator)
        if name not in allowed:
            raise ValueError(f"it holds the operator {name[:80]!r}, which no export writes there")
        if node.bodies and name not in BODY_OPERATORS:
            raise ValueError(f"it has a graph inside the operator {name!r}, which no export writes")
        for body in node.bodies:
            _check_nodes(body, BODY_OPERATORS[name])


def _check_opsets(opsets: dict[str, int]) -> None:
    for domain, version in opsets.items():
        if version not in OPSETS.get(domain, ()):
            raise ValueError(f"it needs version {version} of the operators {domain[:80]!r}, which no export does")
