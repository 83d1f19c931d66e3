"""How results are written down: JSON in a file, differences in a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save(report: dict[str, Any], output: Path | None, *, indent: int | None = 1) -> None:
    """Write a report as JSON, where a file is named; its folder is made."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=indent) + "\n")


def points(difference: float, interval: tuple[float, float]) -> str:
    """A difference of shares with its interval, in points: "-0.2 (-0.7 to +0.2)"."""
    low, high = (100 * end for end in interval)
    return f"{100 * difference:+.1f} ({low:+.1f} to {high:+.1f})"
