"""Graphs at the edge of what TensorRT-RTX takes and one step beyond it: its parser and builder, and the lint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import needs
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx.helper import (
    make_function,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor,
    make_tensor_value_info,
)
from rtx_parser import Judge, Question, judge

from prunevid.export.lint.unsupported import unsupported

needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")

RTX = "rtx-1.7.1.116"
Value = tuple[str, int, Sequence[int | str | None] | None]
X: Value = ("x", T.FLOAT, [4, 6])
Y: Value = ("y", T.FLOAT, None)


class Edge(NamedTuple):
    """A graph, whether it is taken, and the sizes that its symbolic dimensions and host inputs have."""

    name: str
    model: onnx.ModelProto
    taken: bool
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    values: dict[str, tuple[tuple[int, ...], ...]] = {}


def graph_of(
    nodes: list[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value], *constants: onnx.TensorProto
) -> onnx.GraphProto:
    infos = [[make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    return make_graph(nodes, "example", *infos, list(constants))


def model_of(graph: onnx.GraphProto, opset: int = 20, *functions: onnx.FunctionProto) -> onnx.ModelProto:
    imports = [make_opsetid(domain, version) for domain, version in (("", opset), ("other", 1), ("com.microsoft", 1))]
    return make_model(graph, opset_imports=imports, functions=list(functions))


def one(operator: str, *inputs: str, x: Value = X, y: Value = Y, more: Sequence[Value] = (), **rest: Any) -> Any:
    """A graph of one node that makes y; `constants` and `opset` as they are, other attributes the node's."""
    constants, opset = rest.pop("constants", ()), rest.pop("opset", 20)
    node = make_node(operator, list(inputs), [y[0]], name="it", **rest)
    return model_of(graph_of([node], [x, *more], [y], *constants), opset)


def whole(name: str, *numbers: int) -> onnx.TensorProto:
    return make_tensor(name, T.INT64, [len(numbers)], numbers)


def dequantized(
    dims: list[int],
    scales: Sequence[float],
    shape: list[int],
    kind: int = T.INT8,
    zero: float | None = None,
    **how: int,
) -> onnx.ModelProto:
    """x times weights that are dequantized."""
    rows = [make_tensor("w", kind, dims, [1] * int(np.prod(dims))), make_tensor("s", T.FLOAT, shape, scales)]
    if zero is not None:
        rows.append(make_tensor("z", kind, shape, [zero] * len(scales)))
    nodes = [make_node("DequantizeLinear", [row.name for row in rows], ["d"], **how), make_node("MatMul", "xd", ["y"])]
    return model_of(graph_of(nodes, [("x", T.FLOAT, [4, dims[0]])], [("y", T.FLOAT, None)], *rows), 21)


def quantized(zero: onnx.TensorProto, x: int = T.FLOAT, scale: int = T.FLOAT) -> onnx.ModelProto:
    """x to codes and back."""
    nodes = [make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    constants = (make_tensor("s", scale, [], [0.5]), zero)
    return model_of(graph_of(nodes, [("x", x, [4, 6])], [("y", scale, [4, 6])], *constants), 21)


def inside(nodes: list[onnx.NodeProto], *, condition: bool = True) -> onnx.ModelProto:
    """A loop that runs n times, with these nodes from v to w in its body."""
    ends = [make_node("Identity", ["c"], ["d"]), *nodes]
    body = graph_of(ends, [("i", T.INT64, []), ("c", T.BOOL, []), ("v", *X[1:])], [("d", T.BOOL, []), ("w", *X[1:])])
    node = make_node("Loop", ["n", "go" if condition else "", "x"], ["y"], body=body)
    start = [make_tensor("go", T.BOOL, [], [True])] if condition else []
    return model_of(graph_of([node], [("n", T.INT64, []), X], [("y", *X[1:])], *start))


def branches(then: list[onnx.NodeProto], otherwise: list[onnx.NodeProto], ranks: tuple[int, int] = (2, 2)) -> Any:
    unknown: list[int | str | None] = [None]
    sides = [
        graph_of(nodes, [], [(nodes[-1].output[0], T.FLOAT, unknown * rank)])
        for nodes, rank in zip((then, otherwise), ranks, strict=True)
    ]
    node = make_node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1])
    return model_of(graph_of([node], [X, ("c", T.BOOL, [])], [Y], whole("flat", -1)))


