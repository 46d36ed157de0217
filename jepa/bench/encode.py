"""``jepa bench encode``: the frozen encoder against the same one in timm, transformers and onnxruntime.

A run with random weights is made and exported (`jepa.export`, which compares the outputs), the exports are loaded as a
stranger would, and all of them encode the same normalised images or clips, in alternating order within each round.
Reading and preparing pixels are ``jepa bench extract``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jepa import checkpoint, config
from jepa.bench.result import Result, hardware, interleaved, median, pick_device
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.export.subject import Asked
from jepa.export.write import export
from jepa.nn.memory import keep_freed_memory

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EncodeSettings:
    """What is measured: I-JEPA's ViT/16 on images, or V-JEPA 2's on clips."""

    method: Literal["ijepa", "vjepa"] = "ijepa"
    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "small"
    image_size: int | None = None  # default: 224, of clips 160 on a CPU and 256 elsewhere
    frames: int = 16  # of a clip
    batch: int | None = None  # default: 16 images, 2 clips; 128 and 16 on CUDA
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, as in features
    compile: bool = True  # ours compiled too
    peers: bool = True  # timm (images) and transformers
    onnx: bool = True  # onnxruntime on the CPU
    rounds: int = 5
    clock: Literal["time", "processor"] = "time"  # processor: of this process alone, for one thread on a busy machine


def bench_encode(settings: EncodeSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark in a temporary folder.

    Returns:
        Figures: NAME.images_per_s (or clips) of ours, ours_compiled, timm, transformers, onnx, and NAME.ratio, the
        median over rounds of that one's time divided by ours.

    Raises:
        ConfigError: a device that is not there, a size that the method does not have, or a package that is missing.
    """
    wanted, place = settings or EncodeSettings(), pick_device(device)
    if wanted.rounds < 1 or (wanted.batch is not None and wanted.batch < 1):
        raise ConfigError(f"batch={wanted.batch} and rounds={wanted.rounds}: at least 1")
    gpu, clips = place.type == "cuda", wanted.method == "vjepa"
    if place.type == "cpu":
        keep_freed_memory()
    side = wanted.image_size or ((256 if gpu else 160) if clips else 224)
    batch = wanted.batch or ((16 if gpu else 2) if clips else (128 if gpu else 16))
    shape = (wanted.frames, side, side) if clips else (side, side)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, *shape, generator=generator).to(place)
    with tempfile.TemporaryDirectory() as scratch:
        variants = _variants(wanted, _run(wanted, shape, Path(scratch)), pixels, Path(scratch))
        for run in variants.values():  # compiled, allocated, warm
            run()
            run()
        clock = time.process_time if wanted.clock == "processor" else time.perf_counter
        seconds = interleaved(variants, wanted.rounds, device=place, clock=clock)
    shown = {
        "model": f"ViT-{wanted.size}/16",
        "input": "x".join(map(str, shape)),
        "batch": batch,
        "precision": wanted.precision,
        "rounds": wanted.rounds,
        "clock": wanted.clock,
    }
    result, what = Result("encode", shown, hardware(place)), "clips" if clips else "images"
    for name, spent in seconds.items():
        result.add(f"{name}.{what}_per_s", batch / median(spent), f"{what}/s", _NOTES[name])
        if name != "ours":
            ratio = median([other / ours for other, ours in zip(spent, seconds["ours"], strict=True)])
            result.add(f"{name}.ratio", ratio, "x", "its time / ours, eager; median over the rounds")
    return result


_NOTES = {
    "ours": "eager",
    "ours_compiled": "by torch.compile",
    "timm": "forward_features, eager",
    "transformers": "eager, attention by SDPA",
    "onnx": "onnxruntime on the CPU, normalisation inside",
}


def _run(wanted: EncodeSettings, shape: tuple[int, ...], scratch: Path) -> Path:
    clips = wanted.method == "vjepa"
    method = {"name": wanted.method, "encoder": {"size": wanted.size, "patch": 16}, "predictor": {"depth": 1}}
    data: dict[str, Any] = {"image_size": list(shape[-2:])}
    if clips:
        method["predictor"] = {"depth": 1, "heads": 12}
        data["clip"] = {"frames": shape[0], "stride": 1}
    run = config.build(RunConfig, {"method": method, "data": data})
    checkpoint.save(scratch / "run", 0, checkpoint.create(run), None, {}, run)
    return scratch / "run"


def _variants(wanted: EncodeSettings, run: Path, pixels: Tensor, scratch: Path) -> dict[str, Callable[[], object]]:
    place, clips = pixels.device, wanted.method == "vjepa"
    dtype = _DTYPES[wanted.precision]

    def timed(call: Callable[[Tensor], object], given: Tensor) -> Callable[[], object]:
        def once() -> object:
            with torch.inference_mode(), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
                return call(given)

        return once

    found = {"ours": timed(checkpoint.load_encoder(run, place).encoder, pixels)}
    if wanted.compile:
        compiled = checkpoint.load_encoder(run, place).encoder
        compiled.compile()
        found["ours_compiled"] = timed(compiled, pixels)
    if wanted.peers and not clips:
        found["timm"] = timed(_timm(run, scratch / "timm").to(place).forward_features, pixels)
    if wanted.peers:
        model = _transformers(run, scratch / "transformers").to(place)
        if clips:
            found["transformers"] = timed(model.get_vision_features, pixels.transpose(1, 2).contiguous())
        else:
            found["transformers"] = timed(model, pixels)
    if wanted.onnx and place.type == "cpu":
        found["onnx"] = _onnx(run, pixels, scratch / "onnx")
    return found


def _timm(run: Path, folder: Path) -> Any:
    import timm

    export(run, "timm", folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _transformers(run: Path, folder: Path) -> Any:
    import transformers

    export(run, "transformers", folder)
    return transformers.AutoModel.from_pretrained(folder).eval()


def _onnx(run: Path, pixels: Tensor, folder: Path) -> Callable[[], object]:
    import onnxruntime

    export(run, "onnx", folder, Asked())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(next(folder.glob("*.onnx"))), options, ["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: pixels.numpy()}
    return lambda: session.run(None, fed)


__all__ = ["EncodeSettings", "bench_encode"]
