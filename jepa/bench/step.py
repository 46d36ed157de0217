"""``jepa bench step``: how much of the machine's matrix rate a training step turns into learning.

share of peak = operations the model needs for the tokens of the batch (`jepa.bench.flops`)
              / (median seconds of a step x best rate of a matmul sweep in the same rounds);
a busy machine can only lower it.

Every round runs the sweep, the plain PyTorch baseline (`jepa.bench.plain`, `jepa.bench.plain_video`) and ours, in
alternating order. A step is forward, loss, backward, AdamW and EMA on normalised images or clips that lie on the
device; reading and decoding are ``jepa bench data``. Afterwards the parts of our step are timed one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from jepa import losses, optim, sharding
from jepa.bench import matmul
from jepa.bench.flops import Geometry, StepFlops, step_flops
from jepa.bench.memory import Meter
from jepa.bench.plain import PlainIJEPA
from jepa.bench.plain_video import PlainVJEPA
from jepa.bench.result import Result, hardware, interleaved, median, native_bf16, pick_device, synchronise
from jepa.config import OptimConfig
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods import base
from jepa.methods.ijepa import IJEPA
from jepa.methods.vjepa import VJEPA
from jepa.nn.memory import keep_freed_memory
from jepa.nn.video import VideoEncoderConfig

Precision = Literal["auto", "fp32", "bf16", "both"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MOMENTUM = 0.996


@dataclass(frozen=True)
class StepSettings:
    """What is measured. Defaults of None depend on method and device.

    I-JEPA: ViT-S, batch 16 on a CPU, ViT-L, batch 128 on CUDA, images of 224 px. V-JEPA 2: ViT-S, batch 2, clips of
    160 px on a CPU, ViT-L, batch 24, clips of 256 px on CUDA.
    """

    method: Literal["ijepa", "vjepa"] = "ijepa"
    size: str | None = None  # tiny, small, base, large, huge, giant; gigantic too for vjepa
    batch: int | None = None
    image_size: int | None = None
    frames: int = 16  # of a clip
    patch: int | None = None  # default: 14 for I-JEPA's huge and giant, else 16
    predictor_depth: int | None = None  # default: as in the official settings, 6 for I-JEPA below large, else 12
    predictor_width: int = 384
    precision: Precision = "auto"  # bf16 where the hardware multiplies in it (and fp32 too on a CPU), else fp32
    rounds: int = 5
    baseline: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    keep_memory: bool = True  # on a CPU, as training does (jepa.nn.memory); off shows what it is worth
    matmul_sizes: tuple[matmul.Size, ...] | None = None


def bench_step(settings: StepSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures per precision P ("fp32", "bf16"): P.images_per_s (or clips), P.share_of_peak,
        P.share_of_peak_best_round, P.step_ms, P.peak_gflops, P.model_gflop, P.memory_mb, with the baseline
        P.plain_images_per_s (or clips) and P.speedup, and P.ms.PART.

    Raises:
        ConfigError: settings that no model can have, or a device that is not there.
    """
    wanted, where = settings or StepSettings(), pick_device(device)
    if where.type == "cpu" and wanted.keep_memory:
        keep_freed_memory()
    options, shape, batch, shown = _model(wanted, where.type == "cuda")
    result = Result("step", shown | {"rounds": wanted.rounds, "keep_memory": wanted.keep_memory}, hardware(where))
    for name in _precisions(wanted.precision, where):
        _measure(result, name, wanted, options, shape, batch, where)
    return result


def _model(wanted: StepSettings, gpu: bool) -> tuple[dict[str, Any], tuple[int, ...], int, dict[str, Any]]:
    """``method`` settings, size of the inputs, batch, and what is shown of them."""
    video = wanted.method == "vjepa"
    size = wanted.size or ("large" if gpu else "small")
    batch = wanted.batch or ((24 if video else 128) if gpu else (2 if video else 16))
    patch = wanted.patch or (14 if size in ("huge", "giant") and not video else 16)
    depth = wanted.predictor_depth or (12 if video or size in ("large", "huge", "giant") else 6)
    side = wanted.image_size or ((256 if gpu else 160) if video else 224)
    predictor: dict[str, Any] = {"depth": depth, "width": wanted.predictor_width}
    if video and wanted.predictor_width == 384:
        predictor["heads"] = 12  # as in the official settings
    shape = (wanted.frames, side, side) if video else (side, side)
    shown = {
        "model": f"ViT-{size}/{patch}",
        "image": "x".join(map(str, shape)),
        "batch": batch,
        "predictor": f"{depth}x{wanted.predictor_width}",
    }
    return (
        {"name": wanted.method, "encoder": {"size": size, "patch": patch}, "predictor": predictor},
        shape,
        batch,
        shown,
    )


