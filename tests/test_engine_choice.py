"""Which optimization profile takes given inputs."""

from __future__ import annotations

from typing import Any

import pytest

from prunevid import PruneVidError
from prunevid.bundle.sections.engine_sets import EngineProfile, EngineSpec, InputRange
from prunevid.runtime.backends.engine_profiles import choose_profile, largest_past


def profile(name: str, rows: tuple[int, int], past: tuple[int, int], question: int = 0) -> EngineProfile:
    (least, most), (shortest, longest) = rows, past
    return EngineProfile(
        name,
        {
            "inputs_embeds": InputRange((1, least, 64), (1, most, 64), (1, most, 64)),
            "past_key.0": InputRange((1, shortest, 2, 16), (1, longest, 2, 16), (1, longest, 2, 16)),
            "static_threshold": InputRange((), (), ()),
        },
        {"question_start": InputRange((0,), (0,), (question,))},
    )


ENGINE = EngineSpec("e", (profile("prefill", (1, 512), (0, 4000), 511), profile("decode", (1, 1), (1, 3000))), "")


def choose(rows: int, past: int, question: int = 0, engine: EngineSpec = ENGINE) -> int:
    shapes = {"inputs_embeds": (1, rows, 64), "past_key.0": (1, past, 2, 16), "static_threshold": ()}
    return choose_profile("llm_pre", engine, shapes, {"question_start": question})


def test_the_profile_that_takes_the_inputs_is_chosen() -> None:
    assert choose(rows=512, past=0, question=511) == 0
    assert choose(rows=7, past=3999) == 0


def test_of_several_the_one_for_the_smallest_inputs_is_chosen() -> None:
    assert choose(rows=1, past=3000) == 1
    turned = EngineSpec("e", ENGINE.profiles[::-1], "")
    assert choose(rows=1, past=3000, engine=turned) == 0


def test_edges_belong_to_a_profile() -> None:
    assert choose(rows=1, past=0) == 0
    assert choose(rows=1, past=3001) == 0
    assert choose(rows=1, past=4000) == 0


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"rows": 513, "past": 5}, "inputs_embeds is 1x513x64, it takes 1x1x64 to 1x512x64"),
        ({"rows": 1, "past": 4001}, r"past_key\.0 is 1x4001x2x16"),
        ({"rows": 600, "past": 5, "question": 600}, "inputs_embeds is 1x600x64"),
        ({"rows": 500, "past": 5, "question": 512}, "question_start is 512, it takes 0 to 511"),
    ],
)
def test_what_fits_nowhere_is_told_with_what_would(inputs: dict[str, Any], why: str) -> None:
    with pytest.raises(PruneVidError, match=f"the engine of llm_pre was built for less: {why}.*use fewer frames"):
        choose(**inputs)


def test_an_input_of_another_rank_fits_nowhere() -> None:
    shapes = {"inputs_embeds": (512, 64), "past_key.0": (1, 5, 2, 16), "static_threshold": ()}
    with pytest.raises(PruneVidError, match="inputs_embeds is 512x64"):
        choose_profile("llm_pre", ENGINE, shapes, {"question_start": 0})


def test_the_largest_past_is_that_of_the_roomiest_profile() -> None:
    assert largest_past(ENGINE) == 4000
    assert largest_past(EngineSpec("e", (), "")) == 0
