"""The whole chain, from frames and a question to token ids, through the public API.

Unpruned it must be transformers' own `generate`; pruned it must be the method written in torch (torch_method.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from interleaving import VISUAL, Gaps, plain_rows
from models import (
    IDS,
    TINY,
    VOCABULARY,
    behind_video,
    build_tokenizer,
    merge_is_clear,
    pixel_values,
    render_frames,
    video_features,
)
from torch_method import Trace, generate_pruned

from prunevid import PruneConfig, PruneVidError
from prunevid.bundle import open_bundle
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.runtime.backends.backend import choose_backend
from prunevid.runtime.chain import Chain, Selection
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.text.chat import ChatPrompt

Array = npt.NDArray[Any]

BUNDLES = [("qwen2", "ort"), ("qwen2", "portable"), ("tied", "portable"), ("qwen3", "ort")]
BUNDLES += [(name, dialect) for name in ("next-video", "llava") for dialect in ("ort", "portable")]
SHORT, LONG = "Why?", "Which of the two shapes moves to the left, and what colour does it have? " * 5
NEW_TOKENS = 12
# What is promised; measured at 1e-4 and below.
LOGITS = 1e-3
SAMPLING = SamplingConfig(max_new_tokens=NEW_TOKENS)


@dataclass
class Record:
    """What went through the chain since it was last cleared."""

    logits: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)


class RecordingChain(Chain):
    """The chain as it is, writing down what its stages give."""

    record = Record()

    def run_post(self, *args: Any, **kwargs: Any) -> Array:
        logits = super().run_post(*args, **kwargs)
        self.record.logits.append(logits.copy())
        return logits

    def run_select(self, *args: Any, **kwargs: Any) -> Selection:
        selection = super().run_select(*args, **kwargs)
        self.record.scores.append(args[0].copy())
        self.record.selections.append(selection)
        return selection


Load = Callable[[str, str], tuple[Pipeline, RecordingChain]]


@pytest.fixture(scope="module")
def load(tiny_bundle: Callable[[str, str], Path]) -> Load:
    @cache
    def loaded(name: str, dialect: str) -> tuple[Pipeline, RecordingChain]:
        bundle = open_bundle(tiny_bundle(name, dialect))
        chain = RecordingChain(bundle, choose_backend("auto", bundle, threads=1))
        return Pipeline(bundle, chain), chain

    return loaded


def prompt_ids(question: str) -> tuple[list[int], list[int]]:
    """Ids before and after the video, by transformers' own template and tokenizer."""
    before, after = prompt_parts(question, "video", 1)
    return before, after


def prompt_parts(question: str, kind: str, count: int) -> list[list[int]]:
    """Ids around the placeholders of `count` images or videos, one part more than there are of them."""
    content = [*[{"type": kind}] * count, {"type": "text", "text": question}]
    ids = build_tokenizer().apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    (at,) = np.nonzero(np.array(ids) == IDS[f"<{kind}>"])
    return [part.tolist()[number > 0 :] for number, part in enumerate(np.split(np.array(ids), at))]


def around(model: Any, question: str, count: int) -> tuple[list[int], list[int], Gaps | None]:
    """Ids before and after a video of `count` frames, and what stands among them where each is an image."""
    if model.config.model_type != "llava":
        return *prompt_ids(question), None
    before, *between, after = prompt_parts(question, "image", count)
    return before, after, [[], *between, []]


