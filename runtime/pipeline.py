"""The public face of the runtime: load a bundle, ask about videos."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from prunevid.bundle import Bundle, open_bundle
from prunevid.config import SETTINGS, PruneConfig
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer, Timings
from prunevid.runtime.backends.backend import choose_backend
from prunevid.runtime.chain import Chain, VideoTokens
from prunevid.runtime.session import VideoSession
from prunevid.runtime.stream import AnswerStream
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.runtime.video.pixel_values import preprocess, resizer
from prunevid.runtime.video.sources import read_frames
from prunevid.text.chat import ChatPrompt

# A path to a video file or to a folder of images, or frames uint8 [T, H, W, 3].
Video = str | os.PathLike[str] | np.ndarray

_REPLACED_AT_MOST = 100


def load(
    bundle: str | os.PathLike[str] | Bundle,
    backend: str = "auto",
    *,
    threads: int | None = None,
    verify: bool = True,
) -> Pipeline:
    """Load a bundle's graphs.

    backend: ``auto`` (see :func:`prunevid.runtime.backends.backend.choose_backend`), ``ort-cpu``, ``ort-cuda``,
    ``ort-tensorrt``, ``tensorrt`` or ``tensorrt-rtx``. threads: CPU threads, by default one per core. verify: also hash
    every file of the bundle. One that is replaced meanwhile is loaded again. Raises PruneVidError where the bundle is
    damaged or the backend cannot run it.
    """
    if isinstance(bundle, Bundle):
        pipeline = _load(bundle, backend, threads)
        if not bundle.is_current():
            raise PruneVidError(f"{bundle.path} was replaced since it was opened: open it again")
        return pipeline
    for _ in range(_REPLACED_AT_MOST):
        opened = open_bundle(bundle, verify=verify)
        try:
            pipeline = _load(opened, backend, threads)
        except (PruneVidError, OSError):
            if opened.is_current():
                raise
        else:
            if opened.is_current():
                return pipeline
    raise PruneVidError(f"{bundle} is replaced again and again: try again when that is over")


def _load(bundle: Bundle, backend: str, threads: int | None) -> Pipeline:
    # The prompt's process starts while the graphs are loaded.
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(ChatPrompt.of_bundle, bundle)
        chain = Chain(bundle, choose_backend(backend, bundle, threads))
        return Pipeline(bundle, chain, prompt.result())


class Pipeline:
    """A loaded bundle: video in, text out."""

    def __init__(self, bundle: Bundle, chain: Chain, prompt: ChatPrompt | None = None) -> None:
        """``prompt``: the bundle's, where it is at hand."""
        self.bundle = bundle
        self.chain = chain
        self.preprocessing = bundle.manifest.preprocessing
        self.prompt = prompt or ChatPrompt.of_bundle(bundle)

    def open(
        self,
        video: Video,
        *,
        frames: int | None = None,
        prune: bool | PruneConfig = True,
        merge_apart: bool = False,
    ) -> VideoSession:
        """Read and encode a video, and run the language model up to the question.

        frames: how many to sample, by default the bundle's. prune: True for the bundle's settings, False for none, or
        settings of your own (prune_layer and neighbours are fixed at export). merge_apart: merge in a run of its own,
        so that the timings tell it from encoding; else the last batch of frames merges on its way, within the stage
        ``vision``. Raises PruneVidError where the video cannot be read.
        """
        settings = resolve_prune(self.bundle.manifest.prune, prune)
        timings = Timings(self.chain.now)
        with timings.stage("video"):
            count = self.bundle.manifest.frames if frames is None else frames
            sampled = read_frames(video, count, resizer(self.preprocessing))
        with timings.stage("preprocess"):
            pixel_values = preprocess(sampled.frames, self.preprocessing)
        tokens = self._encode(pixel_values, settings, merge_apart, timings)
        return VideoSession(self.chain, self.prompt, tokens, settings, opening=timings, skipped_frames=sampled.skipped)

    def _encode(
        self, pixel_values: np.ndarray, settings: PruneConfig | None, merge_apart: bool, timings: Timings
    ) -> VideoTokens:
        if settings is not None and not merge_apart:
            with timings.stage("vision"):
                return self.chain.encode_and_merge(pixel_values, settings)
        with timings.stage("vision"):
            features = self.chain.encode(pixel_values)
        if settings is None:
            return self.chain.unmerged(features)
        with timings.stage("merge"):
            return self.chain.merge(features, settings)

    def ask(
        self,
        video: Video,
        question: str,
        *,
        frames: int | None = None,
        prune: bool | PruneConfig = True,
        **sampling: Any,
    ) -> Answer:
        """Answer one question about a video.

        sampling: fields of :class:`prunevid.runtime.SamplingConfig`, such as max_new_tokens. For several questions
        about one video, :meth:`open` it. Raises PruneVidError as :meth:`open` and ``VideoSession.ask`` do.
        """
        stream = self.stream(video, question, frames=frames, prune=prune, **sampling)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        video: Video,
        question: str,
        *,
        frames: int | None = None,
        prune: bool | PruneConfig = True,
        **sampling: Any,
    ) -> AnswerStream:
        """Like :meth:`ask`, but piece by piece: iterate over the text, then read ``.answer``."""
        config = SamplingConfig(**sampling)
        # Before the video is read: a question that cannot be asked should not cost its encoding.
        self.prompt.encode(question)
        return self.open(video, frames=frames, prune=prune).stream(question, config)


def resolve_prune(exported: PruneConfig, prune: bool | PruneConfig) -> PruneConfig | None:
    """What ``prune`` means for a bundle exported with these settings; None is no pruning.

    Raises PruneVidError where it has another value for what is fixed at export.
    """
    if not isinstance(prune, PruneConfig):
        settings = exported
    else:
        for name, setting in SETTINGS.items():
            if setting.fixed and getattr(prune, name) != getattr(exported, name):
                raise PruneVidError(
                    f"{name} is fixed at export: this bundle has {getattr(exported, name)}, "
                    f"not {getattr(prune, name)}; export it again to change it"
                )
        settings = prune
    return None if prune is False or settings.is_disabled else settings
