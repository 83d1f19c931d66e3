"""Decoder-only language models as ONNX segments, written straight from a checkpoint.

One writer covers the Llama family: Llama, Vicuna, Mistral, Qwen2 and Qwen3 differ only in whether the projections
have a bias and whether queries and keys are normed. A segment is a range of layers: llm_pre holds layers 0 to M and
scores the visual tokens at layer M, llm_post holds the rest and the output head. Both serve prefill and decoding:
the number of rows is dynamic, so the weights exist once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from prunevid.cost import DecoderShape
from prunevid.export.checkpoint.weights import Weights
from prunevid.export.graphs import operators
from prunevid.export.graphs.dialects import Attended, Dialect, Rope, add_output


@dataclass(frozen=True, eq=False)
class DecoderSpec:
    """A decoder as the writer needs it: shape, numerics, and where its tensors are called what.

    inv_freq float32 [head_dim / 2] are the rotary frequencies, rope_scale multiplies cosines and sines (1.0 but for
    some scaled variants). prefix is what the tensors' names begin with; head is the output matrix's full name.
    """

    shape: DecoderShape
    norm_epsilon: float
    inv_freq: np.ndarray
    rope_scale: float
    projection_bias: bool
    query_key_norm: bool
    prefix: str
    head: str


class _Linear(nn.Module):
    """y = x W (+ b), from a checkpoint's [out, in] matrix, stored transposed."""

    def __init__(self, weights: Weights, tensor: str, name: str, bias: bool = False) -> None:
        super().__init__(name)
        matrix = weights.tensor(f"{tensor}.weight", transpose=True)
        self.weight = nn.Parameter(list(matrix.shape), data=matrix)
        if bias:
            vector = weights.tensor(f"{tensor}.bias")
            self.bias = nn.Parameter(list(vector.shape), data=vector)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, self.weight)
        return op.Add(y, self.bias) if "bias" in self._parameters else y


class _Norm(nn.Module):
    """RMS norm."""

    def __init__(self, weights: Weights, tensor: str, name: str, dialect: Dialect, epsilon: float) -> None:
        super().__init__(name)
        vector = weights.tensor(f"{tensor}.weight")
        self.weight = nn.Parameter(list(vector.shape), data=vector)
        self.dialect, self.epsilon = dialect, epsilon

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.dialect.norm(op, x, self.weight, self.epsilon)


