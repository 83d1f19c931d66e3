"""A second merge method, from the settings to an answer: a reference, a graph and an entry, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunevid import PruneConfig, PruneVidError, merge_tokens
from prunevid.methods.catalog import METHODS, Method
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.demo.asking import CLIP


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    from prunevid.export import export

    monkeypatch.setitem(METHODS, "mean", Method((), "mean_reference", "mean_graph"))
    return export("demo", tmp_path / "mean", prune=PruneConfig(method="mean", prune_layer=2)).path


def test_a_method_is_chosen_by_its_name_at_export(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(bundle)
    manifest = pipeline.bundle.manifest
    assert manifest.prune.method == "mean"
    assert [tensor.name for tensor in manifest.graphs["merge"].inputs] == ["features"]
    features = pipeline.features(CLIP)
    session = pipeline.session(features)
    expected = merge_tokens(np.asarray(features.features), manifest.prune)
    np.testing.assert_allclose(np.asarray(session.video.tokens), expected.tokens, atol=1e-5)
    for found, wanted in (
        (session.video.group, expected.group),
        (session.video.patch_to_token, expected.patch_to_token),
        (session.video.frame_segment, expected.segments),
    ):
        np.testing.assert_array_equal(found, wanted)
    question = "which way does the white triangle move?"
    answer = pipeline.ask(CLIP, question, max_new_tokens=4)
    assert answer.token_counts.merged == len(features) == 16
    assert answer.token_ids == session.ask(question, SamplingConfig(max_new_tokens=4)).token_ids
    with pytest.raises(PruneVidError, match="method is fixed at export: this bundle has mean, not prunevid"):
        pipeline.session(features, PruneConfig(prune_layer=2))
    # A release that does not have the method says so.
    monkeypatch.delitem(METHODS, "mean")
    with pytest.raises(PruneVidError, match="'mean'"):
        load(bundle)


def test_a_setting_of_another_method_is_refused(bundle: Path) -> None:
    with pytest.raises(PruneVidError, match="the merge method mean has no such setting"):
        PruneConfig(method="mean", static_threshold=0.5)
