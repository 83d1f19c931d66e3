"""ONNX's own node tests as graphs to judge: as they are, in all element types, and with constants for inputs."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, defs, helper

# So many tests of an operator are varied; all are judged as they are.
_VARIED = 2


class Case(NamedTuple):
    """A graph: the name of ONNX's test, with what was varied behind it, and what its inputs are in that test."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]


def node_cases() -> Iterator[Case]:
    """Every node test of this release of ONNX, and its variants.

    `:T=float16` behind a name: inputs and outputs of the operator's type T are of that type. `#whole`: its integer
    and boolean inputs behind the first are constants; `#constant`: all behind the first are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        tests = list(collect_testcases(None))
    varied: Counter[tuple[str, str]] = Counter()
    for test in tests:
        names = [value.name for value in test.model.graph.input]
        inputs = dict(zip(names, test.data_sets[0][0], strict=False))
        yield Case(test.name, test.model, inputs)
        if len(test.model.graph.node) > 1 or test.model.functions or test.model.graph.node[0].domain:
            continue
        for label, constants in _constants(test.model, inputs).items():
            if constants:
                yield Case(test.name + label, with_constants(test.model, constants, inputs), inputs)
            key = (test.model.graph.node[0].op_type, label)
            varied[key] += 1
            if varied[key] > _VARIED:
                continue
            for kind, model in _typed(test.model):
                made = with_constants(model, constants, inputs) if constants else model
                yield Case(test.name + kind + label, made, inputs)


def with_constants(model: onnx.ModelProto, names: list[str], values: dict[str, Any]) -> onnx.ModelProto:
    """A copy with initializers, of the inputs' element types, in the place of some inputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = [value for value in made.graph.input if value.name not in names]
    for value in made.graph.input:
        if value.name in names:
            array = np.asarray(values[value.name])
            kind = value.type.tensor_type.elem_type
            numbers = array.ravel() if array.dtype == bool else array.astype(np.float64).ravel()
            made.graph.initializer.append(helper.make_tensor(value.name, kind, array.shape, numbers))
    del made.graph.input[:]
    made.graph.input.extend(kept)
    return made


def _constants(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, list[str]]:
    """Names of inputs that become constants, by what that is called."""
    found: dict[str, list[str]] = {"": []}
    if not all(isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf" for value in inputs.values()):
        return found
    later = [value for value in model.graph.input[1:] if value.name in inputs]
    whole = [value.name for value in later if value.type.tensor_type.elem_type in _WHOLE]
    if whole:
        found["#whole"] = whole
    if later and len(whole) < len(later):
        found["#constant"] = [value.name for value in later]
    return found


_WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def _typed(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The model in every type that its operator's schema allows for one of its types, where ONNX takes that."""
    node = model.graph.node[0]
    schema = defs.get_schema(node.op_type, model.opset_import[0].version, "")
    names = defaultdict(set)
    for formal, given in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for number, name in enumerate(given):
            if name:
                names[formal[min(number, len(formal) - 1)].type_str].add(name)
    for constraint in schema.type_constraints:
        variable = constraint.type_param_str
        for allowed in sorted(constraint.allowed_type_strs) if variable in names else ():
            if not allowed.startswith("tensor(") or allowed == "tensor(string)":
                continue
            kind = allowed.removeprefix("tensor(").removesuffix(")")
            made = onnx.ModelProto()
            made.CopyFrom(model)
            for value in (*made.graph.input, *made.graph.output):
                if value.name in names[variable]:
                    number = {"float": "FLOAT", "double": "DOUBLE"}.get(kind, kind.upper())
                    value.type.tensor_type.elem_type = TensorProto.DataType.Value(number)
            try:
                onnx.checker.check_model(made, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
                continue
            yield f":{variable}={kind}", made
