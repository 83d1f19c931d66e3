import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid import PruneConfig, PruneVidError

ratios = st.floats(min_value=0.001, max_value=1.0)


def test_defaults_are_the_papers() -> None:
    config = PruneConfig()
    assert (config.segment_ratio, config.static_threshold) == (0.25, 0.8)
    assert (config.cluster_ratio, config.keep_ratio, config.prune_layer) == (0.5, 0.4, 10)
    assert (config.neighbours, config.min_cluster_tokens, config.selection) == (7, 14, "group")
    assert not config.is_disabled


@settings(derandomize=True, deadline=None)
@given(ratio=ratios, maximum=st.integers(0, 400))
def test_segment_counts(ratio: float, maximum: int) -> None:
    counts = PruneConfig(segment_ratio=ratio).segment_counts(maximum)
    assert counts.dtype == np.int64
    assert counts.tolist() == [0] + [max(1, int(n * ratio)) for n in range(1, maximum + 1)]


@settings(derandomize=True, deadline=None)
@given(ratio=ratios, maximum=st.integers(0, 400), least=st.integers(0, 20))
def test_cluster_counts(ratio: float, maximum: int, least: int) -> None:
    counts = PruneConfig(cluster_ratio=ratio, min_cluster_tokens=least).cluster_counts(maximum)
    assert counts.dtype == np.int64
    assert counts.tolist() == [n if n <= least else max(1, int(n * ratio)) for n in range(maximum + 1)]


@settings(derandomize=True, deadline=None)
@given(ratio=ratios, maximum=st.integers(0, 400))
def test_keep_counts(ratio: float, maximum: int) -> None:
    counts = PruneConfig(keep_ratio=ratio).keep_counts(maximum)
    assert counts.dtype == np.int64
    assert counts.tolist() == [int(n * ratio) for n in range(maximum + 1)]


def test_counts_are_float64_products() -> None:
    assert int(np.float32(100) * np.float32(0.29)) == 29
    assert PruneConfig(keep_ratio=0.29).keep_counts(100)[100] == 28


def test_negative_count_is_refused() -> None:
    with pytest.raises(PruneVidError, match="the largest count"):
        PruneConfig().keep_counts(-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segment_ratio", 0),
        ("segment_ratio", 1.01),
        ("cluster_ratio", float("nan")),
        ("cluster_ratio", "0.5"),
        ("keep_ratio", -0.4),
        ("keep_ratio", True),
        ("keep_ratio", None),
        ("static_threshold", 2.5),
        ("static_threshold", float("inf")),
        ("prune_layer", -1),
        ("prune_layer", 10.0),
        ("neighbours", 0),
        ("neighbours", True),
        ("min_cluster_tokens", -1),
        ("selection", "best"),
        ("selection", ["group"]),
    ],
)
def test_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(PruneVidError, match=f"^{name} must be .*, not .*\\.$"):
        PruneConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        PruneConfig(**{name: value})  # type: ignore[arg-type]


def test_disabled_counts_are_the_identity() -> None:
    config = PruneConfig.disabled()
    assert config.is_disabled
    assert config.cluster_counts(300).tolist() == list(range(301))
    assert config.keep_counts(300).tolist() == list(range(301))


@pytest.mark.parametrize("change", [{"static_threshold": 0.9}, {"cluster_ratio": 0.9}, {"keep_ratio": 0.9}])
def test_one_active_stage_is_not_disabled(change: dict[str, float]) -> None:
    settings_ = {**PruneConfig.disabled().to_dict(), **change}
    assert not PruneConfig.from_dict(settings_).is_disabled


@pytest.mark.parametrize(("layers", "layer"), [(32, 10), (28, 8), (24, 7), (8, 2), (6, 1), (80, 25), (3, 0), (1, 0)])
def test_prune_layer_scales_with_depth(layers: int, layer: int) -> None:
    assert PruneConfig.for_depth(layers).prune_layer == layer
    assert PruneConfig(keep_ratio=0.3).scaled_to(layers) == PruneConfig(keep_ratio=0.3, prune_layer=layer)


@pytest.mark.parametrize("layers", [0, -3, 2.0])
def test_impossible_depth_is_refused(layers: int) -> None:
    with pytest.raises(PruneVidError, match="layers must be"):
        PruneConfig.for_depth(layers)


def test_settings_survive_json() -> None:
    config = PruneConfig(keep_ratio=0.3, prune_layer=3, selection="global")
    assert PruneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PruneConfig.from_dict({}) == PruneConfig()


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(PruneVidError, match="unknown prune setting alpha, tau: known are segment_ratio"):
        PruneConfig.from_dict({"alpha": 0.4, "keep_ratio": 0.4, "tau": 0.8})
    with pytest.raises(PruneVidError, match="must be a mapping"):
        PruneConfig.from_dict([("keep_ratio", 0.4)])  # type: ignore[arg-type]


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        PruneConfig().keep_ratio = 0.1  # type: ignore[misc]


def test_import_does_not_load_numpy() -> None:
    code = (
        "import sys, prunevid, prunevid.config; prunevid.PruneConfig();"
        "assert 'numpy' not in sys.modules; prunevid.merge_tokens; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    import prunevid

    assert prunevid.__version__ == "0.1.0"
    assert {"MergedTokens", "PruneConfig", "merge_tokens", "select_tokens"} <= set(dir(prunevid))
    assert all(getattr(prunevid, name) is not None for name in prunevid.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = prunevid.no_such_name
