"""How a video's tokens lie: what a manifest may say of it, and what the runtime makes of that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import edit_manifest, replace_file

from prunevid import PruneVidError
from prunevid.bundle import open_bundle
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.errors import InvalidValueError
from prunevid.runtime import load


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"position_axes": 3}, "3 position axes"),
        ({"encoding": "clip"}, "an encoder of whole clips"),
        ({"question_dependent": True}, "visual tokens that depend on the question"),
        ({"features": (729, 1152)}, "features of another shape than its tokens"),
    ],
)
def test_a_layout_that_the_runtime_cannot_follow_is_refused_by_name(
    tiny_bundle: Callable[[str, str], Path], change: dict[str, Any], named: str
) -> None:
    bundle = open_bundle(tiny_bundle("qwen2", "ort"))
    layout = replace(bundle.manifest.token_layout, **change)
    declared = replace(bundle, manifest=replace(bundle.manifest, token_layout=layout))
    with pytest.raises(PruneVidError, match=f"the model llava-ov has {named}, which this release of prunevid cannot"):
        load(declared)


def test_a_second_tokenizer_is_declared_and_refused_by_name(
    tiny_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle("qwen2", "ort"), tmp_path / "copy"))
    replace_file(folder, "bert.json", b"{}")
    edit_manifest(folder, lambda data: data["prompt"].update(question_tokenizer="bert.json"))
    assert open_bundle(folder).manifest.prompt.question_tokenizer == "bert.json"
    with pytest.raises(PruneVidError, match="has a second tokenizer for questions, which this release"):
        load(folder)


def test_rows_are_named_once_and_in_order() -> None:
    layout = TokenLayout(
        4,
        (2, 2),
        "video",
        (Piece(row=9), Piece(text="at {seconds:.1f}")),
        (Piece(row=3), Piece(row=9)),
        (Piece(row=7),),
    )
    assert layout.rows == (3, 7, 9)
    assert layout.visual(5) == 20


TEXTS = ["<{seconds:.1f} seconds>", "{{{seconds:.0f}}}", "no {{seconds", "{seconds:.2f}{seconds:.6f}"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_with_the_time_of_a_frame(text: str) -> None:
    assert Piece(text=text).is_timed == ("{seconds:" in text)
    with pytest.raises(InvalidValueError, match="only field is"):
        Piece(text=text + "{frame}")
