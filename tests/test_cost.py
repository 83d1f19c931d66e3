import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunevid import PruneConfig, PruneVidError
from prunevid.cost import (
    Cost,
    DecoderShape,
    TokenCounts,
    VisionShape,
    decode_flops,
    decoder_layer_flops,
    kv_bytes,
    lm_head_flops,
    merge_flops,
    prefill_cost,
    projector_flops,
    vision_flops,
)
from prunevid.models import VICUNA_7B
from prunevid.published import paper_layer_flops, paper_ratio, published_figures

QWEN2_7B = DecoderShape(28, 3584, 18944, heads=28, kv_heads=4, head_dim=128, vocab_size=152064)
SMALL = DecoderShape(4, 8, 16, heads=4, kv_heads=2, head_dim=2, vocab_size=10)
SIGLIP = VisionShape(26, 1152, 4304, patches=729, patch_values=588)


def test_published_figures_that_are_reproduced() -> None:
    figures = {figure.name: figure for figure in published_figures()}
    for name in ("PLLaVA-7B, PruneVid", "PLLaVA-7B, FastV"):
        assert figures[name].is_reproduced
        assert round(figures[name].modelled, 2) == figures[name].paper.ratio
        assert not figures[name].paper.note


def test_published_figures_that_are_not_say_why() -> None:
    figures = [figure for figure in published_figures() if not figure.is_reproduced]
    assert [figure.name for figure in figures] == ["LLaVA-OneVision-7B, PruneVid", "ST-LLM-7B, PruneVid"]
    assert all(figure.paper.note for figure in figures)


def test_what_the_notes_claim() -> None:
    assert round(paper_ratio(QWEN2_7B, 6272, 0.425, 0.17, first_layers=5 + 1), 2) == 0.20
    assert round(paper_ratio(QWEN2_7B, 6272, 0.34, 0.17, first_layers=8 + 1), 2) == 0.20
    assert round(paper_ratio(VICUNA_7B, 512, 0.151 / 0.4, 0.151, first_layers=11, text=25), 2) == 0.26
    assert round(paper_ratio(VICUNA_7B, 512, 0.151 / 0.32, 0.151, first_layers=11), 2) == 0.26


def test_two_matrix_mlp_would_miss_the_published_fastv() -> None:
    n, d, m = 2304, 4096, 11008

    def layer(tokens: float) -> float:
        return 4 * tokens * d**2 + 2 * tokens**2 * d + 2 * tokens * d * m

    assert round((2 * layer(n) + 30 * layer(0.3 * n)) / (32 * layer(n)), 2) == 0.32
    assert paper_layer_flops(VICUNA_7B, n) == layer(n) + n * d * m


def test_nothing_pruned_costs_everything() -> None:
    assert paper_ratio(VICUNA_7B, 2304, 1.0, 1.0, first_layers=11, text=30) == 1.0


def test_table_is_printed() -> None:
    run = subprocess.run([sys.executable, "-m", "prunevid.published"], capture_output=True, text=True, check=True)
    assert "PLLaVA-7B, PruneVid" in run.stdout
    assert run.stdout.count("differs") == 2


def test_decoder_layer_by_hand() -> None:
    # Projections: q and o 8x8, k and v 8x4; MLP: three of 8x16; attention of 3 queries to 5 past tokens and
    # to 1, 2, 3 of themselves, by 8 query channels, once for scores and once for values.
    weights = 2 * 64 + 2 * 32 + 3 * 128
    assert decoder_layer_flops(SMALL, new=3, past=5) == 2 * 3 * weights + 2 * 2 * 8 * (15 + 6)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_token_by_token_costs_the_same_as_at_once(new: int, past: int) -> None:
    one_by_one = sum(decoder_layer_flops(SMALL, 1, past + done) for done in range(new))
    assert decoder_layer_flops(SMALL, new, past) == one_by_one


def test_decoding_touches_every_weight_once() -> None:
    # Of Qwen2-7B's 7.6 billion parameters, 0.55 billion are the embedding, which is only looked up.
    assert decode_flops(QWEN2_7B, 0) / 2 == pytest.approx(7.07e9, rel=0.01)
    assert decode_flops(QWEN2_7B, 1000) - decode_flops(QWEN2_7B, 0) == 28 * 4 * 3584 * 1000


