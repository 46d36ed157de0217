"""`jepa export`: reads its arguments, calls one function, and prints what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jepa import options
from jepa.terminal import print_json


def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its newest checkpoint) or a checkpoint.")],
    form: Annotated[str, typer.Option("--format", help="transformers, timm, torch, onnx or safetensors.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: RUN/exports/FORMAT.")] = None,
    which: options.Which = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32, fp16 or bf16.")] = "fp32",
    image_size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Take images of this size; positions are interpolated.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Take clips of so many frames. Default: as in training.")] = None,
    layers: options.Layers = "",
    any_size: Annotated[
        bool, typer.Option("--any-size/--fixed-size", help="torch, onnx: inputs of any size, where the model can.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    push: Annotated[str, typer.Option(metavar="USER/NAME", help="Also upload it to the hub, by your token.")] = "",
    as_json: options.Json = False,
) -> None:
    """Hand the encoder or world model to people without this package. Checked against the model, or not written."""
    from jepa import config
    from jepa.export.write import Asked
    from jepa.export.write import export as run_export

    size = options.numbers(image_size or "", "--image-size")
    given = {
        "which": which, "dtype": dtype, "frames": frames, "layers": options.numbers(layers, "--layers"),
        "image_size": (size * 2 if len(size) == 1 else size) or None, "any_size": any_size,
    }  # fmt: skip
    folder = out or (run.parent.parent if run.parent.name == "checkpoints" else run) / "exports" / form
    done = run_export(run, form, folder, config.build(Asked, given), force=force, to_hub=push)
    if as_json:
        found = {"folder": str(done.folder), "checks": [c.to_dict() for c in done.checks], "real": done.real}
        return print_json(found)
    for line in [*(check.line for check in done.checks), f"real inputs: {done.real}", *done.notes]:
        typer.echo(line)
    typer.echo(f"written to {done.folder}; what it is and how it is used: {done.folder / 'README.md'}")
