"""One optimization profile of a TensorRT engine, ready to run: binding, enqueueing, and the CUDA graph of what repeats.

Every shape of an engine of ours depends on input shapes and on numbers that the host knows, so that all memory is there
before it runs. Source of what TensorRT demands: NvInferRuntime.h, IExecutionContext.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from prunevid.bundle import GraphSpec
from prunevid.errors import PruneVidError
from prunevid.runtime.backends.arrays import Array, DeviceArray
from prunevid.runtime.backends.cuda import CapturedWork, Cuda
from prunevid.runtime.backends.device_memory import DeviceMemory

# Alignment of addresses that TensorRT asks for (IExecutionContext::setTensorAddress).
_ALIGNMENT = 256
_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Tools:
    """What the engines of a backend share: TensorRT's name, module and logger, the GPU, its memory, room to work in."""

    title: str
    trt: Any
    logger: Any
    cuda: Cuda
    memory: DeviceMemory
    scratch: ScratchMemory


class ScratchMemory:
    """The memory in which engines work. They run one after the other on one stream, so they share it."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._nbytes = 0
        self._array: DeviceArray | None = None

    def reserve(self, nbytes: int) -> None:
        """See that there will be so much."""
        if nbytes > self._nbytes:
            self._nbytes, self._array = nbytes, None

    def get(self) -> DeviceArray:
        """The memory. It is allocated when it is first needed: by then every engine has said how much it wants."""
        if self._array is None:
            self._array = self._memory.empty((self._nbytes,), _BYTE)
        return self._array


class Prepared(NamedTuple):
    """Execution contexts of an engine, one per profile; None for one that could not be made.

    owner: what must live as long as they do. captures: whether TensorRT captures what it runs in CUDA graphs by itself.
    """

    contexts: Sequence[Any]
    owner: object = None
    captures: bool = False


class EngineContext:
    """An engine's execution context under one profile.

    A run that comes twice in a row with the same shapes and addresses, as decode steps do, is captured as a CUDA graph,
    which is launched in its place from then on, until something differs; where TensorRT does that by itself, it is left
    to it, and told nothing but to run once more.
    """

    def __init__(self, tools: Tools, engine: Any, graph: GraphSpec, number: int, prepared: Prepared) -> None:
        context = prepared.contexts[number]
        if context is None or not context.set_optimization_profile_async(number, tools.cuda.stream):
            raise PruneVidError(f"{tools.title} cannot prepare the engine of {graph.file}: {tools.logger.last_error()}")
        # In this order: the owner goes after the context.
        self._context, self._owner = context, prepared.owner
        self._tools, self._graph, self._capturable = tools, graph, not prepared.captures
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in (*graph.inputs, *graph.outputs)}
        # TensorRT reads the inputs from which it computes shapes on the host.
        host = tools.trt.TensorLocation.HOST
        self._on_host = {
            spec.name: np.zeros([int(dim) for dim in spec.shape], self._dtypes[spec.name])
            for spec in graph.inputs
            if engine.get_tensor_location(spec.name) == host
        }
        self._beside: dict[str, DeviceArray] = {}
        # Outputs that are written beside and then copied to where they are wanted.
        self._staged: dict[str, DeviceArray] = {}
        self._last: object = None
        self._captured: CapturedWork | None = None

    def run(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        """Compute the named `outputs` from `feeds`; the feeds fit the profile."""
        inputs = {name: self._input(name, array) for name, array in feeds.items() if name not in self._on_host}
        for name, value in self._on_host.items():
            value[...] = feeds[name]
        targets = {name: _device_array(array) for name, array in outputs.items() if array is not None}
        this = self._identity(inputs, targets) if len(targets) == len(outputs) else None
        made: dict[str, DeviceArray] = {}
        if this is None or this != self._last:
            # Until it is bound and has run, nothing is known of this context.
            self._last = self._captured = None
            self._bind_inputs(inputs)
            made = self._bind_outputs(outputs, targets)
            self._enqueue()
        elif self._captured is not None:
            self._captured.launch()
        else:
            self._enqueue_again()
        self._last = this
        return {name: made[name] if name in made else self._output(name, targets.get(name)) for name in outputs}

    def _identity(self, inputs: Mapping[str, DeviceArray], targets: Mapping[str, DeviceArray]) -> object:
        """Equal for two runs that TensorRT cannot tell from each other."""
        addresses = [(array.pointer, array.shape) for array in (*inputs.values(), *targets.values())]
        scratch = self._tools.scratch.get().pointer
        return addresses, [value.tolist() for value in self._on_host.values()], list(targets), scratch

    def _input(self, name: str, array: Array) -> DeviceArray:
        """An input where TensorRT can read it: what comes from the host or is not aligned is copied."""
        if isinstance(array, DeviceArray) and array.contiguous and array.pointer % _ALIGNMENT == 0:
            return array
        copied = self._room(name, array.shape)
        self._tools.memory.copy(array, copied)
        return copied

    def _room(self, name: str, shape: tuple[int, ...]) -> DeviceArray:
        """Memory of this context for a tensor, at the same place as long as it does not have to grow."""
        dtype = self._dtypes[name]
        room = self._beside.get(name)
        if room is None or room.nbytes < prod(shape) * dtype.itemsize:
            room = self._beside[name] = self._tools.memory.empty((prod(shape) * dtype.itemsize,), _BYTE)
        return DeviceArray(room.pointer, shape, dtype, room)

    def _bind_inputs(self, inputs: Mapping[str, DeviceArray]) -> None:
        """Tell TensorRT where the inputs are, how large, and where it may work."""
        scratch = self._tools.scratch.get()
        self._context.set_device_memory(scratch.pointer, scratch.nbytes)
        for name, value in self._on_host.items():
            self._address(name, value.ctypes.data)
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise PruneVidError(self._failure(f"refuses {name} of shape {array.shape}"))
            self._address(name, array.pointer)
        missing = self._context.infer_shapes()
        if missing:
            raise PruneVidError(self._failure(f"does not know the shapes of {', '.join(missing)}"))

    def _bind_outputs(
        self, outputs: Mapping[str, Array | None], targets: Mapping[str, DeviceArray]
    ) -> dict[str, DeviceArray]:
        """Tell TensorRT where to write. Returns the outputs that were wanted without a target, and got memory here.

        TensorRT computes all outputs, so those that nobody wants need memory, too.
        """
        made, self._staged = {}, {}
        for spec in self._graph.outputs:
            name = spec.name
            target, shape = targets.get(name), tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise PruneVidError(self._failure(f"does not know the shape of {name} beforehand"))
            if target is not None and target.shape != shape:
                raise ValueError(f"{name} of {self._graph.file} has shape {shape}, not {target.shape}")
            if target is not None and target.pointer % _ALIGNMENT == 0:
                written = target
            elif name in outputs and target is None:
                written = made[name] = self._tools.memory.empty(shape, self._dtypes[name])
            else:
                written = self._staged[name] = self._room(name, shape)
            self._address(name, written.pointer)
        return made

    def _address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise PruneVidError(self._failure(f"refuses the address of {name}"))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._tools.cuda.stream):
            raise PruneVidError(self._failure("failed"))

    def _enqueue_again(self) -> None:
        """The same run once more: capture it, where that is possible."""
        if self._capturable:
            try:
                self._captured = self._tools.cuda.capture(self._enqueue)
            except PruneVidError:
                # Nothing says beforehand which engines can be captured; those that cannot run as they did before.
                self._capturable = False
        if self._captured is None:
            self._enqueue()
        else:
            self._captured.launch()

    def _output(self, name: str, target: DeviceArray | None) -> DeviceArray:
        """An output that had a target, in it."""
        assert target is not None  # the others were made
        if name in self._staged:
            self._tools.memory.copy(self._staged[name], target)
        return target

    def _failure(self, what: str) -> str:
        reason = self._tools.logger.last_error()
        return f"{self._tools.title} {what} while running the engine of {self._graph.file}: {reason}"


def _device_array(array: Array) -> DeviceArray:
    assert isinstance(array, DeviceArray)
    return array
