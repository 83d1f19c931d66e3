"""The lint against TensorRT-RTX's real parser and builder: what one takes the other takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import needs
import numpy as np
import pytest
from onnx_node_cases import Case, node_cases
from rtx_parser import Judge, Question, Sizes, judge

from prunevid.export.lint import tensorrt_rtx
from prunevid.export.lint.unsupported import unsupported

needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")

RTX = "rtx-1.7.1.116"
# Every such graph that the lint takes is built; it costs 30 ms.
_BUILT = 25
# Where the lint answers otherwise than the real ones, by patterns of names: the parser takes all of these, and the lint
# does not see what the builder makes of some, or refuses what they take.
EXCEPTIONS = {
    r"test_attention_[34]d.*": "whether there is a kernel for float32 or for small heads hangs on all sizes",
    r"test_loop11.*": "the builder fails at an assertion of its own: slices by the number of an iteration",
    r"test_(de)?quantizelinear.*:T[13]=float8e4m3fn#constant": "STRICTER: zero points of float8 codes",
    r"test_quantizelinear.*:T3=uint8#constant": "STRICTER: codes of uint8",
}


@pytest.fixture(scope="module")
def real() -> Iterator[Judge]:
    with judge() as found:
        yield found


def test_node_tests_of_onnx_in_all_types(real: Judge) -> None:
    cases = list(node_cases())
    assert len(cases) > 5000
    refused = [bool(unsupported(case.model, RTX)) for case in cases]
    parsed = [verdict.parser is None for verdict in real.ask([_question(case) for case in cases])]
    pairs = list(zip(cases, refused, parsed, strict=True))
    assert [case.name for case, found, takes in pairs if not found and not takes] == []
    # What the lint refuses and the parser takes, the builder refuses; of what both take, a part is built.
    doubted = [case for case, found, takes in pairs if found and takes and not _excepted(case)]
    agreed = [case for case, found, takes in pairs if not found and takes and not _excepted(case)][::_BUILT]
    assert len(doubted) > 100
    assert len(agreed) > 100
    verdicts = [verdict.builder for verdict in real.ask([_question(case, build=True) for case in doubted + agreed])]
    assert [case.name for case, why in zip(doubted, verdicts, strict=False) if why is None] == []
    assert [(c.name, why) for c, why in zip(agreed, verdicts[len(doubted) :], strict=True) if why is not None] == []


def _excepted(case: Case) -> bool:
    return any(re.fullmatch(pattern, case.name) for pattern in EXCEPTIONS)


def _question(case: Case, build: bool = False) -> Question:
    arrays = {name: np.asarray(value) for name, value in case.inputs.items() if not isinstance(value, list)}
    shapes: Sizes = {name: (array.shape,) * 3 for name, array in arrays.items()}
    values: Sizes = {
        name: (tuple(int(number) for number in array.ravel()),) * 3
        for name, array in arrays.items()
        if array.dtype.kind in "iuf" and array.size < 100 and np.isfinite(array).all()
    }
    return Question(case.model.SerializeToString(), "", shapes, values, build)


def test_the_docs_have_every_difference() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "tensorrt.md").read_text()
    for row in (*tensorrt_rtx.MISSING, *tensorrt_rtx.REFUSED, *tensorrt_rtx.TAKEN, *tensorrt_rtx.STRICTER):
        assert f"| {row.why} |" in docs
