"""ONNX programs: NAME.onnx (weights above 2 GB beside it in NAME.onnx.data), run by onnxruntime without torch.

Needs the extra: ``pip install 'jepa[onnx]'``. Axes that may have any length carry their names in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.export.extras import need
from jepa.export.programs import Call, Program
from jepa.export.to_torch import quiet, traced, untraceable

OPSET = 20
_BIG = 1_500_000_000  # bytes of weights above which they go into a file of their own; a protobuf holds 2 GB
_NEEDS = ("--format onnx", "onnx", "onnxruntime", "onnx", "onnxscript")


def write(program: Program, folder: Path) -> Path:
    """FOLDER/NAME.onnx, its axes named."""
    need(*_NEEDS)
    file = folder / f"{program.name}.onnx"
    graph = traced(program)
    try:
        with quiet():
            made = torch.onnx.export(
                graph, program.example, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=list(program.inputs), output_names=list(program.outputs),
            )  # fmt: skip
    except Exception as error:  # of torch, onnxscript or onnx_ir
        raise untraceable(program, "torch.onnx", error) from None
    assert made is not None, "torch.onnx.export gave no program"
    _name_axes(made.model, program)
    weights = sum(t.numel() * t.element_size() for t in program.module.state_dict().values())
    made.save(str(file), external_data=weights > _BIG)
    return file


def _name_axes(model: Any, program: Program) -> None:
    """The tracer's names of axes (s77) replaced by ours (batch) everywhere in the file."""
    names: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, program.axes, strict=True):
        for axis, dim in axes.items():
            root = getattr(dim, "root", dim)
            found = str(value.shape[axis].value if hasattr(value.shape[axis], "value") else value.shape[axis])
            symbol = found.split("*")[-1]
            if not symbol.isdigit():
                names[symbol] = root.__name__
    for value in [*model.graph.inputs, *model.graph.outputs]:
        for axis, dim in enumerate(value.shape or ()):
            text = str(dim.value if hasattr(dim, "value") else dim)
            if not text.isdigit():
                value.shape[axis] = "*".join(names.get(part, part) for part in text.split("*"))


def read(program: Program, folder: Path) -> Call:
    """The file in onnxruntime on the CPU, as a function of named inputs."""
    runtime = need(*_NEEDS)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(
        str(folder / f"{program.name}.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    taken = {value.name for value in session.get_inputs()}

    def call(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fed = {name: given[name].contiguous().numpy() for name in program.inputs if name in taken}
        out = session.run(list(program.outputs), fed)
        return {name: torch.from_numpy(array) for name, array in zip(program.outputs, out, strict=True)}

    return call


__all__ = ["OPSET", "read", "write"]
