"""What is said of one setting, once: whoever offers, checks, carries, searches or prints settings reads it here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prunevid.validation import Rule

if TYPE_CHECKING:
    from prunevid.config import PruneConfig

__all__ = ["FRAME_COUNTS", "GraphInput", "Off", "Setting", "declare"]

FRAME_COUNTS = "frame_counts"
"""The dimension of a graph input that has an entry for every number of frames, none included."""


@dataclass(frozen=True)
class GraphInput:
    """An input of the graphs that merge, which carries settings, so that one graph serves every value.

    Attributes:
        name: of the input.
        dtype: its element type, in NumPy's words.
        per: what a table has an entry for: every number of "frames", or of "tokens" of a frame, from 0 on. None: it is
            a scalar.
        value: what it is under some settings; of a table, up to so many frames or tokens.
    """

    name: str
    dtype: str
    per: Literal["frames", "tokens"] | None
    value: Callable[[PruneConfig, int], Any]

    def shape(self, tokens: int) -> tuple[int | str, ...]:
        """Its shape in the graphs of a model with so many tokens in a frame."""
        if self.per is None:
            return ()
        return (FRAME_COUNTS if self.per == "frames" else tokens + 1,)


class Off(NamedTuple):
    """How a setting switches its stage off: the value to give, and which values do."""

    value: Any
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """One setting of the method.

    Attributes:
        default: the paper's value.
        help: what it does, in a few words.
        rule: what it may be.
        symbol: its letter in the paper, where it has one.
        choices: the values there are, where it is a name.
        fixed: whether it is fixed at export; all others may differ from run to run.
        graph_input: the input of the graphs that merge which carries it, where one does.
        off: how it switches its stage off, where it can.
        search: the values that tuning tries, or "bundles": one value in each of the bundles that are tuned together.
    """

    default: Any
    help: str
    rule: Rule
    symbol: str | None = None
    choices: Collection[str] | None = None
    fixed: bool = False
    graph_input: GraphInput | None = None
    off: Off | None = None
    search: tuple[float, ...] | Literal["bundles"] | None = None


def declare(default: Any, text: str, rule: Rule, **said: Any) -> Any:
    """A field of a dataclass with all that is said of it: see `Setting`."""
    return field(default=default, metadata={"setting": Setting(default, text, rule, **said)})
