"""Where the milliseconds, tokens and megabytes of a question go, pruned beside unpruned.

`profile` measures a loaded pipeline and returns plain records; everything else turns those into a table, JSON,
CSV or a page. The names below are loaded when they are first used: `prunevid profile --help` needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunevid.runtime.profile.measure import ProfileSettings, profile
    from prunevid.runtime.profile.operator_times import measure_operators
    from prunevid.runtime.profile.records import ProfileResult

__all__ = ["ProfileResult", "ProfileSettings", "measure_operators", "profile"]

_HOMES = {
    "ProfileResult": "records",
    "ProfileSettings": "measure",
    "measure_operators": "operators",
    "profile": "measure",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prunevid.runtime.profile' has no attribute {name!r}")
    return getattr(import_module(f"prunevid.runtime.profile.{_HOMES[name]}"), name)
