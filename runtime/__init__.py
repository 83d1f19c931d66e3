"""Video in, text out: runs a bundle without torch or transformers.

The names below are loaded when they are first used: what only wants one of them need not wait for ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunevid.runtime.answer import Answer
    from prunevid.runtime.pipeline import Pipeline, load
    from prunevid.runtime.session import VideoSession
    from prunevid.runtime.text.sampling import SamplingConfig
    from prunevid.runtime.timings import Timings

__all__ = ["Answer", "Pipeline", "SamplingConfig", "Timings", "VideoSession", "load"]

_HOMES = {
    "Answer": "answer",
    "Pipeline": "pipeline",
    "SamplingConfig": "text.sampling",
    "Timings": "timings",
    "VideoSession": "session",
    "load": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prunevid.runtime' has no attribute {name!r}")
    return getattr(import_module(f"prunevid.runtime.{_HOMES[name]}"), name)
