"""The choices that an export offers, apart from the code that carries them out: these import nothing heavy."""

from __future__ import annotations

PRECISIONS = ("fp32", "fp16")
