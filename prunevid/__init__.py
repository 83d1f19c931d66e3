"""Visual token pruning for video language models: the PruneVid method (arXiv 2412.16117).

The names below are loaded when they are first used, so that `import prunevid` costs nothing: a command line
that only prints its help needs neither NumPy nor the method.
"""

from __future__ import annotations

from importlib import import_module

# As typing has it, which takes a while to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from prunevid.config import PruneConfig
    from prunevid.errors import PruneVidError
    from prunevid.methods.merging import MergedTokens, merge_tokens
    from prunevid.methods.selection import select_tokens

__version__ = "0.1.0"

__all__ = ["MergedTokens", "PruneConfig", "PruneVidError", "__version__", "merge_tokens", "select_tokens"]

_HOMES = {
    "MergedTokens": "prunevid.methods.merging",
    "PruneConfig": "prunevid.config",
    "PruneVidError": "prunevid.errors",
    "merge_tokens": "prunevid.methods.merging",
    "select_tokens": "prunevid.methods.selection",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prunevid' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