def called(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A function of another domain, from a to b."""
    body = make_function("other", "F", ["a"], ["b"], list(nodes), [make_opsetid("", 20)])
    return model_of(graph_of([make_node("F", ["x"], ["y"], domain="other")], [X], [("y", T.FLOAT, None)]), 20, body)


def topk(k: int | None, kind: int = T.FLOAT, length: int | str = 6000) -> onnx.ModelProto:
    constants = [] if k is None else [whole("k", k)]
    inputs: list[Value] = [("x", kind, [length]), *([("k", T.INT64, [1])] if k is None else [])]
    outputs: list[Value] = [("y", kind, None), ("i", T.INT64, None)]
    return model_of(graph_of([make_node("TopK", ["x", "k"], ["y", "i"])], inputs, outputs, *constants))


def ranged(*nodes: onnx.NodeProto, x: Value = X) -> onnx.ModelProto:
    """Numbers from 0 to b in floating point; the nodes make b."""
    ends = [make_tensor("a", T.FLOAT, [], [0.0]), make_tensor("d", T.FLOAT, [], [1.0])]
    steps = [*nodes, make_node("Range", ["a", "b", "d"], ["y"])]
    return model_of(graph_of(steps, [x], [("y", T.FLOAT, ["r"])], *ends, make_tensor("no", T.INT64, [1], [0])))


def cast_to_shape(operator: str, *more: str, **attributes: Any) -> onnx.ModelProto:
    """A shape that comes from an input in floating point."""
    data = [] if operator == "ConstantOfShape" else ["x"]
    outputs: list[Value] = [("y", T.FLOAT, ["a", "b"]), *([("z", T.FLOAT, ["c", "d"])] if operator == "Split" else [])]
    nodes = [
        make_node("Cast", ["f"], ["s"], to=T.INT64),
        make_node(operator, [*data, "s", *more], [name for name, _, _ in outputs], **attributes),
    ]
    return model_of(graph_of(nodes, [("f", T.FLOAT, [2]), *([X] if data else [])], outputs, whole("ends", 4, 6)))


def attention(kind: int = T.FLOAT16, head: int = 64, **attributes: Any) -> Any:
    shape = [1, 4, 64, head]
    more = [("k", kind, shape), ("v", kind, shape)]
    return one(
        "Attention", "x", "k", "v", x=("x", kind, shape), y=("y", kind, shape), more=more, opset=23, **attributes
    )


def normalized(**attributes: Any) -> Any:
    constants = [make_tensor(name, T.FLOAT, [6], [1.0] * 6) for name in "abcd"]
    return one("BatchNormalization", "x", *"abcd", x=("x", T.FLOAT, [4, 6, 2]), constants=constants, **attributes)


def recurrent(**attributes: Any) -> Any:
    weights = [make_tensor("w", T.FLOAT, [1, 16, 2], [0.1] * 32), make_tensor("r", T.FLOAT, [1, 16, 4], [0.1] * 64)]
    return one("LSTM", "x", "w", "r", x=("x", T.FLOAT, [3, 1, 2]), constants=weights, hidden_size=4, **attributes)


def split(length: int, parts: int) -> onnx.ModelProto:
    names = [f"part {number}" for number in range(parts)]
    node = make_node("Split", ["x"], names, num_outputs=parts)
    return model_of(graph_of([node], [("x", T.FLOAT, [length])], [(name, T.FLOAT, None) for name in names]))


def resized(*nodes: onnx.NodeProto, constants: Sequence[onnx.TensorProto] = ()) -> onnx.ModelProto:
    """An image of any size by scales for its last two axes."""
    steps = [*nodes, make_node("Resize", ["x", "", "s"], ["y"], axes=[2, 3], mode="nearest")]
    inputs: list[Value] = [("x", T.FLOAT, [1, 1, "h", "w"])]
    return model_of(graph_of(steps, inputs, [("y", T.FLOAT, [1, 1, "a", "b"])], *constants))


IMAGE: Value = ("x", T.FLOAT, [1, 1, 4, 4])
ANY = {"x": ((1,), (100,), (6000,))}
NEGATED = [make_node("Neg", ["v"], ["w"])]
HALF: Value = ("h", T.FLOAT16, [4, 6])

EDGES = [
    Edge("eight dimensions", one("Neg", "x", x=("x", T.FLOAT, [1] * 8)), True),
    Edge("nine dimensions", one("Neg", "x", x=("x", T.FLOAT, [1] * 9)), False),
    Edge("an operator that it has", one("Gelu", "x"), True),
    Edge("an operator that it lacks", one("Unique", "x"), False),
    Edge("an operator that ONNX lacks", one("Frobnicate", "x"), False),
    Edge("a plugin that it lacks", one("NonZero", "x", y=("y", T.INT64, None)), False),
    Edge("an operator of ONNX Runtime's", one("FusedMatMul", "x", "x", domain="com.microsoft", transB=1), False),
    Edge("a function", called(make_node("Neg", ["a"], ["b"])), True),
    Edge("a function with NonZero in it", called(make_node("NonZero", ["a"], ["b"])), False),
    Edge("a loop", inside(NEGATED), True, values={"n": ((1,), (2,), (3,))}),
    Edge("NonZero in a loop", inside([make_node("NonZero", ["v"], ["u"]), *NEGATED]), False),
    Edge("a loop without its condition", inside(NEGATED, condition=False), False),
    Edge("branches", branches([make_node("Neg", ["x"], ["t"])], [make_node("Abs", ["x"], ["e"])]), True),
    Edge(
        "branches of other ranks",
        branches([make_node("Neg", ["x"], ["t"])], [make_node("Reshape", ["x", "flat"], ["e"])], (2, 1)),
        False,
    ),
    Edge("Det in a branch", branches([make_node("Neg", ["x"], ["t"])], [make_node("Det", ["x"], ["e"])]), False),
    *(Edge(f"opset {opset}", one("Neg", "x", opset=opset), True) for opset in (7, 21, 28)),
    *(
        Edge(f"input of type {T.DataType.Name(kind)}", one("Identity", "x", x=("x", kind, [4]), y=("y", kind, [4])), ok)
        for kind, ok in (
            *((T.DOUBLE, True), (T.UINT8, True), (T.INT8, True), (T.BOOL, True), (T.INT64, True)),
            *((T.STRING, False), (T.UINT16, False), (T.INT16, False), (T.UINT64, False), (T.FLOAT8E5M2, False)),
        )
    ),
    Edge("a constant of int16", one("Cast", "w", to=T.FLOAT, constants=[make_tensor("w", T.INT16, [1], [1])]), False),
    Edge("K of 3840", topk(3840), True),
    Edge("K of 3841", topk(3841), False),
    Edge("K of 3840 at all sizes", topk(None), True, values={"k": ((1,), (3840,), (3840,))}),
    Edge("K of 3841 at all sizes", topk(None), False, values={"k": ((3841,),) * 3}),
    Edge("K beyond 3840 as usual", topk(None), False, values={"k": ((1,), (3841,), (5000,))}),
    *(
        Edge(f"TopK of {T.DataType.Name(kind)}", topk(2, kind), ok)
        for kind, ok in ((T.INT64, True), (T.INT32, True), (T.INT8, True), (T.BOOL, False), (T.UINT8, False))
    ),
    Edge(
        "running sums along an input",
        one("CumSum", "x", "a", more=[("a", T.INT64, [])]),
        True,
        values={"a": ((0,),) * 3},
    ),
    Edge("sums along a constant", one("ReduceSum", "x", "a", constants=[whole("a", 1)]), True),
    Edge("sums along an input", one("ReduceSum", "x", "a", more=[("a", T.INT64, [1])]), False),
    *(
        Edge(
            f"{operator} with {reduction}",
            model_of(
                graph_of(
                    [make_node(operator, ["x", "i", "u"], ["y"], reduction=reduction)],
                    [X, ("i", T.INT64, shape), ("u", T.FLOAT, [2, 6])],
                    [Y],
                )
            ),
            reduction == "none",
        )
        for operator, shape in (("ScatterElements", [2, 6]), ("ScatterND", [2, 1]))
        for reduction in ("none", "add", "max")
    ),
    Edge("a norm", one("LayerNormalization", "x", "w", constants=[make_tensor("w", T.FLOAT, [6], [1.0] * 6)]), True),
    Edge(
        "a norm and its mean",
        model_of(graph_of([make_node("LayerNormalization", ["x", "x"], ["y", "m"])], [("x", T.FLOAT, [6])], [Y])),
        False,
    ),
    Edge(
        "a text",
        model_of(
            graph_of([make_node("Constant", [], ["t"], value_string="a"), make_node("Neg", ["x"], ["y"])], [X], [Y])
        ),
        False,
    ),
    Edge("small letters", one("Einsum", "x", equation="ij->ji"), True),
    Edge("capital letters", one("Einsum", "x", equation="IJ->JI"), False),
    Edge("sums of one type", one("Add", "x", "x"), True),
    Edge("sums of two types", one("Add", "x", "h", more=[HALF]), False),
    Edge("products of two types", one("MatMul", "x", "h", more=[("h", T.FLOAT16, [6, 4])]), False),
    Edge("a choice by numbers", one("Where", "c", "x", "x", more=[("c", T.INT64, [4, 6])]), False),
    Edge("a range of constants", ranged(make_node("Constant", [], ["b"], value_float=3.0)), True),
    Edge(
        "a range of a shape",
        ranged(
            make_node("Shape", ["x"], ["n"]),
            make_node("Squeeze", ["n", "no"], ["m"]),
            make_node("Cast", ["m"], ["b"], to=T.FLOAT),
            x=("x", T.FLOAT, ["n"]),
        ),
        True,
        shapes={"x": ((1,), (2,), (3,))},
    ),
    Edge("a range of an input", ranged(make_node("Neg", ["x"], ["b"]), x=("x", T.FLOAT, [])), False),
    Edge("codes of int8", quantized(make_tensor("z", T.INT8, [], [0])), True),
    Edge("codes of int8 around 3", quantized(make_tensor("z", T.INT8, [], [3])), False),
    Edge("codes of float8", quantized(make_tensor("z", T.FLOAT8E4M3FN, [], [0.0])), True),
    Edge("codes of the other float8", quantized(make_tensor("z", T.FLOAT8E5M2, [], [0.0])), False),
    Edge("codes of int16", quantized(make_tensor("z", T.INT16, [], [0])), False),
    Edge("halves with a scale in half", quantized(make_tensor("z", T.INT8, [], [0]), T.FLOAT16, T.FLOAT16), True),
    Edge(
        "float8 of floats with a scale in half",
        quantized(make_tensor("z", T.FLOAT8E4M3FN, [], [0.0]), T.FLOAT, T.FLOAT16),
        False,
    ),
    Edge(
        "int32 as codes",
        one("DequantizeLinear", "x", "s", x=("x", T.INT32, [4]), constants=[make_tensor("s", T.FLOAT, [], [0.5])]),
        False,
    ),
    Edge("a scale for each column", dequantized([6, 4], [0.5] * 4, [4], axis=1), True),
    Edge("fewer scales than columns", dequantized([6, 4], [0.5] * 3, [3], axis=1), False),
    Edge("a scale of zero", dequantized([6, 4], [0.5, 0.0, 0.5, 0.5], [4], axis=1), False),
    Edge("a scale below zero", dequantized([6, 4], [0.5, -0.5, 0.5, 0.5], [4], axis=1), False),
    Edge("int4 in blocks", dequantized([256, 4], [0.5] * 8, [2, 4], T.INT4, 0, axis=0, block_size=128), True),
    Edge("int4 around 1", dequantized([256, 4], [0.5] * 8, [2, 4], T.INT4, 1, axis=0, block_size=128), False),
    Edge(
        "int4 in blocks along two axes", dequantized([256, 4], [0.5] * 4, [2, 2], T.INT4, axis=0, block_size=128), False
    ),
    Edge("int4, an odd number", dequantized([3, 5], [0.5] * 5, [5], T.INT4, axis=1), False),
    Edge(
        "int8 added", one("Add", "x", "v", x=("x", T.INT8, [4]), y=("y", T.INT8, [4]), more=[("v", T.INT8, [4])]), True
    ),
    Edge(
        "a constant of int8 added",
        one(
            "Add",
            "x",
            "w",
            x=("x", T.INT8, [4]),
            y=("y", T.INT8, [4]),
            constants=[make_tensor("w", T.INT8, [4], [1] * 4)],
        ),
        False,
    ),
    Edge(
        "products of int8",
        one("MatMulInteger", "x", "v", x=("x", T.INT8, [4, 4]), y=("y", T.INT32, None), more=[("v", T.INT8, [4, 4])]),
        False,
    ),
    *(
        Edge(f"attention in {T.DataType.Name(kind)} with heads of {head}", attention(kind, head), ok)
        for kind, head, ok in ((T.FLOAT16, 64, True), (T.FLOAT16, 8, False), (T.FLOAT, 64, False))
    ),
    Edge("attention to what was before", attention(is_causal=1), True),
    Edge("attention with a cap", attention(softcap=2.0), False),
    Edge("attention with a precision", attention(softmax_precision=1), False),
    *(
        Edge(f"{operator} by an input in floating point", cast_to_shape(operator, *more), False)
        for operator, more in (
            *(("Reshape", ()), ("Expand", ()), ("Tile", ()), ("ConstantOfShape", ()), ("Split", ())),
            ("Slice", ("ends",)),
        )
    ),
    Edge("five in three parts", split(5, 3), True),
    Edge("five in four parts", split(5, 4), False),
    Edge("a norm of squares", one("LpNormalization", "x", p=2), True),
    Edge("a norm of cubes", one("LpNormalization", "x", p=3), False),
    *(
        Edge(f"{operator} in {T.DataType.Name(kind)}", one(operator, "x", dtype=kind, y=("y", kind, None)), ok)
        for operator in ("RandomNormalLike", "RandomUniformLike")
        for kind, ok in ((T.FLOAT16, True), (T.BFLOAT16, False))
    ),
    *(
        Edge(
            f"{indices} indices for 4 places",
            model_of(
                graph_of(
                    [make_node("ScatterElements", ["x", "i", "u"], ["y"])],
                    [("x", T.FLOAT, [4]), ("i", T.INT64, [indices]), ("u", T.FLOAT, [indices])],
                    [Y],
                )
            ),
            indices <= 4,
        )
        for indices in (3, 4, 5)
    ),
    Edge("a recurrent layer", recurrent(), True),
    Edge("a recurrent layer with one gate", recurrent(input_forget=1), False),
    Edge("a batch's norm", normalized(), True),
    Edge("a batch's norm in training", normalized(training_mode=1), False),
    Edge(
        "two axes resized by constants",
        resized(constants=[make_tensor("s", T.FLOAT, [2], [2.0, 2.0])]),
        True,
        shapes={"x": ((1, 1, 4, 4),) * 3},
    ),
    Edge(
        "two axes resized by what is computed",
        resized(make_node("Shape", ["x"], ["n"], start=2), make_node("Cast", ["n"], ["s"], to=T.FLOAT)),
        False,
        shapes={"x": ((1, 1, 4, 4),) * 3},
    ),
    Edge(
        "resized against the edges",
        one(
            "Resize",
            "x",
            "",
            "s",
            x=IMAGE,
            antialias=1,
            mode="linear",
            constants=[make_tensor("s", T.FLOAT, [4], [1.0, 1.0, 0.5, 0.5])],
        ),
        False,
    ),
    Edge("the largest of four", one("MaxPool", "x", x=IMAGE, kernel_shape=[2, 2]), True),
    Edge("the largest of four, apart", one("MaxPool", "x", x=IMAGE, kernel_shape=[2, 2], dilations=[2, 2]), False),
    Edge(
        "squeezed along a constant", one("Squeeze", "x", "a", x=("x", T.FLOAT, [1, 6]), constants=[whole("a", 0)]), True
    ),
    Edge(
        "squeezed along an input", one("Squeeze", "x", "a", x=("x", T.FLOAT, [1, 6]), more=[("a", T.INT64, [1])]), False
    ),
    Edge(
        "no rows, some or many",
        one("Neg", "x", x=("x", T.FLOAT, ["n", 6]), y=("y", T.FLOAT, ["n", 6])),
        True,
        shapes={"x": ((0, 6), (4, 6), (8, 6))},
    ),
    Edge(
        "no rows at all",
        one("Neg", "x", x=("x", T.FLOAT, ["n", 6]), y=("y", T.FLOAT, ["n", 6])),
        True,
        shapes={"x": ((0, 6), (0, 6), (0, 6))},
    ),
]


@pytest.fixture(scope="module")
def real() -> Iterator[Judge]:
    with judge() as found:
        yield found


def sizes_of(edge: Edge) -> dict[str, tuple[int, int]]:
    """What the lint is told: ranges of symbolic dimensions and of host inputs."""
    sizes = {name: (corners[0][0], corners[2][0]) for name, corners in edge.values.items()}
    for value in edge.model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and value.name in edge.shapes:
                sizes[dim.dim_param] = (edge.shapes[value.name][0][axis], edge.shapes[value.name][2][axis])
    return sizes


def test_what_stands_at_the_edge_is_taken_and_what_is_beyond_is_not(real: Judge) -> None:
    questions = [Question(e.model.SerializeToString(), "", e.shapes, e.values, build=True) for e in EDGES]
    verdicts = dict(zip([edge.name for edge in EDGES], real.ask(questions), strict=True))
    assert len(verdicts) == len(EDGES)
    assert {name: verdict for name, verdict in verdicts.items() if verdict.taken != _edge(name).taken} == {}
    found = {edge.name: unsupported(edge.model, RTX, sizes=sizes_of(edge)) for edge in EDGES}
    assert {name: findings for name, findings in found.items() if bool(findings) == _edge(name).taken} == {}


def _edge(name: str) -> Edge:
    return next(edge for edge in EDGES if edge.name == name)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (one("Gelu", "x", domain="com.microsoft"), {}),
        (quantized(make_tensor("z", T.UINT8, [], [0])), {}),
        (quantized(make_tensor("z", T.FLOAT8E4M3FN, [], [3.0])), {}),
        (topk(None), {"k": ((1,), (100,), (5000,))}),
    ],
)
def test_what_is_taken_and_refused_all_the_same(
    real: Judge, model: onnx.ModelProto, values: dict[str, tuple[tuple[int, ...], ...]]
) -> None:
    sizes = {name: (corners[0][0], corners[2][0]) for name, corners in values.items()}
    (verdict,) = real.ask([Question(model.SerializeToString(), "", {}, values, build=True)])
    assert verdict.taken
    assert unsupported(model, RTX, sizes=sizes)
