"""What a model keeps in memory while it answers: counts of parameters, and bytes of KV cache and of activations.

Exact where shapes decide (parameters, KV), an upper estimate where the runtime does (activations): those follow how
`prunevid.runtime.chain` runs the graphs, and count every operator's result as a tensor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.bundle.sections.blocks import DEFAULT_BLOCKS, Blocks
from prunevid.cost import DecoderShape, TokenCounts, VisionShape, kv_bytes
from prunevid.models import ModelShape

__all__ = [
    "ParameterCounts",
    "held_kv_bytes",
    "loading_bytes",
    "merge_bytes",
    "parameter_counts",
    "prefill_bytes",
    "read_kv_bytes",
    "vision_bytes",
]

# Bundles do not say how many heads a tower has; SigLIP so400m has 16 of 72 channels.
_VISION_HEAD_DIM = 72
_FLOAT = 4


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, by what quantization does with them.

    Attributes:
        vision_matrices: linear layers of the vision tower and of the projector.
        vision_rest: patch and position embeddings, norms and biases of both.
        decoder_matrices: linear layers of the language model, without the output matrix.
        decoder_rest: its norms and biases.
        embeddings: the table of tokens, and the learned vectors of the token layout behind it.
        head: the output matrix; 0 where it is the table of tokens.
        output: the output matrix, whether it is the table or not; none of these parameters is counted here.
    """

    vision_matrices: int
    vision_rest: int
    decoder_matrices: int
    decoder_rest: int
    embeddings: int
    head: int
    output: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.vision + self.decoder + self.embeddings + self.head

    @property
    def vision(self) -> int:
        """Parameters of the vision tower and the projector."""
        return self.vision_matrices + self.vision_rest

    @property
    def decoder(self) -> int:
        """Parameters of the language model's layers."""
        return self.decoder_matrices + self.decoder_rest


def parameter_counts(model: ModelShape) -> ParameterCounts:
    """Count the parameters that a bundle of the model holds; the tower's unused last norm is none of them."""
    decoder, vision = model.decoder, model.vision
    width, channels = decoder.hidden_size, vision.hidden_size
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    layer_matrices = width * (2 * queries + 2 * keys) + 3 * width * decoder.intermediate_size
    layer_rest = 2 * width
    if model.projection_bias:
        layer_rest += queries + 2 * keys
    if model.query_key_norm:
        layer_rest += 2 * decoder.head_dim

    tower_matrices = vision.layers * (4 * channels**2 + 2 * channels * vision.intermediate_size)
    # Per layer four biases of attention, two of the MLP, and two norms with weight and bias.
    tower_rest = vision.layers * (4 * channels + vision.intermediate_size + channels + 4 * channels)
    embedding = channels * (vision.patch_values + vision.rows)
    # Either the class token itself and a norm, or the bias of the patches' embedding.
    embedding += 3 * channels if vision.class_token else channels
    return ParameterCounts(
        vision_matrices=tower_matrices + channels * width + width**2,
        vision_rest=tower_rest + embedding + 2 * width,
        decoder_matrices=decoder.layers * layer_matrices,
        decoder_rest=decoder.layers * layer_rest + width,
        embeddings=(decoder.vocab_size + sum(row >= decoder.vocab_size for row in model.layout.rows)) * width,
        head=0 if model.tied else decoder.vocab_size * width,
        output=decoder.vocab_size * width,
    )


def read_kv_bytes(shape: DecoderShape, counts: TokenCounts, bytes_per_value: int) -> int:
    """Bytes of the KV cache that the first decode step reads: kept tokens and text, in every layer."""
    return kv_bytes(shape, [counts.kept + counts.text] * shape.layers, bytes_per_value)


def held_kv_bytes(shape: DecoderShape, counts: TokenCounts, prune_layer: int, answer: int, bytes_per_value: int) -> int:
    """Bytes of all KV caches that exist together when an answer of `answer` tokens ends.

    Where tokens are dropped at layer M, layers 0..M exist twice: with all merged tokens, from which the next question
    about the video starts, and with the kept ones.
    """
    cut = counts.kept + counts.text + answer
    bytes_held = kv_bytes(shape, [cut] * shape.layers, bytes_per_value)
    if counts.kept < counts.visual:
        pre_layers = prune_layer + 1
        rows = [counts.merged + counts.text] * pre_layers + [0] * (shape.layers - pre_layers)
        bytes_held += kv_bytes(shape, rows, bytes_per_value)
    return bytes_held


def loading_bytes(shape: DecoderShape, bytes_per_value: int) -> int:
    """What loading takes beside the weights: the largest matrix, which is the output's, exists twice for a moment."""
    return shape.vocab_size * shape.hidden_size * bytes_per_value


def vision_bytes(vision: VisionShape, frames: int, bytes_per_value: int, blocks: Blocks = DEFAULT_BLOCKS) -> int:
    """Activations of the vision tower, which takes a block of frames at once.

    Residual stream and its norm; queries, keys and values; scores before and behind the softmax; the MLP before,
    within and behind its activation function. Attention and MLP are added, although they never run together: an arena
    keeps what it was given, and pieces of one size seldom serve the other.
    """
    rows = min(frames, blocks.frames) * vision.rows
    heads = max(1, round(vision.hidden_size / _VISION_HEAD_DIM))
    attention = 3 * rows * vision.hidden_size + 2 * heads * rows * vision.rows
    mlp = 3 * rows * vision.intermediate_size
    return (2 * rows * vision.hidden_size + attention + mlp) * bytes_per_value


def merge_bytes(model: ModelShape, frames: int) -> int:
    """Activations of merging, in float32 whatever the precision.

    All frames are merged together, over a table of twice as many rows as frames: features, the table, its centred
    tokens and their transpose, and two tables of distances.
    """
    tokens, channels = model.layout.tokens_per_frame, model.decoder.hidden_size
    return frames * tokens * (7 * channels + 4 * tokens) * _FLOAT


def prefill_bytes(shape: DecoderShape, rows: int, bytes_per_value: int, blocks: Blocks = DEFAULT_BLOCKS) -> int:
    """Activations of a decoder segment that takes a block of rows at once, behind all rows so far.

    Residual stream and its norm; queries, keys and values; one table of scores, as where attention is not fused; the
    MLP's gate, its sigmoid, their product, and up. Added as in `vision_bytes`.
    """
    block = min(rows, blocks.rows)
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    attention = block * (width + shape.heads * rows)
    mlp = 4 * block * shape.intermediate_size
    return (2 * block * shape.hidden_size + attention + mlp) * bytes_per_value