class _Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; remembers what the pruning scores need."""

    def __init__(self, spec: DecoderSpec, weights: Weights, dialect: Dialect, layer: int) -> None:
        super().__init__("self_attn")
        tensor = f"{spec.prefix}layers.{layer}.self_attn"
        self.spec, self.dialect, self.layer = spec, dialect, layer
        self.q_proj = _Linear(weights, f"{tensor}.q_proj", "q_proj", spec.projection_bias)
        self.k_proj = _Linear(weights, f"{tensor}.k_proj", "k_proj", spec.projection_bias)
        self.v_proj = _Linear(weights, f"{tensor}.v_proj", "v_proj", spec.projection_bias)
        self.o_proj = _Linear(weights, f"{tensor}.o_proj", "o_proj")
        if spec.query_key_norm:
            self.q_norm = _Norm(weights, f"{tensor}.q_norm", "q_norm", dialect, spec.norm_epsilon)
            self.k_norm = _Norm(weights, f"{tensor}.k_norm", "k_norm", dialect, spec.norm_epsilon)

    def forward(
        self, op: Any, x: ir.Value, rope: Rope, shared: Any, past: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Value, Attended]:
        """The rotated query [1, S, heads * head_dim] and what it attended to; the caller applies o_proj."""
        shape = self.spec.shape
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        if self.spec.query_key_norm:
            query = self._norm_heads(op, self.q_norm, query)
            key = self._norm_heads(op, self.k_norm, key)
        query = self.dialect.rotate(op, query, rope, shape.heads)
        key = self.dialect.rotate(op, key, rope, shape.kv_heads)
        return query, self.dialect.attend(op, shared, shape, self.layer, query, key, value, past)

    def _norm_heads(self, op: Any, norm: _Norm, x: ir.Value) -> ir.Value:
        by_head = op.Reshape(x, [0, 0, -1, self.spec.shape.head_dim])
        return op.Reshape(norm(op, by_head), [0, 0, -1])


class _Mlp(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, weights: Weights, tensor: str) -> None:
        super().__init__("mlp")
        self.gate_proj = _Linear(weights, f"{tensor}.gate_proj", "gate_proj")
        self.up_proj = _Linear(weights, f"{tensor}.up_proj", "up_proj")
        self.down_proj = _Linear(weights, f"{tensor}.down_proj", "down_proj")

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        gate = self.gate_proj(op, x)
        return self.down_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.up_proj(op, x)))


class _Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, spec: DecoderSpec, weights: Weights, dialect: Dialect, layer: int) -> None:
        super().__init__(f"layers.{layer}")
        tensor = f"{spec.prefix}layers.{layer}"
        epsilon = spec.norm_epsilon
        self.input_norm = _Norm(weights, f"{tensor}.input_layernorm", "input_layernorm", dialect, epsilon)
        self.self_attn = _Attention(spec, weights, dialect, layer)
        self.post_norm = _Norm(
            weights, f"{tensor}.post_attention_layernorm", "post_attention_layernorm", dialect, epsilon
        )
        self.mlp = _Mlp(weights, f"{tensor}.mlp")

    def forward(
        self,
        op: Any,
        x: ir.Value,
        rope: Rope,
        shared: Any,
        past: tuple[ir.Value, ir.Value],
        last_row: bool = False,
    ) -> tuple[ir.Value, ir.Value, Attended]:
        """Hidden state after the layer, the rotated query, and the attention.

        With `last_row`, all rows are attended to but only the last goes on: the output head needs no other.
        """
        query, attended = self.self_attn(op, self.input_norm(op, x), rope, shared, past)
        mixed = attended.output
        if last_row:
            x, mixed = (op.Slice(rows, [-1], [2**62], [1]) for rows in (x, mixed))
        x = op.Add(x, self.self_attn.o_proj(op, mixed))
        return op.Add(x, self.mlp(op, self.post_norm(op, x))), query, attended


class _Head(nn.Module):
    """Final norm and output matrix [vocab, C], on one row."""

    def __init__(self, spec: DecoderSpec, weights: Weights, dialect: Dialect, matrix: ir.TensorProtocol) -> None:
        super().__init__("head")
        self.norm = _Norm(weights, f"{spec.prefix}norm", "norm", dialect, spec.norm_epsilon)
        self.weight = nn.Parameter(list(matrix.shape), data=matrix)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        row = op.Squeeze(self.norm(op, x), [0])
        # transB leaves the matrix as the checkpoint has it, so that tied embeddings are one file on disk.
        return op.Cast(op.Gemm(row, self.weight, transB=1), to=ir.DataType.FLOAT)


def build_llm_pre(spec: DecoderSpec, weights: Weights, dialect: Dialect, prune_layer: int) -> ir.Model:
    """Layers 0 to `prune_layer` (M) and the scores that the question gives to every row.

    Inputs: inputs_embeds [1, S, C], position_ids int64 [1, S], past_length int64 [1], question_start int64 [1] (the
    row among the S at which the question begins, below S), past KV. Outputs: hidden [1, S, C], question_scores
    float32 [past + S] (largest attention probability at layer M over heads and question rows), present KV.
    """
    graph, op, dtype = _new_segment("llm_pre", weights, dialect)
    shape = spec.shape
    x = op.builder.input("inputs_embeds", dtype, [1, "rows", shape.hidden_size])
    rope, past_length = _positions(op, spec)
    question = op.builder.input("question_start", ir.DataType.INT64, [1])
    layers = range(prune_layer + 1)
    pasts = [dialect.declare_past(op, layer, shape, dtype) for layer in layers]
    shared = dialect.begin(op, x, past_length, pasts[0][0])
    for layer, past in zip(layers, pasts, strict=True):
        x, query, attended = _Layer(spec, weights, dialect, layer)(op, x, rope, shared, past)
    add_output(op, x, "hidden", dtype, [1, "rows", shape.hidden_size])
    scores = _question_scores(op, shape, query, attended.keys, question, past_length)
    add_output(op, scores, "question_scores", ir.DataType.FLOAT, ["total"])
    return operators.to_model(graph, op)


def build_llm_post(
    spec: DecoderSpec, weights: Weights, dialect: Dialect, prune_layer: int, head: ir.TensorProtocol
) -> ir.Model:
    """Layers after `prune_layer`, the final norm and the output matrix `head` [vocab, C].

    Inputs: hidden [1, S, C], position_ids int64 [1, S], past_length int64 [1], past KV. Outputs: logits float32
    [1, vocab] of the last row, present KV.
    """
    graph, op, dtype = _new_segment("llm_post", weights, dialect)
    shape = spec.shape
    x = op.builder.input("hidden", dtype, [1, "rows", shape.hidden_size])
    rope, past_length = _positions(op, spec)
    layers = range(prune_layer + 1, shape.layers)
    pasts = [dialect.declare_past(op, layer, shape, dtype) for layer in layers]
    shared = dialect.begin(op, x, past_length, pasts[0][0])
    for layer, past in zip(layers, pasts, strict=True):
        last_row = layer == layers[-1]
        x, _, _ = _Layer(spec, weights, dialect, layer)(op, x, rope, shared, past, last_row)
    add_output(op, _Head(spec, weights, dialect, head)(op, x), "logits", ir.DataType.FLOAT, [1, shape.vocab_size])
    return operators.to_model(graph, op)


def _new_segment(name: str, weights: Weights, dialect: Dialect) -> tuple[ir.Graph, Any, ir.DataType]:
    graph, op = operators.new_graph(name, dialect.opset, dialect.domains)
    return graph, op, weights.dtype


def _positions(op: Any, spec: DecoderSpec) -> tuple[Rope, ir.Value]:
    """Declare position_ids and past_length; the rotary tables of the rows, in float32."""
    position_ids = op.builder.input("position_ids", ir.DataType.INT64, [1, "rows"])
    past_length = op.builder.input("past_length", ir.DataType.INT64, [1])
    position = op.Cast(op.Transpose(position_ids, perm=[1, 0]), to=ir.DataType.FLOAT)
    frequencies = op.initializer(ir.tensor(spec.inv_freq[None, :], name="inv_freq"))
    angle = op.Mul(position, frequencies)
    return Rope(op.Mul(op.Cos(angle), spec.rope_scale), op.Mul(op.Sin(angle), spec.rope_scale)), past_length


def _question_scores(
    op: Any, shape: DecoderShape, query: ir.Value, keys: ir.Value, question: ir.Value, past_length: ir.Value
) -> ir.Value:
    """Largest attention probability that any head gives each key from any question row, float32 [past + S].

    A matmul of its own over the question's few rows: the attention operator's full score matrix is [heads, S, S].
    Source: PruneVid (arXiv 2412.16117), section 3.3.
    """
    group = shape.heads // shape.kv_heads
    rows = op.Cast(op.Slice(query, question, [2**62], [1]), to=ir.DataType.FLOAT)
    heads = op.Transpose(op.Reshape(rows, [-1, shape.kv_heads, group, shape.head_dim]), perm=[1, 2, 0, 3])
    keys = op.Unsqueeze(op.Transpose(op.Cast(keys, to=ir.DataType.FLOAT), perm=[0, 2, 1]), [1])
    scores = op.Mul(op.MatMul(heads, keys), float(1.0 / np.sqrt(shape.head_dim)))
    start = op.Add(past_length, question)
    own = op.Unsqueeze(op.Add(op.Range(0, op.Squeeze(op.Shape(rows, start=1, end=2), [0]), 1), start), [1])
    column = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(scores, start=3, end=4), [0]), 1), [0])
    probabilities = op.Softmax(op.Where(op.LessOrEqual(column, own), scores, -65504.0), axis=-1)
    return op.ReduceMax(probabilities, [0, 1, 2], keepdims=0)
