"""`jepa export`: a folder for people who do not have this package, written whole and tried out, or not at all.

    OUT/README.md       the model card
    OUT/export.json     format, model, preprocessing, programs, what was compared and how closely
    OUT/...             what the format wants: jepa.export.to_transformers, to_timm, to_torch, to_onnx, to_safetensors

The files are made in a folder beside OUT, read back as a stranger would, compared with the model, and then renamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa import config
from jepa.checkpoint.io import versions
from jepa.config import unknown_key
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.export import card, programs, push, subject, to_onnx, to_safetensors, to_timm, to_torch, to_transformers
from jepa.export.graphs import DTYPES, can_resize, encoder_program, patch_of
from jepa.export.programs import Program
from jepa.export.subject import Asked, Subject
from jepa.export.verify import Check, compare, equal_bits
from jepa.export.whole import whole
from jepa.methods.rssm import RSSM
from jepa.methods.world import History, WorldModel

FORMATS = ("transformers", "timm", "torch", "onnx", "safetensors")
_PLANS, _STEPS = 2, 3  # of the roll-out that a world model's programs are tried on


@dataclass(frozen=True)
class Done:
    """An export that was made."""

    folder: Path
    checks: list[Check]
    real: str  # which real inputs it was tried on
    notes: list[str]


def export(
    run: Path | str, form: str, out: Path | str, asked: Asked | None = None, force: bool = False, to_hub: str = ""
) -> Done:
    """Write a run's encoder or world model for others.

    Args:
        run: run folder (its newest checkpoint) or a checkpoint folder.
        form: one of `FORMATS`.
        out: folder to make.
        force: replace what an earlier export left there.
        to_hub: also upload it to this repository ("user/name") of the Hugging Face hub, with the user's own token.

    Raises:
        ConfigError: a format, type, size or layer that this model does not have, or a package that is missing.
        CheckpointError: no usable checkpoint, a target folder with something in it, a full disk, or an export that
            does not give what the model gives. Nothing half-written is left, and an earlier export stays.
    """
    if form not in FORMATS:
        raise ConfigError(unknown_key(f"--format {form}", form, list(FORMATS)).replace("key", "format"))
    asked, folder = asked or Asked(), Path(out)
    push.check(to_hub)
    _check_target(folder, force)
    found = subject.load(run, asked)
    _check_format(found, form)
    with whole(folder, "the export", replace=force) as temporary:
        batch, real = subject.real_inputs(found)
        made = _programs(found) if form in ("torch", "onnx") else []
        record = _record(found, form, made)
        _write_json(temporary / to_safetensors.RECORD, record)
        with torch.inference_mode(False), torch.no_grad():
            checks = _make(found, form, temporary, made, batch)
        record["checks"] = [check.to_dict() for check in checks]
        _write_json(temporary / to_safetensors.RECORD, record)
        (temporary / "README.md").write_text(card.text(found, form, record, checks, real), encoding="utf-8")
    if to_hub:
        push.upload(folder, to_hub)
    return Done(folder, checks, real, _notes(found, form))


def _check_target(folder: Path, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not to_safetensors.is_export(folder):
        raise ConfigError(f"{folder} exists and is no earlier export: give another folder with --out")
    if not force:
        raise ConfigError(f"{folder} holds an earlier export: give another folder with --out, or --force to replace it")


def unfit(found: Subject) -> dict[str, str | None]:
    """Why each format is not available for a model; None where it is."""
    if found.world is not None:
        own = "this is a world model; export the run of its encoder for that"
        try:
            programs.world_programs(found.world, found.config.data.mean, found.config.data.std)
            step = None
        except ConfigError as error:
            step = str(error)
        return {"transformers": own, "timm": own, "torch": step, "onnx": step, "safetensors": None}
    reasons = {"transformers": to_transformers.unfit(found), "timm": to_timm.unfit(found)}
    return reasons | {"torch": None, "onnx": None, "safetensors": None}


def _check_format(found: Subject, form: str) -> None:
    reasons = unfit(found)
    if (reason := reasons[form]) is not None:
        there = ", ".join(name for name, no in reasons.items() if no is None)
        raise ConfigError(f"--format {form} is not available for this model: {reason}. Available: {there}")
    _check_dtype(found, form)
    if found.layers and form not in ("torch", "onnx"):
        raise ConfigError(
            f"--layers is for torch and onnx, whose programs give what they were made for; the files of {form} hold "
            "all layers, and its own interface chooses (docs/export.md)"
        )


def _check_dtype(found: Subject, form: str) -> None:
    allowed, why = [*DTYPES], ""
    if form == "onnx":
        allowed, why = ["fp32", "fp16"], ": onnxruntime has no bf16 on a CPU, where exports are tried out"
    if found.world is not None and form != "safetensors":
        allowed = [name for name in allowed if name in programs.dtypes(found.world)]
        if len(allowed) == 1:
            why = ": in half precision its belief takes other classes, and imagines something else from there on"
    if found.asked.dtype not in allowed:
        what = "this world model's programs" if found.world else f"--format {form}"
        raise ConfigError(f"--dtype {found.asked.dtype}: {what} can be written in {', '.join(allowed)}{why}")


def _programs(found: Subject) -> list[Program]:
    if found.world is not None:
        return programs.world_programs(found.world, found.config.data.mean, found.config.data.std)
    return [encoder_program(found)]


# --- writing and trying out ---------------------------------------------------------------------------------------


def _make(found: Subject, form: str, folder: Path, made: list[Program], batch: Batch | None) -> list[Check]:
    if form == "safetensors":
        return _plain(found, folder, batch)
    inputs = [] if found.world else _inputs(found, batch)
    if form == "transformers":
        to_transformers.write(found, folder)
        return to_transformers.check(found, folder, inputs, batch)
    if form == "timm":
        to_timm.write(found, folder)
        return to_timm.check(found, folder, inputs)
    writer: Any = to_torch if form == "torch" else to_onnx
    for program in made:
        low = found.world is not None  # an encoder's program is made in that type
        writer.write(programs.lowered(program, DTYPES[found.asked.dtype]) if low else program, folder)
    calls = {program.name: writer.read(program, folder) for program in made}
    if found.world is not None:
        return _check_world(found.world, found, calls, made, batch)
    return _check_encoder(found, calls["encoder"], inputs)


def _inputs(found: Subject, batch: Batch | None) -> list[tuple[str, Tensor]]:
    """Random and real pixels: batches of several sizes, and another size of images where the model takes it."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int, size: tuple[int, ...]) -> Tensor:
        return torch.rand(count, 3, *size, generator=generator)

    word = "clips" if found.clips else "images"
    inputs = [(f"random {word}, a batch of 3", draw(3, found.size)), (f"one random {word[:-1]}", draw(1, found.size))]
    if batch is not None:
        inputs.append((f"real {word}", batch.images.float() / 255))
    return inputs