def test_vision_tower_is_the_size_it_is_known_for() -> None:
    # SigLIP so400m: 26 of 27 layers, 0.40 billion weights, each used once per patch.
    attention = 26 * 4 * 1152 * 729**2
    assert (vision_flops(SIGLIP, 1) - attention) / (2 * 729) == pytest.approx(0.397e9, rel=0.01)
    assert vision_flops(SIGLIP, 32) == 32 * vision_flops(SIGLIP, 1)
    assert projector_flops(SIGLIP, QWEN2_7B, 2) == 2 * 2 * 729 * (1152 * 3584 + 3584 * 3584)


def test_merging_counts_only_clustered_groups() -> None:
    config = PruneConfig()
    frames_only = 2 * 64 * 4**2
    assert merge_flops(64, 4, [], config) == frames_only
    assert merge_flops(64, 4, [14, 0, 3], config) == frames_only
    assert merge_flops(64, 4, [14, 20], config) == frames_only + 2 * 64 * (20 * 20 + 10 * 20)


def test_a_class_token_runs_along_and_pooling_may_come_before_the_projector() -> None:
    clip = VisionShape(23, 1024, 4096, patches=576, patch_values=588, class_token=True)
    layer = 2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 1024 * 577**2
    assert vision_flops(clip, 3) == 3 * (23 * layer + 2 * 576 * 588 * 1024)
    assert projector_flops(clip, VICUNA_7B, 3) == 3 * 2 * 576 * (1024 * 4096 + 4096**2)
    pooled = replace(clip, projected=144)
    assert vision_flops(pooled, 3) == vision_flops(clip, 3)
    assert 4 * projector_flops(pooled, VICUNA_7B, 3) == projector_flops(clip, VICUNA_7B, 3)
    with pytest.raises(PruneVidError, match="projected must be an integer from 1 to 576"):
        replace(clip, projected=577)


def test_stages_add_up() -> None:
    counts = TokenCounts(visual=6272, merged=2665, kept=1066, text_before=14, text_after=20)
    cost = prefill_cost(QWEN2_7B, counts, PruneConfig.for_depth(28), vision=SIGLIP, frames=32, group_sizes=[196] * 32)
    assert cost.llm_pre == 9 * decoder_layer_flops(QWEN2_7B, 2665 + 34)
    assert cost.llm_post == 19 * decoder_layer_flops(QWEN2_7B, 1066 + 34)
    assert cost.select == 2 * 3584 * 20 * 2665
    assert cost.lm_head == lm_head_flops(QWEN2_7B) == 2 * 3584 * 152064
    assert cost.llm == cost.llm_pre + cost.select + cost.llm_post + cost.lm_head
    assert cost.total == cost.vision + cost.projector + cost.merge + cost.llm
    assert 0 < cost.merge < cost.llm / 100
    assert counts.retained == pytest.approx(0.17, abs=1e-3)


def test_disabled_pruning_is_the_plain_model() -> None:
    counts = TokenCounts(visual=64, merged=30, kept=10, text_before=3, text_after=5).unpruned()
    config = PruneConfig.disabled().scaled_to(4)
    cost = prefill_cost(SMALL, counts, config, frames=4, group_sizes=[16] * 4)
    assert cost == Cost(llm_pre=cost.llm_pre, llm_post=cost.llm_post, lm_head=160)
    assert cost.llm_pre + cost.llm_post == 4 * decoder_layer_flops(SMALL, 72)


def test_kv_bytes() -> None:
    assert kv_bytes(QWEN2_7B, [6306] * 28) == 2 * 4 * 128 * 2 * 6306 * 28
    assert kv_bytes(SMALL, [5, 5, 2, 2], bytes_per_value=4) == 2 * 2 * 2 * 4 * 14
    with pytest.raises(PruneVidError, match="one number per layer \\(4\\), not 3"):
        kv_bytes(SMALL, [1, 2, 3])


def test_no_visual_tokens_retains_all() -> None:
    assert TokenCounts(visual=0, merged=0, kept=0).retained == 1.0


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(PruneVidError, match=r"DecoderShape\.layers must be an integer of 1 or more, not 0"):
        DecoderShape(0, 8, 16, heads=4, kv_heads=2, head_dim=2, vocab_size=10)
    with pytest.raises(PruneVidError, match="multiple of kv_heads"):
        DecoderShape(4, 8, 16, heads=4, kv_heads=3, head_dim=2, vocab_size=10)
    with pytest.raises(PruneVidError, match="VisionShape"):
        VisionShape(1, 1, 1, patches=-1, patch_values=1)
    with pytest.raises(PruneVidError, match="must not decrease"):
        TokenCounts(visual=10, merged=20, kept=5)
    with pytest.raises(PruneVidError, match="prune_layer 3 must leave a layer after it"):
        prefill_cost(SMALL, TokenCounts(10, 5, 2), PruneConfig(prune_layer=3))
