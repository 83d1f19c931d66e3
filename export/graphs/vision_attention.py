"""The vision tower's attention as one fused operator, for ONNX Runtime.

Traced from transformers' own, attention is a dozen operators that write every score to memory. ONNX Runtime's
MultiHeadAttention works through them block by block instead.
"""

from __future__ import annotations

from typing import Any

MULTI_HEAD = "prunevid_multi_head"
"""What this attention is called among transformers' implementations."""


def use_attention(tower: Any, name: str) -> None:
    """Have a transformers vision tower compute its attention by the implementation `name` when it is traced.

    Source: transformers' AttentionInterface, by which any function can be an attention of its models.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(MULTI_HEAD, multi_head)
    tower.config._attn_implementation = name


def multi_head(
    module: Any, query: Any, key: Any, value: Any, attention_mask: None, *, scaling: float, **_: Any
) -> tuple[Any, None]:
    """Attention of query, key and value [F, heads, N, head_dim], as [F, N, heads, head_dim]; only to be traced.

    Source: com.microsoft.MultiHeadAttention in ONNX Runtime's ContribOperators.md. Raises ValueError for a mask, which
    towers over whole frames have no use for.
    """
    import torch

    if attention_mask is not None:
        raise ValueError("the fused attention of a vision tower takes no mask")
    frames, heads, rows, width = query.shape

    def by_row(x: Any) -> Any:
        return x.transpose(1, 2).reshape(frames, rows, heads * width)

    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [by_row(query), by_row(key), by_row(value)],
        {"num_heads": heads, "scale": scaling},
        dtype=query.dtype,
        shape=(frames, rows, heads * width),
        version=1,
    )
    return attended.reshape(frames, rows, heads, width), None
