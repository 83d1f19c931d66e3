"""The KV cache in int8: how large keys and values are, and graphs whose cache holds codes.

One scale per channel, the largest magnitude seen / 127. The scale is taken out of the operator: keys are
divided by it and queries multiplied, values divided and attention's output multiplied, so that the cache holds plain
codes, which count as they are (q k = (q s) (k / s)). Source of the operator: GroupQueryAttention in ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.tape import Tape

from prunevid.bundle import Bundle, GraphSpec
from prunevid.calibration.quantize.linears import load_graph
from prunevid.calibration.quantize.variants import VariantBackend
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import Progress
from prunevid.dialects import DIALECTS
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import check_onnxruntime
from prunevid.runtime.text.sampling import SamplingConfig

LEAST_ONNXRUNTIME = "1.27"
"""The first release whose GroupQueryAttention takes int8 caches on the CPU (1.26 fails when it runs)."""
WITH_CACHE = ("llm_pre", "llm_post")
"""Graphs that write rows into the cache; select only moves them."""

_CONTRIB = "com.microsoft"
_LEVELS = 127
_QUESTIONS = 4
_INT8 = ir.DataType.INT8


@dataclass(frozen=True)
class Scales:
    """What one step of a code stands for: float32 [kv_heads * head_dim] for keys and for values."""

    keys: np.ndarray
    values: np.ndarray


def check_cache(bundle: Bundle) -> None:
    """Raise PruneVidError where the KV cache of this bundle cannot be in int8, or this ONNX Runtime cannot run it."""
    if not DIALECTS[bundle.manifest.dialect].has_int8_cache:
        able = " or ".join(dialect.name for dialect in DIALECTS.values() if dialect.has_int8_cache)
        raise PruneVidError(
            f"--kv-cache int8 is for bundles of the dialect {able}, {bundle.path} is in {bundle.manifest.dialect}: "
            f"leave it out, or export the bundle again with --dialect {able}"
        )
    check_onnxruntime(LEAST_ONNXRUNTIME, "a KV cache in int8", ort.__version__)


def measure_scales(
    bundle: Bundle,
    videos: Sequence[AskedVideo],
    sampling: SamplingConfig,
    threads: int | None,
    workspace: Workspace,
    progress: Progress,
) -> dict[str, list[Scales]]:
    """By graph, the scales of its layers, in order; kept in the workspace, and not measured again."""
    for name in WITH_CACHE:
        if f"kv {name}" not in workspace:
            progress.step(f"measuring keys and values of {name}", len(videos))
            found = scales_of(bundle, name, videos, sampling, threads, progress.advance)
            workspace.record(f"kv {name}", [[scale.keys.tolist(), scale.values.tolist()] for scale in found])
    return {
        name: [Scales(*(np.array(part, np.float32) for part in layer)) for layer in workspace[f"kv {name}"]]
        for name in WITH_CACHE
    }


def scales_of(
    bundle: Bundle,
    name: str,
    videos: Sequence[AskedVideo],
    sampling: SamplingConfig,
    threads: int | None,
    advance: Callable[[], None],
) -> list[Scales]:
    """The scales of the graph `name`'s layers, from keys and values while questions are answered, pruned.

    Rotary embedding turns pairs of key channels by an angle that depends on the position: both channels of a pair get
    the largest norm that the pair had, which no other position can exceed.
    """
    model = load_graph(bundle.file(bundle.manifest.graphs[name].file))
    nodes, shape = _attentions(model), bundle.manifest.model.decoder
    for index, node in enumerate(nodes):
        _watch(model.graph, node, index, shape.kv_heads, shape.head_dim)
    keys = np.zeros((len(nodes), shape.kv_heads, shape.head_dim // 2), np.float32)
    values = np.zeros((len(nodes), shape.kv_heads * shape.head_dim), np.float32)

    def take(computed: Mapping[str, Array]) -> None:
        for index in range(len(nodes)):
            for largest, what in ((keys, "key"), (values, "value")):
                np.maximum(largest[index], np.array(computed[f"largest_{what}.{index}"]), out=largest[index])

    pipeline = VariantBackend(bundle, threads).variant(name, model, take)
    for video in videos:
        session = pipeline.open(video.path)
        for question in video.questions[:_QUESTIONS]:
            "".join(session.stream(question.text, sampling))
        advance()
    both = np.concatenate([keys, keys], axis=-1).reshape(values.shape)
    return [Scales(_scale(key), _scale(value)) for key, value in zip(both, values, strict=True)]


def put_int8_cache(model: ir.Model, scales: Sequence[Scales]) -> None:
    """Let a graph with attention keep its KV cache in int8, in place; `scales` are its layers', in order.

    A decode step attends over the codes. Blocks of several rows, for which ONNX Runtime's int8 attention takes two to
    three times as long as its float one, write their codes and attend in float over what the codes stand for: the same
    to rounding, so that it makes no difference in which blocks rows come.
    """
    graph = model.graph
    tape = _Tape(graph)
    attentions = _attentions(model)
    shared = _begin(tape, graph, attentions[0])
    graph.insert_before(graph[0], tape.taken())
    for node, scale in zip(attentions, scales, strict=True):
        _rewrite(tape, node, scale, shared)


def retype_cache(model: ir.Model) -> None:
    """Let a graph that only moves rows of the cache take and give int8, in place."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if is_cache(str(value.name)):
            value.dtype = _INT8


