"""What the manifest says about the KV cache: how its rows lie in memory, and in which type."""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.validation import require

__all__ = ["CACHE_LAYOUTS", "KvCacheSpec"]

CACHE_LAYOUTS = ("in_place", "appended")
_DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class KvCacheSpec:
    """The KV cache as the graphs take and give it.

    Attributes:
        layout: `in_place`: one buffer [1, kv_heads, capacity, head_dim] of a layer's keys or values is given as past
            and as present, and the graph writes into it. `appended`: the past is [1, rows, kv_heads, head_dim], and
            the present holds the new rows only.
        dtype: Element type, in NumPy's words.

    Raises:
        InvalidValueError: A value is none of those.
    """

    layout: str
    dtype: str

    def __post_init__(self) -> None:
        require("layout", self.layout, self.layout in CACHE_LAYOUTS, " or ".join(CACHE_LAYOUTS))
        require("dtype", self.dtype, self.dtype in _DTYPES, f"one of {', '.join(_DTYPES)}")

    @property
    def is_in_place(self) -> bool:
        """Whether one buffer is past and present."""
        return self.layout == "in_place"
