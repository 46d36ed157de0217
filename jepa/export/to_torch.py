"""torch.export programs: NAME.pt2, which `torch.export.load` opens without this package.

The batch has any size, and so have images and clips where the model can (see `jepa.export.graphs`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from jepa.export.programs import Call, Program


def traced(program: Program) -> ExportedProgram:
    """The program as a graph."""
    program.run(dict(zip(program.inputs, program.example, strict=True)))  # tables are made outside the trace
    with quiet(), torch.no_grad():
        return torch.export.export(program.module, program.example, dynamic_shapes=program.axes, strict=False)


def write(program: Program, folder: Path) -> Path:
    """FOLDER/NAME.pt2."""
    file = folder / f"{program.name}.pt2"
    with quiet():
        torch.export.save(traced(program), file)
    return file


def read(program: Program, folder: Path) -> Call:
    """The file as a function of named inputs."""
    with quiet():
        module = torch.export.load(folder / f"{program.name}.pt2").module()

    def call(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            out = module(*(given[name] for name in program.inputs))
        return dict(zip(program.outputs, out if isinstance(out, tuple | list) else (out,), strict=True))

    return call


@contextmanager
def quiet() -> Iterator[None]:
    """Without the tracer's own remarks, which tell users of an export nothing."""
    names = ("torch.export", "torch.onnx", "torch.fx", "torch._export", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


__all__ = ["quiet", "read", "traced", "write"]