def generate(model: Any, frames: Array, question: str) -> tuple[list[int], Array]:
    """Ids and logits of transformers, greedy and unpruned."""
    before, after, gaps = around(model, question, len(frames))
    pixels = torch.from_numpy(pixel_values(frames))
    visual = video_features(model, pixel_values(frames)).size // model.config.text_config.hidden_size
    shown = [IDS["<video>"]] * (visual + len(behind_video(model)))
    if gaps is not None:
        rows = plain_rows(len(frames), visual // len(frames), gaps)
        shown = [IDS["<image>"] if row == VISUAL else row for row in rows]
    ids = torch.tensor([[*before, *shown, *after]])
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **({"pixel_values_videos": pixels[None]} if gaps is None else {"pixel_values": pixels}),
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return found.sequences[0, ids.shape[1] :].tolist(), torch.stack(found.logits)[:, 0].numpy()


def frames_for(name: str, count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return render_frames(count, TINY[name].image_size, seed, cuts=(count // 2,))


# --- unpruned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize(("name", "dialect"), BUNDLES)
def test_unpruned_answers_are_transformers(
    load: Load, tiny_model: Callable[[str], Any], name: str, dialect: str, count: int, question: str
) -> None:
    pipeline, chain = load(name, dialect)
    frames = frames_for(name, count, seed=count)
    expected_ids, expected_logits = generate(tiny_model(name), frames, question)
    chain.record = Record()
    answer = pipeline.open(frames, frames=count, prune=False).ask(question, SAMPLING)
    assert list(answer.token_ids) == expected_ids
    np.testing.assert_allclose(np.stack(chain.record.logits), expected_logits, atol=LOGITS)
    assert not answer.pruned
    assert answer.text == build_tokenizer().decode(expected_ids, skip_special_tokens=True)


@pytest.mark.parametrize(("name", "dialect"), BUNDLES)
def test_settings_that_happen_to_prune_nothing_change_nothing(
    load: Load, tiny_model: Callable[[str], Any], name: str, dialect: str
) -> None:
    # No frame pair is more alike than 1, so the merge and select graphs run and keep every token.
    pipeline, chain = load(name, dialect)
    settings = replace(pipeline.bundle.manifest.prune, static_threshold=1.0, cluster_ratio=1.0, keep_ratio=1.0)
    assert not settings.is_disabled
    frames = frames_for(name, 5)
    expected_ids, expected_logits = generate(tiny_model(name), frames, SHORT)
    chain.record = Record()
    answer = pipeline.open(frames, prune=settings).ask(SHORT, SAMPLING)
    assert answer.token_counts.kept == 5 * TINY[name].tokens_per_frame
    assert list(answer.token_ids) == expected_ids
    np.testing.assert_allclose(np.stack(chain.record.logits), expected_logits, atol=LOGITS)


# --- pruned ------------------------------------------------------------------------------------------------

SETTINGS = {
    "default": PruneConfig(),
    "small clusters": PruneConfig(cluster_ratio=0.3, min_cluster_tokens=4, keep_ratio=0.5),
    "little static": PruneConfig(static_threshold=0.97, segment_ratio=0.5, keep_ratio=0.2),
    "global": PruneConfig(selection="global", keep_ratio=0.3, min_cluster_tokens=2),
}


@pytest.mark.parametrize("name", ["qwen2", "next-video", "llava"])
def test_the_torch_method_without_pruning_is_generate(tiny_model: Callable[[str], Any], name: str) -> None:
    model, frames = tiny_model(name), frames_for(name, 4)
    expected_ids, expected_logits = generate(model, frames, SHORT)
    config = replace(PruneConfig.disabled(), prune_layer=1)
    before, after, gaps = around(model, SHORT, 4)
    trace = generate_pruned(model, pixel_values(frames), before, after, config, NEW_TOKENS, gaps)
    assert trace.ids == expected_ids
    np.testing.assert_allclose(trace.logits, expected_logits, atol=1e-6)


@pytest.mark.parametrize("count", [1, 6, 12])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("name", "dialect"), BUNDLES)
def test_pruned_answers_are_those_of_the_method_in_torch(
    load: Load, tiny_model: Callable[[str], Any], name: str, dialect: str, settings: str, count: int
) -> None:
    pipeline, chain = load(name, dialect)
    model, frames = tiny_model(name), frames_for(name, count, seed=count)
    question = LONG if count == 6 else SHORT
    config = replace(SETTINGS[settings], prune_layer=pipeline.bundle.manifest.prune.prune_layer)
    pixels = pixel_values(frames)
    assert merge_is_clear(video_features(model, pixels), config), "this case proves nothing: take another seed"
    before, after, gaps = around(model, question, count)
    expected = generate_pruned(model, pixels, before, after, config, NEW_TOKENS, gaps)
    assert 0 < len(expected.kept) < len(expected.tokens)

    chain.record = Record()
    session = pipeline.open(frames, frames=count, prune=config)
    answer = session.ask(question, SAMPLING)
    np.testing.assert_array_equal(session.video.group, expected.group)
    np.testing.assert_allclose(session.video.tokens, expected.tokens, atol=1e-4)
    if gaps is None:
        scores, kept = chain.record.scores[0][len(before) :], chain.record.selections[0].kept
    else:
        scores, kept = session.attend(question)
    np.testing.assert_allclose(scores[: len(expected.scores)], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(kept, expected.kept)
    assert list(answer.token_ids) == expected.ids
    np.testing.assert_allclose(np.stack(chain.record.logits), expected.logits, atol=LOGITS)
    assert answer.pruned
    counts = answer.token_counts
    assert (counts.visual, counts.merged, counts.kept) == (
        count * TINY[name].tokens_per_frame,
        len(expected.tokens),
        len(expected.kept),
    )


# What LLaVA-1.5's template writes: a line break behind each image, of which the last belongs to the question.
IMAGES = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}\
{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}\
{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}\
{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
NEWLINE = Piece(row=VOCABULARY)
UNMERGED = PruneConfig(segment_ratio=1.0, static_threshold=1.0, cluster_ratio=1.0, keep_ratio=1.0)


def among_frames(pipeline: Pipeline, layout: TokenLayout) -> tuple[Pipeline, RecordingChain]:
    """The same bundle with a template that shows frames as images, and with another layout."""
    bundle = pipeline.bundle
    bundle = replace(bundle, manifest=replace(bundle.manifest, token_layout=layout))
    prompt = ChatPrompt(
        bundle.file("tokenizer.json"), IMAGES, "<image>", bundle.manifest.prompt.eos_ids, placeholder="frame"
    )
    chain = RecordingChain(bundle, choose_backend("auto", bundle, threads=1))
    return Pipeline(bundle, chain, prompt), chain


@pytest.mark.parametrize("count", [1, 6, 12])
@pytest.mark.parametrize("settings", [*SETTINGS, None])
@pytest.mark.parametrize(("name", "dialect"), BUNDLES[:2])
def test_what_stands_among_frames_stands_there_in_the_method_in_torch_too(
    load: Load, tiny_model: Callable[[str], Any], name: str, dialect: str, settings: str | None, count: int
) -> None:
    exported = load(name, dialect)[0]
    tokens, prune_layer = TINY[name].tokens_per_frame, exported.bundle.manifest.prune.prune_layer
    layout = TokenLayout(tokens, None, "frame", (Piece(row=7),), (NEWLINE, Piece(row=9)), (Piece(row=11),))
    pipeline, chain = among_frames(exported, layout)
    model, frames = tiny_model(name), frames_for(name, count, seed=count)
    config = replace(SETTINGS[settings] if settings else UNMERGED, prune_layer=prune_layer)
    between = [VOCABULARY, 9, *build_tokenizer().encode("\n"), 7]
    gaps = [[7], *[between] * (count - 1), [VOCABULARY, 9, 11]]
    ids = pipeline.prompt.encode(SHORT)
    expected = generate_pruned(
        model, pixel_values(frames), ids.prefix.tolist(), ids.suffix.tolist(), config, NEW_TOKENS, gaps
    )
    chain.record = Record()
    session = pipeline.open(frames, prune=False if settings is None else config)
    answer = session.ask(ids, SAMPLING)
    assert list(answer.token_ids) == expected.ids
    np.testing.assert_allclose(np.stack(chain.record.logits), expected.logits, atol=LOGITS)
    scores, kept = session.attend(SHORT)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(kept, expected.kept)
    counts = answer.token_counts
    assert (counts.merged, counts.kept) == (len(expected.tokens), len(expected.kept))
    assert counts.text == len(ids.prefix) + sum(map(len, gaps)) + len(ids.suffix)


@pytest.mark.parametrize("settings", ["default", "global", None])
def test_texts_with_the_time_of_a_frame_stand_before_it(
    load: Load, tiny_model: Callable[[str], Any], settings: str | None
) -> None:
    exported, count = load("qwen2", "ort")[0], 6
    texts = Piece(text="<{seconds:.1f} seconds>"), Piece(text=";")
    layout = replace(exported.bundle.manifest.token_layout, before_frame=texts[:1], after_frame=texts[1:])
    bundle = replace(exported.bundle, manifest=replace(exported.bundle.manifest, token_layout=layout))
    chain = RecordingChain(bundle, choose_backend("auto", bundle, threads=1))
    pipeline = Pipeline(bundle, chain, exported.prompt)
    frames = frames_for("qwen2", count, seed=count)
    config = replace(SETTINGS[settings] if settings else UNMERGED, prune_layer=bundle.manifest.prune.prune_layer)
    ask = build_tokenizer().encode
    # Frames of an array are a second apart.
    gaps = [ask((";" if frame else "") + f"<{frame:.1f} seconds>") for frame in range(count)]
    gaps.append([*ask(";"), VOCABULARY])
    expected = generate_pruned(tiny_model("qwen2"), pixel_values(frames), *prompt_ids(SHORT), config, NEW_TOKENS, gaps)
    chain.record = Record()
    features = pipeline.features(frames)
    for session in (
        pipeline.open(frames, prune=config if settings else False),
        pipeline.session(features, prune=config if settings else False),
    ):
        answer = session.ask(SHORT, SAMPLING)
        assert list(answer.token_ids) == expected.ids
        np.testing.assert_array_equal(session.attend(SHORT)[1], expected.kept)
    with pytest.raises(PruneVidError, match="is told when each frame was"):
        pipeline.session(chain.unmerged(features.features))


def test_pruning_changes_the_answer(tiny_model: Callable[[str], Any]) -> None:
    # If it did not, equal answers above would say little about what is pruned.
    model, frames = tiny_model("qwen2"), frames_for("qwen2", 6, seed=6)

    def trace(config: PruneConfig) -> Trace:
        made: Trace = generate_pruned(model, pixel_values(frames), *prompt_ids(SHORT), config, NEW_TOKENS)
        return made

    whole = trace(replace(PruneConfig.disabled(), prune_layer=1))
    pruned = trace(PruneConfig(prune_layer=1))
    merged = trace(PruneConfig(prune_layer=1, keep_ratio=1.0))
    assert len({tuple(found.ids) for found in (whole, pruned, merged)}) == 3


# --- several questions -------------------------------------------------------------------------------------

QUESTIONS = ["What moves?", LONG * 2, "Why?", "What moves?"]


@pytest.mark.parametrize("prune", [False, True], ids=["unpruned", "pruned"])
@pytest.mark.parametrize(("name", "dialect"), BUNDLES)
def test_further_questions_get_the_answers_of_fresh_runs(load: Load, name: str, dialect: str, prune: bool) -> None:
    pipeline, chain = load(name, dialect)
    frames = frames_for(name, 6, seed=2)
    session = pipeline.open(frames, prune=prune)
    answers = []
    for question in QUESTIONS:
        # The second question is longer than the room that was left for one, so the cache must grow.
        chain.record = Record()
        again = session.ask(question, SAMPLING)
        again_logits = np.stack(chain.record.logits)
        chain.record = Record()
        fresh = pipeline.ask(frames, question, prune=prune, max_new_tokens=NEW_TOKENS)
        assert again.token_ids == fresh.token_ids
        assert again.text == fresh.text
        assert again.token_counts == fresh.token_counts
        np.testing.assert_allclose(again_logits, np.stack(chain.record.logits), atol=1e-4)
        answers.append(again.token_ids)
    assert answers[0] == answers[3]
    assert len(set(answers)) == 3


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_one_videos_answers_do_not_depend_on_another_video(load: Load, dialect: str) -> None:
    pipeline, _ = load("qwen2", dialect)
    first, second = (frames_for("qwen2", 5, seed=seed) for seed in (1, 2))
    alone = [pipeline.ask(video, SHORT, max_new_tokens=NEW_TOKENS).token_ids for video in (first, second)]
    assert alone[0] != alone[1]
    sessions = [pipeline.open(video) for video in (first, second)]
    for _ in range(2):
        assert [session.ask(SHORT, SAMPLING).token_ids for session in sessions] == alone
