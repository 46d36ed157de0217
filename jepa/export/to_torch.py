"""torch.export programs: NAME.pt2, which `torch.export.load` opens without this package.

The batch has any size, and so have images and clips where the model can (see `jepa.export.graphs`).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental import _config

from jepa.errors import CheckpointError
from jepa.export.programs import Call, Lower, Program

shapes: Any = _config  # its functions are put in when it is imported


def traced(program: Program) -> ExportedProgram:
    """The program as a graph.

    Raises:
        CheckpointError: a model that computes in a way that cannot be traced.
    """
    program.run(dict(zip(program.inputs, program.example, strict=True)))  # tables are made outside the trace
    axes: Any = (program.axes,) if isinstance(program.module, Lower) else program.axes  # it takes its inputs as *given
    try:
        with quiet(), torch.no_grad(), shapes.patch(backed_size_oblivious=program.down_to_one):
            return torch.export.export(program.module, program.example, dynamic_shapes=axes, strict=False)
    except Exception as error:  # whatever a model's own code meets while it is traced
        raise untraceable(program, "torch.export", error) from None


def untraceable(program: Program, tracer: str, error: Exception) -> CheckpointError:
    """What to tell of a model that a tracer cannot take."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {' '.join(lines)[:300]}"
    return CheckpointError(
        f"{tracer} cannot turn {program.name!r} of this model into a program ({said}). Nothing was written. "
        "--fixed-size asks less of it; --format safetensors needs no tracing"
    )


def write(program: Program, folder: Path) -> Path:
    """FOLDER/NAME.pt2."""
    file = folder / f"{program.name}.pt2"
    made = io.BytesIO()  # torch's own writer of files ends the whole process when the disk is full
    with quiet():
        torch.export.save(traced(program), made)
    file.write_bytes(made.getbuffer())
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


__all__ = ["quiet", "read", "traced", "untraceable", "write"]