def _plain(found: Subject, folder: Path, batch: Batch | None) -> list[Check]:
    to_safetensors.write(found, folder)
    module = to_safetensors.read(folder)
    own = found.world or found.encoder
    dtype = DTYPES[found.asked.dtype]

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).float() if tensor.is_floating_point() else tensor

    wanted = {name: rounded(tensor) for name, tensor in own.state_dict().items()}
    checks = [equal_bits("read back", dict(module.state_dict()), wanted)]
    if found.world is None:
        for name, pixels in _inputs(found, batch):
            tokens = module(found.normalised(pixels))
            checks.append(compare("tokens", name, tokens, found.tokens(pixels), found.asked.dtype))
    return checks


def _check_encoder(found: Subject, call: programs.Call, inputs: list[tuple[str, Tensor]]) -> list[Check]:
    checks, dtype = [], found.asked.dtype
    if found.asked.any_size and can_resize(found):
        other = _another_size(found)
        generator = torch.Generator().manual_seed(2)
        pixels = torch.rand(2, 3, *other, generator=generator)
        wanted = found.resized(other).tokens(pixels)
        sides = " x ".join(map(str, other))
        checks.append(compare("tokens", f"random, {sides}", call({"pixels": pixels})["tokens"], wanted, dtype))
    for name, pixels in inputs:
        out, wanted = call({"pixels": pixels}), found.tokens(pixels)
        checks.append(compare("tokens", name, out["tokens"], wanted, dtype))
        checks.append(compare("mean of tokens", name, out["pooled"], wanted.mean(dim=1), dtype))
        for number in found.layers:
            checks.append(
                compare(f"layer {number}", name, out[f"layer_{number}"], _layer(found, pixels, number), dtype)
            )
    return checks


def _layer(found: Subject, pixels: Tensor, number: int) -> Tensor:
    """Tokens after a block, normalised as the output is."""
    encoder, kept = found.encoder, []
    levels: Any = getattr(encoder, "levels", None)
    if levels is not None:
        tokens: Tensor = levels(found.normalised(pixels), (number,))[0]
        return tokens
    hook = encoder.get_submodule(f"blocks.{number}").register_forward_hook(lambda *x: kept.append(x[2]))
    try:
        found.tokens(pixels)
    finally:
        hook.remove()
    out: Tensor = encoder.get_submodule("norm")(kept[0])
    return out


def _another_size(found: Subject) -> tuple[int, ...]:
    """One token more along each axis that may have any length."""
    axes, patch = encoder_program(found).axes[0], patch_of(found.encoder)[-len(found.size) :]
    return tuple(n + patch[i] * (i + 2 in axes) for i, n in enumerate(found.size))