def _precisions(wanted: Precision, device: torch.device) -> list[str]:
    if wanted == "both" or (wanted == "auto" and device.type == "cpu" and native_bf16(device)):
        return ["fp32", "bf16"]
    if wanted == "auto":
        return ["bf16"] if native_bf16(device) else ["fp32"]
    return [wanted]


def _measure(
    result: Result,
    precision: str,
    wanted: StepSettings,
    options: dict[str, Any],
    shape: tuple[int, ...],
    batch: int,
    device: torch.device,
) -> None:
    dtype = _DTYPES[precision]
    ours = Ours(options, shape, device, dtype, wanted)
    images, masks = ours.example(batch)
    context, targets = [m.shape[1] for m in masks.context], [m.shape[1] for m in masks.target]
    result.settings["tokens"] = f"context {context}, targets {targets} of {ours.geometry.tokens}"
    flops = step_flops(ours.geometry, batch, context, targets, paired=ours.video)
    with Meter(device) as memory:
        ours.step(images, masks)
        ours.step(images, masks)
    sweep = matmul.Sweep(wanted.matmul_sizes or matmul.default_sizes(device), dtype, device)
    variants: dict[str, Callable[[], object]] = {"matmul": sweep.run, "ours": lambda: ours.step(images, masks)}
    if wanted.baseline:
        plain = (PlainVJEPA if ours.video else PlainIJEPA)(ours.geometry, device, dtype)
        variants["plain"] = lambda: plain.step(images, masks.context, masks.target)
    seconds = interleaved(variants, wanted.rounds, device=device)
    parts = ours.parts(images, masks, wanted.rounds)
    what = "clips" if ours.video else "images"
    _report(result, precision, what, batch, flops, sweep, seconds, parts, memory.megabytes)


def _report(
    result: Result,
    precision: str,
    what: str,
    batch: int,
    flops: StepFlops,
    sweep: matmul.Sweep,
    seconds: dict[str, list[float]],
    parts: dict[str, float],
    megabytes: float | None,
) -> None:
    def add(name: str, value: float, unit: str, note: str = "") -> None:
        result.add(f"{precision}.{name}", value, unit, note)

    step, peak = median(seconds["ours"]), sweep.peak()
    rates = sweep.rates()
    best = "x".join(map(str, max(rates.items(), key=lambda item: item[1])[0]))
    add(f"{what}_per_s", batch / step, f"{what}/s", "median over the rounds")
    add("share_of_peak", flops.total / step / peak, "", "model operations per second over the best matmul rate")
    add("share_of_peak_best_round", flops.total / min(seconds["ours"]) / peak, "", "the same for the fastest round")
    add(
        "step_ms", 1e3 * step, "ms", f"rounds from {1e3 * min(seconds['ours']):.0f} to {1e3 * max(seconds['ours']):.0f}"
    )
    add("peak_gflops", peak / 1e9, "GFLOP/s", f"best of {len(rates)} matmul sizes in the same rounds: {best}")
    add("model_gflop", flops.total / 1e9, "GFLOP", "needed by one step; tokens really processed")
    if megabytes is not None:
        add("memory_mb", megabytes, "MiB", "most memory in use: on CUDA by tensors, on a CPU by the whole process")
    if "plain" in seconds:
        plain = seconds["plain"]
        ratio = median([p / o for p, o in zip(plain, seconds["ours"], strict=True)])
        add(f"plain_{what}_per_s", batch / median(plain), f"{what}/s", "plain PyTorch baseline, in the same rounds")
        add("speedup", ratio, "x", "median over rounds of baseline time / our time")
    needed = {
        "target": flops.target,
        "context": flops.context,
        "predictor": flops.predictor,
        "backward": flops.backward,
    }
    for name, value in parts.items():
        share = f"{100 * needed[name] / value / peak:.0f} % of peak" if name in needed else ""
        add(f"ms.{name}", 1e3 * value, "ms", share)


