"""The KV cache: rows stay where they were written, nothing is lost when it moves, nothing is written past its end."""

from __future__ import annotations

import numpy as np
import pytest

from prunevid.bundle.sections.cache import KvCacheSpec
from prunevid.cost import DecoderShape
from prunevid.dialects import DIALECTS
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtCpuBackend
from prunevid.runtime.kv_cache import KvCache

SHAPE = DecoderShape(layers=4, hidden_size=32, intermediate_size=64, heads=4, kv_heads=2, head_dim=8, vocab_size=50)
ROW_AXIS = {"ort": 2, "portable": 1}


class Padding(OrtCpuBackend):
    """Gives decode steps multiples of four rows as past."""

    def past_rows(self, length: int) -> int:
        return -(-length // 4) * 4


def cache(dialect: str, capacity: int = 6, backend: OrtCpuBackend | None = None) -> KvCache:
    spec = KvCacheSpec(DIALECTS[dialect].cache_layout, "float32")
    return KvCache(backend or OrtCpuBackend(), spec, range(1, 3), SHAPE, capacity)


def host(array: Array) -> np.ndarray:
    """The array, which is one of this machine."""
    assert isinstance(array, np.ndarray)
    return array


def write(kv: KvCache, dialect: str, values: list[float]) -> None:
    """What a graph does: write the new rows to where the cache says they go."""
    for target in map(host, kv.present(len(values)).values()):
        place = target[:, :, kv.length : kv.length + len(values)] if dialect == "ort" else target
        shape = [1, 1, 1, 1]
        shape[ROW_AXIS[dialect]] = len(values)
        place[...] = np.array(values, np.float32).reshape(shape)
    kv.advance(len(values))


def rows(kv: KvCache, dialect: str) -> list[float]:
    past = host(kv.past()["past_value.2"])
    return [float(value) for value in (past[0, 0, : kv.length, 0] if dialect == "ort" else past[0, :, 0, 0])]


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_new_rows_follow_the_rows_in_use(dialect: str) -> None:
    kv = cache(dialect)
    write(kv, dialect, [1, 2, 3])
    write(kv, dialect, [4])
    assert rows(kv, dialect) == [1, 2, 3, 4]
    assert set(kv.past()) == {"past_key.1", "past_value.1", "past_key.2", "past_value.2"}


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_rows_are_contiguous_memory_that_a_graph_can_be_given(dialect: str) -> None:
    kv = cache(dialect)
    write(kv, dialect, [1, 2])
    for array in (*kv.past().values(), *kv.present(3).values()):
        assert host(array).flags.c_contiguous


def test_in_the_portable_dialect_past_and_new_rows_do_not_overlap() -> None:
    kv = cache("portable")
    write(kv, "portable", [1, 2])
    assert not np.shares_memory(kv.past()["past_key.1"], kv.present(2)["present_key.1"])


def test_in_the_ort_dialect_past_and_present_are_one_buffer() -> None:
    kv = cache("ort")
    assert kv.past()["past_key.1"] is kv.present(2)["present_key.1"]


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_moving_to_larger_buffers_keeps_the_rows(dialect: str) -> None:
    kv = cache(dialect, capacity=3)
    write(kv, dialect, [1, 2, 3])
    kv.reserve(5)
    assert kv.capacity == 5
    write(kv, dialect, [4, 5])
    assert rows(kv, dialect) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_room_that_is_there_moves_nothing(dialect: str) -> None:
    kv = cache(dialect, capacity=4)
    before = host(kv.present(1)["present_key.1"]).ctypes.data
    kv.reserve(4)
    assert host(kv.present(1)["present_key.1"]).ctypes.data == before


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_rewound_rows_are_overwritten(dialect: str) -> None:
    kv = cache(dialect)
    write(kv, dialect, [1, 2, 3])
    kv.rewind(1)
    write(kv, dialect, [9])
    assert rows(kv, dialect) == [1, 9]


def test_bytes_are_those_of_the_rows_in_use() -> None:
    kv = cache("ort")
    assert kv.nbytes == 0
    write(kv, "ort", [1, 2, 3])
    assert kv.nbytes == 3 * 2 * 2 * SHAPE.kv_heads * SHAPE.head_dim * 4


def test_too_many_rows_and_rewinding_forwards_are_refused() -> None:
    kv = cache("ort", capacity=2)
    with pytest.raises(ValueError, match="do not fit"):
        kv.present(3)
    with pytest.raises(ValueError, match="cannot rewind"):
        kv.rewind(1)


def test_a_decode_step_may_be_given_more_rows_than_are_in_use() -> None:
    kv = cache("portable", capacity=6, backend=Padding())
    assert kv.capacity == 8
    write(kv, "portable", [1, 2, 3, 4, 5])
    past = kv.past(decoding=True)["past_value.2"]
    assert host(past)[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert kv.past()["past_value.2"].shape[1] == 5


def test_a_decode_step_that_is_given_more_rows_writes_aside_what_then_follows_the_rows_in_use() -> None:
    kv = cache("portable", capacity=6, backend=Padding())
    write(kv, "portable", [1, 2])
    places = []
    for value in (3.0, 4.0, 5.0, 6.0):
        past = kv.past(decoding=True)["past_value.2"]
        targets = kv.present(1, decoding=True)
        for target in targets.values():
            assert not np.shares_memory(host(target), host(past))
            host(target)[...] = value
        kv.advance(1)
        places.append(host(targets["present_value.2"]).ctypes.data)
    assert rows(kv, "portable") == [1, 2, 3, 4, 5, 6]
    # Four rows in use need no filling up, so the fifth was written straight behind them.
    assert places[0] == places[1] == places[3] != places[2]