def _check_world(
    model: WorldModel, found: Subject, calls: dict[str, programs.Call], made: list[Program], batch: Batch | None
) -> list[Check]:
    """Each program against its module, then whole roll-outs against `observe` and `imagine`."""
    checks, dtype = [], found.asked.dtype
    for program in made:
        given = dict(zip(program.inputs, program.example, strict=True))
        wanted, got = program.run(given), calls[program.name](given)
        for name, tensor in wanted.items():
            checks.append(compare(f"{program.name}: {name}", "random", got[name], tensor, dtype))
    generator, space = torch.Generator().manual_seed(1), model.space
    belief = (model.config.belief.width, model.config.belief.size) if isinstance(model, RSSM) else (0, 0)

    def rolled(name: str, frames: Tensor, actions: Tensor, proprio: Tensor | None) -> Check:
        plans = torch.randn(len(frames), _PLANS, _STEPS, space.action, generator=generator) * model.action_scale.std
        plans = plans + model.action_scale.mean
        seen = found.normalised(frames.transpose(1, 2)).transpose(1, 2)
        wanted = model.imagine(model.observe(History(seen, actions, proprio)), plans)
        most = programs.window(model)
        got = programs.roll_out(calls, most, frames, actions, proprio, plans, belief)
        return compare(f"roll-out of {_STEPS} steps", name, got, wanted.latents, dtype)

    for count in sorted({1, 2, programs.window(model) + 1}):
        frames = torch.rand(2, count, 3, *model.size[-2:], generator=generator)
        actions = torch.randn(2, count - 1, space.action, generator=generator)
        proprio = torch.randn(2, count, space.proprio, generator=generator) if space.proprio else None
        checks.append(rolled(f"after {count} random frame(s)", frames, actions, proprio))
    if batch is not None and batch.steps is not None:
        frames = batch.images.transpose(1, 2).float() / 255
        proprio = batch.steps["proprio"] if space.proprio else None
        checks.append(rolled("real frames", frames, batch.steps["action"], proprio))
    return checks


# --- what is said of it -------------------------------------------------------------------------------------------


def _record(found: Subject, form: str, made: list[Program]) -> dict[str, Any]:
    data, asked = found.config.data, found.asked
    return {
        "made_by": "jepa export",
        "format": form,
        "name": found.config.name,
        "model": {
            "method": config.to_dict(found.config.method), "size": list(found.size), "which": found.which,
            "part": "world" if found.world else "encoder", "step": found.step, "dtype": asked.dtype,
            "architecture": type(found.world or found.encoder).__name__,
        },
        "preprocessing": {
            "image_size": list(found.size[-2:]), "frames": found.size[0] if found.clips else None,
            "clip": config.to_dict(data.clip) if data.clip else None,
            "crop": "the largest centred part of that shape", "interpolation": data.interpolation, "antialias": True,
            "range": [0, 1], "mean": list(data.mean), "std": list(data.std), "inside": form in ("torch", "onnx"),
        },
        "programs": {p.name: _signature(p) for p in made},
        "window": programs.window(found.world) if found.world and made else None,
        "layers": list(found.layers),
        "opset": to_onnx.OPSET if form == "onnx" else None,
        "versions": versions(),
    }  # fmt: skip


def _signature(program: Program) -> dict[str, Any]:
    """Shapes by name; an axis of any length is a word."""
    outputs = program.run(dict(zip(program.inputs, program.example, strict=True)))
    inputs = {}
    for name, tensor, axes in zip(program.inputs, program.example, program.axes, strict=True):
        inputs[name] = [_axis(axes[i]) if i in axes else n for i, n in enumerate(tensor.shape)]
    first = next(iter(inputs.values()))[0]
    any_size = program.name == "encoder" and len(program.axes[0]) > 1

    def shape(tensor: Tensor) -> list[Any]:
        return [first, "tokens" if any_size and tensor.ndim == 3 else tensor.shape[1], *tensor.shape[2:]]

    return {"inputs": inputs, "outputs": {n: shape(t) if t.ndim > 1 else [first] for n, t in outputs.items()}}


def _axis(dim: Any) -> str:
    root = getattr(dim, "root", None)
    return dim.__name__ if root is None else f"{dim.__name__}"


def _notes(found: Subject, form: str) -> list[str]:
    if form in ("torch", "onnx") and not found.world and found.asked.any_size and not can_resize(found):
        return [f"the size of inputs is fixed: how {type(found.encoder).__name__} interpolates positions is not known"]
    return []


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


__all__ = ["FORMATS", "Asked", "Done", "export", "unfit"]
