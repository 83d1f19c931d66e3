"""How far a builder is: TensorRT's and TensorRT-RTX's progress monitor, of whichever module is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_monitor(trt: Any, progress: Callable[[str, int, int], None]) -> Any:
    """An IProgressMonitor that passes the outermost phases on: what is done, the steps done and all steps.

    Where `progress` raises KeyboardInterrupt, the build is stopped, and `interrupted` of the monitor is true.
    """

    class Monitor(trt.IProgressMonitor):
        """Knows the steps of the outermost phases. Returning False stops the build."""

        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._steps:
                    progress(phase_name, step + 1, self._steps[phase_name])
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
