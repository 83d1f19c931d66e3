"""A package that is missing is skipped over; one that is there and broken is not."""

from __future__ import annotations

from pathlib import Path

import needs
import pytest


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.below", "json.no_such"])
def test_what_is_not_installed_is_skipped(name: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="the-wheel is not installed"):
        needs.package(name, "the-wheel")


@pytest.mark.parametrize("line", ["import there_is_no_such_package", "raise ImportError('libnvinfer.so.10')", "1 / 0"])
def test_what_is_installed_and_broken_is_a_failure(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "installed_and_broken.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ImportError, ZeroDivisionError)):
        needs.package("installed_and_broken")


def test_a_gpu_is_seen_whatever_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_DEVICES", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="no NVIDIA GPU"):
        needs.gpu()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(pytest.skip.Exception, match="no NVIDIA GPU"):
        needs.gpu()
    (tmp_path / "nvidia5").touch()
    needs.gpu()