def with_int8_cache(spec: GraphSpec) -> GraphSpec:
    """What the manifest says of a graph, with its KV cache in int8."""
    inputs, outputs = (
        tuple(replace(tensor, dtype="int8") if is_cache(tensor.name) else tensor for tensor in tensors)
        for tensors in (spec.inputs, spec.outputs)
    )
    return replace(spec, inputs=inputs, outputs=outputs)


def is_cache(name: str) -> bool:
    """Whether a graph's input or output is part of the KV cache."""
    return name.startswith(("past_key.", "past_value.", "present_key.", "present_value."))


def _scale(largest: np.ndarray) -> np.ndarray:
    """A channel that is always zero gets the scale 1."""
    scale: np.ndarray = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1))
    return scale.astype(np.float32)


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (_CONTRIB, "GroupQueryAttention")]


def _watch(graph: ir.Graph, node: ir.Node, index: int, kv_heads: int, head_dim: int) -> None:
    """Declare outputs `largest_key.INDEX` [kv_heads, head_dim / 2], `largest_value.INDEX` [kv_heads * head_dim]."""
    tape = _Tape(graph)
    pairs = tape.op("Reshape", [node.inputs[1], tape.constant([-1, kv_heads, 2, head_dim // 2])])
    norms = tape.op("ReduceL2", [pairs, tape.constant([2])], {"keepdims": 0})
    key = tape.op("ReduceMax", [norms, tape.constant([0])], {"keepdims": 0})
    magnitude = tape.op("Abs", [node.inputs[2]])
    value = tape.op("ReduceMax", [magnitude, tape.constant([0, 1])], {"keepdims": 0})
    graph.extend(tape.taken())
    found = ((key, "key", [kv_heads, head_dim // 2]), (value, "value", [kv_heads * head_dim]))
    for output, what, dims in found:
        output.name = f"largest_{what}.{index}"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(dims)
        graph.outputs.append(output)


class _Tape(Tape):
    """Records nodes, and makes initializers of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self._of = graph
        self._given = 0

    def constant(self, values: Any, dtype: type = np.int64, name: str | None = None) -> ir.Value:
        """An initializer with these values; numbered where it has no name."""
        array: np.ndarray = np.array(values, dtype)
        called = name or f"kv_constant.{len(self._of.initializers)}"
        if called in self._of.initializers:
            return self._of.initializers[called]
        tensor = ir.tensor(array, name=called)
        value = ir.Value(name=called, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._of.register_initializer(value)
        return value

    def taken(self) -> list[ir.Node]:
        """The nodes recorded since this was last asked."""
        nodes = list(self.nodes)[self._given :]
        self._given += len(nodes)
        return nodes


@dataclass(frozen=True)
class _Shared:
    """What all layers of a graph share.

    Attributes:
        is_one_row: Whether there is one row.
        past: The rows in the cache before this run, int64 [1].
        index: Where new rows go, int64 [1, kv_heads, S, 3].
    """

    is_one_row: ir.Value
    past: ir.Value
    index: ir.Value


def _begin(tape: _Tape, graph: ir.Graph, attention: ir.Node) -> _Shared:
    first = tape.constant([0], name="kv_first")
    kv_heads = attention.attributes["kv_num_heads"].as_int()
    past = next(value for value in graph.inputs if value.name == "past_length")
    rows = tape.op("Shape", [graph.inputs[0]], {"start": 1, "end": 2})
    end = tape.op("Add", [past, rows])
    places = tape.op("Range", [tape.op("Squeeze", [past, first]), tape.op("Squeeze", [end, first]), tape.constant(1)])
    of_head = tape.op(
        "Expand", [tape.op("Reshape", [places, tape.constant([1, 1, -1, 1])]), tape.constant([1, kv_heads, 1, 1])]
    )
    heads = np.arange(kv_heads).reshape(1, kv_heads, 1, 1)
    head = tape.op("Expand", [tape.constant(heads), tape.op("Shape", [of_head])])
    batch = tape.op("Sub", [head, head])
    index = tape.op("Concat", [batch, head, of_head], {"axis": 3})
    is_one = tape.op("Squeeze", [tape.op("Equal", [rows, tape.constant([1])]), first])
    return _Shared(is_one, past, index)


def _rewrite(tape: _Tape, old: ir.Node, scales: Scales, shared: _Shared) -> None:
    """Put the attention over codes where the attention `old` stands."""
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    query, key, value, past_key, past_value, last_row, total = old.inputs
    layer = str(past_key.name).removeprefix("past_key.")
    heads, kv_heads = (old.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))

    def for_heads(scale: np.ndarray) -> np.ndarray:
        return scale.reshape(kv_heads, -1).repeat(heads // kv_heads, axis=0).reshape(-1)

    factors = {
        "query": for_heads(scales.keys),
        "key": 1 / scales.keys,
        "value": 1 / scales.values,
        "output": for_heads(scales.values),
    }
    given = {what: tape.constant(factor, np.float32, f"kv_scale.{layer}.{what}") for what, factor in factors.items()}
    query_used = [(node, at) for node, at in query.uses() if node is not old]
    scaled = [tape.op("Mul", [x, given[what]]) for x, what in ((query, "query"), (key, "key"), (value, "value"))]
    before = tape.taken()
    outputs = [output.name for output in old.outputs]
    branches = {
        "then_branch": _one_row(old, scaled, f"decode.{layer}", tape),
        "else_branch": _several_rows(old, scaled, shared, f"block.{layer}", tape),
    }
    attributes = [ir.AttrGraph(name, branch) for name, branch in branches.items()]
    chosen = ir.Node("", "If", [shared.is_one_row], attributes, num_outputs=3)
    output = ir.Node("", "Mul", [chosen.outputs[0], given["output"]])
    for new, was in zip((output.outputs[0], *chosen.outputs[1:]), old.outputs, strict=True):
        new.type, new.shape = was.type, was.shape
    new_outputs = [output.outputs[0], *chosen.outputs[1:]]
    ir.convenience.replace_nodes_and_values(graph, old, [old], [*before, chosen, output], old.outputs, new_outputs)
    for new, name in zip(new_outputs, outputs, strict=True):
        new.name = name
    for cache in (past_key, past_value, *chosen.outputs[1:]):
        assert cache is not None
        _retype(cache)
    # The scores of the question are the query's products with the codes.
    for node, at in query_used:
        node.replace_input_with(at, scaled[0])


def _retype(value: ir.Value) -> None:
    """Make a value int8, and what is cut out of it, up to where it is cast."""
    value.dtype = _INT8
    for node, _ in value.uses():
        if node.op_type in ("Slice", "Squeeze"):
            _retype(node.outputs[0])


def _one_row(old: ir.Node, scaled: Sequence[ir.Value], name: str, tape: _Tape) -> ir.Graph:
    one = tape.constant([1], np.float32, "kv_code")
    attributes = [
        *old.attributes.values(),
        ir.AttrString("k_quant_type", "PER_TENSOR"),
        ir.AttrString("v_quant_type", "PER_TENSOR"),
        ir.AttrInt64("kv_cache_bit_width", 8),
    ]
    inputs = [*scaled, *old.inputs[3:], *[None] * 5, one, one]
    node = ir.Node(_CONTRIB, "GroupQueryAttention", inputs, attributes, num_outputs=3)
    return _branch(old, [node], node.outputs, name)


def _several_rows(old: ir.Node, scaled: Sequence[ir.Value], shared: _Shared, name: str, tape: _Tape) -> ir.Graph:
    query, key, value = scaled
    past_key, past_value = old.inputs[3], old.inputs[4]
    assert past_key is not None
    assert past_key.shape is not None
    kv_heads, head_dim = int(past_key.shape[1]), int(past_key.shape[3])
    by_head = tape.constant([0, -1, kv_heads, head_dim], name="kv_by_head")
    unit, zero = tape.constant(1, np.float32, "kv_unit"), tape.constant(0, np.int8, "kv_zero")
    first, rows_axis = tape.constant([0], name="kv_first"), tape.constant([2], name="kv_rows_axis")
    to_float = {"to": ir.DataType.FLOAT}
    present, news, pasts = [], [], []
    for new, past in ((key, past_key), (value, past_value)):
        codes = tape.op("QuantizeLinear", [new, unit, zero])
        rows = tape.op("Transpose", [tape.op("Reshape", [codes, by_head])], {"perm": [0, 2, 1, 3]})
        present.append(tape.op("ScatterND", [past, shared.index, rows]))
        news.append(tape.op("Cast", [codes], to_float))
        pasts.append(tape.op("Cast", [tape.op("Slice", [past, first, shared.past, rows_axis])], to_float))
    attended = tape.op_multi_out(
        "GroupQueryAttention",
        [query, *news, *pasts, *old.inputs[5:]],
        {attribute.name: attribute for attribute in old.attributes.values()},
        num_outputs=3,
        domain=_CONTRIB,
    )
    return _branch(old, tape.taken(), [attended[0], *present], name)


def _branch(old: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
    kinds = (old.outputs[0].dtype or ir.DataType.FLOAT, _INT8, _INT8)
    for number, (output, kind) in enumerate(zip(outputs, kinds, strict=True)):
        output.name, output.type = f"{name}.{number}", ir.TensorType(kind)
    # Names of the graph around it would be hidden by its own.
    for number, value in enumerate(value for node in nodes for value in node.outputs):
        value.name = value.name or f"{name}.value.{number}"
    return ir.Graph([], outputs, nodes=nodes, name=name)
