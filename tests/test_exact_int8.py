"""On which processors int8 products would saturate, and what ONNX Runtime is asked for there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunevid.calibration.cli import report
from prunevid.calibration.quantize.calibrate import Settings, calibrate
from prunevid.calibration.questions import AskedVideo
from prunevid.runtime.backends.ort import ask_for_exact_int8, session_options
from prunevid.runtime.machine import has_exact_int8


@pytest.mark.parametrize(
    ("processor", "flags", "exact"),
    [
        ("x86_64", "fpu sse4_2 avx avx2 fma", False),
        ("x86_64", "fpu avx2 avx512f avx512bw", False),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", True),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_int8_is_computed_in_ways_that_are_exact_on_the_processor(
    processor: str, flags: str | None, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VNNI, sums of two products saturate in 16 bits (docs/calibrate.md has what that costs)."""
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some\nflags\t\t: {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert has_exact_int8(tmp_path) == exact
    monkeypatch.setattr("prunevid.runtime.backends.ort.has_exact_int8", lambda: exact)
    for dialect, remedy in (("ort", "session.x64quantprecision"), ("portable", "session.disable_quant_qdq")):
        options = session_options(1)
        ask_for_exact_int8(options, dialect)
        if exact:
            with pytest.raises(RuntimeError, match="does not have configuration"):
                options.get_session_config_entry(remedy)
        else:
            assert options.get_session_config_entry(remedy) == "1"


@pytest.mark.parametrize(("recipe", "exact", "said"), [("int8-qdq", True, None), ("int8-qdq", False, "int8")])
def test_a_judgement_in_float_is_reported(
    recipe: str,
    exact: bool,
    said: str | None,
    tiny_bundle: Callable[[str, str], Path],
    videos: list[AskedVideo],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("prunevid.runtime.backends.ort", "prunevid.calibration.cli"):
        monkeypatch.setattr(f"{module}.has_exact_int8", lambda: exact)
    settings = Settings(recipe, min_agreement=0, max_new_tokens=2)
    text = report(calibrate(tiny_bundle("qwen2", "portable"), videos, tmp_path / "out", settings))
    assert ("simulated in float" in text) == (said is not None)
    assert said is None or f"judged on this CPU with {said} simulated in float" in text
