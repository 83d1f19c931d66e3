"""ONNX Runtime's CPU sessions as sessions on a GPU would look: what lies on "cuda" lies in fake_cuda.py's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from fake_cuda import FakeCuda

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_GPU_MODULE = "prunevid.runtime.backends.ort_gpu"


def patch_onnxruntime(patch: pytest.MonkeyPatch, cuda: FakeCuda) -> list[list[Any]]:
    """Make ONNX Runtime look like one for GPUs. Returns the providers that each session was asked for, as they come."""
    asked: list[list[Any]] = []

    def open_session(file: Path, options: Any, providers: list[Any]) -> FakeSession:
        asked.append(providers)
        return FakeSession(ort.InferenceSession(str(file), options, ["CPUExecutionProvider"]), providers, cuda)

    patch.setattr(f"{_GPU_MODULE}.ort.get_available_providers", lambda: [TENSORRT, CUDA, "CPUExecutionProvider"])
    patch.setattr(f"{_GPU_MODULE}.open_session", open_session)
    return asked


class FakeSession:
    """Runs on the stream, behind everything that was begun before, and waits at its end."""

    def __init__(self, session: ort.InferenceSession, providers: list[Any], cuda: FakeCuda) -> None:
        self._session, self._cuda = session, cuda
        self._providers = [each if isinstance(each, str) else each[0] for each in providers]
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._session.io_binding(), self._cuda)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        assert not self._cuda.finish()
        self._session.run_with_iobinding(binding.real)


class FakeBinding:
    def __init__(self, real: Any, cuda: FakeCuda) -> None:
        self.real, self._cuda = real, cuda

    def bind_input(self, name: str, place: str, *rest: Any) -> None:
        assert place in ("cuda", "cpu")
        self.real.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, place: str, *rest: Any) -> None:
        assert place == "cuda"
        self.real.bind_output(name, "cpu", *rest)

    def get_outputs(self) -> list[Any]:
        values: list[Any] = self.real.get_outputs()
        for value in values:
            self._cuda.adopt(value.data_ptr(), value.tensor_size_in_bytes(), value)
        return values
