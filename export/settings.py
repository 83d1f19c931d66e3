"""The choices that an export offers, apart from the code that carries them out: these import nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

PRECISIONS = ("fp32", "fp16")

# Called with what is being done, the bytes written so far, and the bytes that there will be (0 while unknown).
Progress = Callable[[str, int, int], None]
