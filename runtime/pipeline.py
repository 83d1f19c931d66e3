"""The public face of the runtime: load a bundle, ask about videos."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from prunevid.bundle import Bundle, open_bundle
from prunevid.config import SETTINGS, PruneConfig
from prunevid.errors import PruneVidError
from prunevid.runtime.answer import Answer
from prunevid.runtime.backends.backend import choose_backend
from prunevid.runtime.chain import Chain
from prunevid.runtime.features import VideoFeatures
from prunevid.runtime.sequence import VideoTokens
from prunevid.runtime.session import VideoSession
from prunevid.runtime.stream import AnswerStream
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.runtime.timings import Stopwatch, Timings
from prunevid.runtime.unsupported import check_supported
from prunevid.runtime.video.frames import SampledFrames
from prunevid.runtime.video.pixel_values import preprocess, resizer
from prunevid.runtime.video.sources import read_frames
from prunevid.runtime.window import FeatureWindow
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

    backend: `auto` (see `prunevid.runtime.backends.backend.choose_backend`), `ort-cpu`, `ort-cuda`,
    `ort-tensorrt`, `tensorrt` or `tensorrt-rtx`. threads: CPU threads, by default one per core. verify: also hash
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
    check_supported(bundle.manifest)
    # The prompt's process starts while the graphs are loaded.
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(ChatPrompt.of, bundle)
        chain = Chain(bundle, choose_backend(backend, bundle, threads))
        return Pipeline(bundle, chain, prompt.result())


class Pipeline:
    """A loaded bundle: video in, text out."""

    def __init__(self, bundle: Bundle, chain: Chain, prompt: ChatPrompt | None = None) -> None:
        """`prompt`: the bundle's, where it is at hand."""
        self.bundle = bundle
        self.chain = chain
        self.preprocessing = bundle.manifest.preprocessing
        self.prompt = prompt or ChatPrompt.of(bundle)

    def open(self, video: Video, *, frames: int | None = None, prune: bool | PruneConfig = True) -> VideoSession:
        """Read and encode a video, and run the language model up to the question.

        The same as `features` and `session`, but the last batch of frames merges on its way, within the stage vision.

        Args:
            video: What to read.
            frames: How many frames to sample, by default the bundle's.
            prune: True for the bundle's settings, False for none, or settings of your own (prune_layer and neighbours
                are fixed at export).

        Raises:
            PruneVidError: The video cannot be read, the settings have another value for what is fixed at export, or
                the video takes more positions than the model has.
        """
        settings = resolve_prune(self.bundle.manifest.prune, prune)
        if settings is None:
            return self.session(self.features(video, frames), prune=False)
        stopwatch = Stopwatch(self.chain.now)
        sampled, pixel_values = self._read(video, frames, stopwatch)
        with stopwatch.stage("vision"):
            tokens = self.chain.encode_and_merge(pixel_values, settings)
        tokens = replace(tokens, seconds=sampled.timestamps_s)
        return self._session(tokens, settings, stopwatch.timings, sampled.skipped)

    def features(self, video: Video, frames: int | None = None) -> VideoFeatures:
        """Read and encode a video, for sessions with any settings.

        Args:
            video: What to read.
            frames: How many frames to sample, by default the bundle's.

        Raises:
            PruneVidError: The video cannot be read.
        """
        stopwatch = Stopwatch(self.chain.now)
        sampled, pixel_values = self._read(video, frames, stopwatch)
        with stopwatch.stage("vision"):
            features = self.chain.encode(pixel_values)
        return VideoFeatures(features, sampled.timestamps_s, sampled.skipped, stopwatch.timings)

    def session(self, video: VideoFeatures | VideoTokens, prune: bool | PruneConfig = True) -> VideoSession:
        """Merge a video's features, and run the language model up to the question.

        The first answer's timings begin with those of the features; merging is a stage of its own, merge.

        Args:
            video: Its features, all frames or some; or tokens that are merged already, or not at all.
            prune: As in `open`; of tokens, what questions keep of them.

        Raises:
            PruneVidError: The settings have another value for what is fixed at export, the video has no frames, or it
                takes more positions than the model has.
        """
        settings = resolve_prune(self.bundle.manifest.prune, prune)
        if isinstance(video, VideoTokens):
            return self._session(video, settings)
        stopwatch = Stopwatch(self.chain.now, video.timings)
        if settings is None:
            tokens = self.chain.unmerged(video.features)
        else:
            with stopwatch.stage("merge"):
                tokens = self.chain.merge(video.features, settings)
        tokens = replace(tokens, seconds=video.seconds)
        return self._session(tokens, settings, stopwatch.timings, video.skipped)

    def _session(
        self, video: VideoTokens, settings: PruneConfig | None, opening: Timings | None = None, skipped: int = 0
    ) -> VideoSession:
        prefix = self.chain.arrange(video, self.prompt)
        return VideoSession(self.chain, self.prompt, prefix, settings, opening=opening, skipped_frames=skipped)

    def window(self, frames: int | None = None) -> FeatureWindow:
        """An empty window over a video that goes on: push frames, and open a `session` on its features at any time.

        Args:
            frames: The most frames that it keeps, by default the bundle's.

        Raises:
            PruneVidError: There is no memory for so many frames, or their number is not 1 or more.
        """
        return FeatureWindow(self.chain, self.bundle.manifest.frames if frames is None else frames)

    def _read(self, video: Video, frames: int | None, stopwatch: Stopwatch) -> tuple[SampledFrames, np.ndarray]:
        """Frames of a video, and their pixel values float32 [T, 3, size, size]."""
        with stopwatch.stage("video"):
            count = self.bundle.manifest.frames if frames is None else frames
            sampled = read_frames(video, count, resizer(self.preprocessing))
        with stopwatch.stage("preprocess"):
            return sampled, preprocess(sampled.frames, self.preprocessing)

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

        sampling: fields of `prunevid.runtime.SamplingConfig`, such as max_new_tokens. For several questions
        about one video, `open` it. Raises PruneVidError as `open` and `VideoSession.ask` do.
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
        """Like `ask`, but piece by piece: iterate over the text, then read `.answer`."""
        config = SamplingConfig(**sampling)
        # Before the video is read: a question that cannot be asked should not cost its encoding.
        ids = self.prompt.encode(question)
        return self.open(video, frames=frames, prune=prune).stream(ids, config)


def resolve_prune(exported: PruneConfig, prune: bool | PruneConfig) -> PruneConfig | None:
    """What `prune` means for a bundle exported with these settings; None is no pruning.

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
