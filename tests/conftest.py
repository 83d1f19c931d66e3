"""What several test files share: tiny models, their checkpoints and exported bundles, each made once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunevid.calibration.questions import AskedVideo

# Nothing is ever downloaded in a test, and a progress bar per checkpoint would bury the results.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture
def ordinary_signals() -> Iterator[None]:
    """Processes that a test starts do not inherit ignored signals, as of a suite that runs in the background."""
    ordinary: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in ordinary.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """Builds the tiny model of a name in `models.TINY`."""
    pytest.importorskip("torch")
    from models import TINY, build_model

    return cache(lambda name: build_model(TINY[name]))


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_model: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Writes the checkpoint folder of a tiny model; tests must not change it."""
    from models import save_checkpoint

    return cache(lambda name: save_checkpoint(tiny_model(name), tmp_path_factory.mktemp(f"checkpoint-{name}")))


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Exports the bundle of a tiny model in a dialect; tests must not change it."""

    @cache
    def export_tiny(name: str, dialect: str) -> Path:
        from models import TINY

        from prunevid.export import export

        output = tmp_path_factory.mktemp("bundles") / f"{name}-{dialect}"
        return export(TINY[name].model, output, checkpoint=str(tiny_checkpoint(name)), dialect=dialect).path

    return export_tiny


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported demo checkpoint; where there is no torch, the one that ships. Tests must not change it."""
    if find_spec("torch") is None:
        from prunevid.runtime.demo.asking import BUNDLE

        return BUNDLE
    from prunevid.export import export

    return export("demo", tmp_path_factory.mktemp("bundles") / "demo").path


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[AskedVideo]:
    """Four videos to calibrate on, with a question each; tests must not change them."""
    from asked import asked_videos

    return asked_videos(tmp_path_factory.mktemp("videos"), 4)