class Ours:
    """The toolkit's own step: method, fused optimiser, EMA."""

    def __init__(
        self,
        options: dict[str, Any],
        size: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        settings: StepSettings | None = None,
        shard: int = 1,
    ) -> None:
        """`shard`: over so many ranks of the process group, by `jepa.sharding`."""
        method = base.create(options, size)
        if not isinstance(method, IJEPA | VJEPA):
            raise ConfigError(f"bench step measures the methods ijepa and vjepa, got {type(method).__name__}")
        self.method: IJEPA | VJEPA = method.to(device)
        if shard > 1:
            sharding.shard(method, device, shard)
        self.device, self.dtype, self.video = device, dtype, isinstance(method, VJEPA)
        self.optimiser = optim.build_optimizer(method, OptimConfig())
        self.geometry = geometry(method)
        self._forward: Callable[..., base.Output] = method
        if settings is not None and settings.compile:
            self._forward = torch.compile(method)
        if settings is not None and settings.activation_checkpointing:
            method.checkpoint_blocks(True)

    def wrap(self, wrapped: Callable[..., base.Output]) -> None:
        """Run forward through this, e.g. DDP around the method."""
        self._forward = wrapped

    def example(self, batch: int) -> tuple[Tensor, Masks]:
        """Random normalised images (B, 3, H, W) or clips (B, 3, T, H, W) and the masks of step 0, on the device."""
        sampler = self.method.sampler(seed=0)
        masks = sampler(0, np.arange(batch, dtype=np.int64)).to(self.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, *self.method.size, generator=generator).to(self.device), masks

    def step(self, images: Tensor, masks: Masks) -> Tensor:
        """One optimiser step on one batch; its loss (0-d, not read back)."""
        with self._autocast():
            loss = self._forward(images, masks, {}).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.method.after_step({"momentum": _MOMENTUM})
        return loss.detach()

    def parts(self, images: Tensor, masks: Masks, rounds: int) -> dict[str, float]:
        """Median seconds of each part of a step, the device's queue emptied between them."""
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, spent in self._timed_parts(images, masks):
                seconds.setdefault(name, []).append(spent)
        return {name: median(values) for name, values in seconds.items()}

    def _timed_parts(self, images: Tensor, masks: Masks) -> Iterator[tuple[str, float]]:
        method, clock = self.method, _Clock(self.device)
        with self._autocast():
            target: Any = method.targets(images, masks)
            yield "target", clock.lap()
            context: Any = method.encoder(images, masks.context)
            yield "context", clock.lap()
            if isinstance(method, VJEPA):
                predicted: Any = method.predictor(context, masks, method.encoder.grid, [0] * len(context))
            else:
                predicted = method.predictor(context, masks.context, masks.target)
            yield "predictor", clock.lap()
            if isinstance(method, VJEPA):
                loss = torch.stack(
                    [losses.latent_loss(p, t, "l1") for p, t in zip(predicted, target, strict=True)]
                ).mean()
            else:
                loss = losses.latent_loss(predicted, target, method.config.loss)
            yield "loss", clock.lap()
        loss.backward()  # type: ignore[no-untyped-call]
        yield "backward", clock.lap()
        self.optimiser.step()
        self.optimiser.zero_grad()
        yield "optimiser", clock.lap()
        method.after_step({"momentum": _MOMENTUM})
        yield "ema", clock.lap()

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        synchronise(device)
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        synchronise(self.device)
        now = time.perf_counter()
        self.last, spent = now, now - self.last
        return spent


def geometry(method: IJEPA | VJEPA) -> Geometry:
    """The sizes of a method's encoder and predictor, read from its configuration."""
    encoder, predictor = method.config.encoder, method.config.predictor
    width, depth, heads, ratio = encoder.resolved()
    return Geometry(
        grid=method.encoder.grid,
        patch=(encoder.tubelet, *encoder.patch) if isinstance(encoder, VideoEncoderConfig) else encoder.patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=int(width * ratio),
        predictor_width=predictor.width,
        predictor_depth=predictor.depth,
        predictor_heads=predictor.heads or heads,
        predictor_hidden=int(predictor.width * predictor.mlp_ratio),
    )
