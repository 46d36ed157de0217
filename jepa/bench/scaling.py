"""``jepa bench scaling``: training on many GPUs by calculation, and two processes against one by measurement.

Calculated, for a shipped or own configuration on W GPUs, from its parameters and counted operations (`jepa.cost`) and
from the rates given as settings, which are assumptions to be replaced by those of a cluster:

    compute  = operations of a step / (W x sustained rate)
    DDP      all-reduce of gradients once a step: 2 (W - 1) / W x 4 bytes x trained parameters
    FSDP     all-gather of trained weights for forward and for backward, of the teacher's for its forward, each
             (W - 1) / W x 4 bytes x parameters; reduce-scatter of gradients as much as one gather
    exchange = bytes a rank sends / bandwidth + collectives x latency x log2 W
    exposed  = max(0, exchange - overlap x the part of compute that it can hide behind)
    efficiency = compute / (compute + exposed)

DDP's exchange hides behind backward (2 / 3 of compute), FSDP's behind all of it. Rings that go through several nodes
use all adapters of a node side by side, so bandwidth is the smaller one of what a GPU sends inside a node and what a
whole node sends. Gradients and gathered weights are float32, also under bf16 autocast. Left out: stragglers, reading.

Measured (`measure=true`), over gloo on this machine's CPU, in alternating order within one pair of processes: a step of
one process while the other one waits, of both without exchange, with DDP, and sharded. What both without exchange lose
is the machine's (shared caches and memory, other programs), the rest is communication's.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepa import config, cost, sharding
from jepa.bench.result import Result, hardware, median
from jepa.bench.step import Ours
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.methods import base

_BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once
_LIMIT = 900.0  # seconds that the measured processes may take


@dataclass(frozen=True)
class ScalingSettings:
    """What is calculated, and the assumptions; or what is measured."""

    config: str = "ijepa-vit-h14"  # whose step is calculated
    gpus: tuple[int, ...] = (8, 64, 512)
    node: int = 8  # GPUs of a node
    tflops: float = 400.0  # sustained rate of a GPU in matrix products, 10^12 operations a second
    inside: float = 300.0  # GB/s that a GPU sends inside a node
    between: float = 320.0  # GB/s that a node sends to others, by all its adapters (8 of 400 Gb/s at 80 %)
    latency: float = 20.0  # microseconds of a collective for each doubling of GPUs
    overlap: float = 0.8  # share of the hiding part of compute during which an exchange really goes on
    sample_kb: float = 110.0  # bytes of a stored sample, for reading
    measure: bool = False
    size: str = "tiny"  # measured: I-JEPA's encoder
    batch: int = 4  # measured: images of a process
    rounds: int = 5  # measured

    def __post_init__(self) -> None:
        rates = (self.tflops, self.inside, self.between, self.node, self.batch, self.rounds, *self.gpus)
        if min(rates) <= 0 or not 0 <= self.overlap <= 1 or min(self.latency, self.sample_kb) < 0:
            raise ConfigError(
                f"tflops={self.tflops:g}, inside={self.inside:g}, between={self.between:g}, node={self.node}, gpus, "
                f"batch={self.batch} and rounds={self.rounds} must be above 0, overlap={self.overlap:g} in [0, 1], "
                f"latency={self.latency:g} and sample_kb={self.sample_kb:g} at least 0"
            )


def bench_scaling(settings: ScalingSettings | None = None) -> Result:
    """Calculate, or measure.

    Returns:
        Calculated: trained_m, teacher_m (parameters, millions), step_tflop, and for each number W of GPUs
        W.images_per_gpu, W.compute_ms, W.images_per_s, W.read_mb_per_s and for each of ddp and fsdp
        W.KIND.sent_gb, W.KIND.exchange_ms, W.KIND.efficiency, W.KIND.memory_gb.
        Measured: one_ms, both_ms, ddp_ms, fsdp_ms, machine, ddp, fsdp (efficiencies).

    Raises:
        ConfigError: a configuration whose operations cannot be counted, a batch that the GPUs do not divide.
    """
    wanted = settings or ScalingSettings()
    return _measured(wanted) if wanted.measure else _calculated(wanted)


# --- calculated -------------------------------------------------------------------------------------------------------


def _calculated(wanted: ScalingSettings) -> Result:
    run = config.load(wanted.config)
    with torch.device("meta"):
        method = base.create(run.method, run.data.size)
    flops = cost.step_flops(run)
    if flops is None:
        raise ConfigError(f"config={wanted.config}: its operations cannot be counted")
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    still = sum(p.numel() for p in method.parameters()) - trained
    units = [(sum(p.numel() for p in u.parameters()), _trains(u)) for u in (*sharding.units(method), method)]
    shown = {
        name: getattr(wanted, name)
        for name in ("config", "node", "tflops", "inside", "between", "latency", "overlap", "sample_kb")
    }
    result = Result("scaling", shown | {"batch": run.train.batch}, {"none": "calculated, not measured"})
    result.add("trained_m", trained / 1e6, "M", "parameters that are trained")
    result.add("teacher_m", still / 1e6, "M", "parameters that are not: teacher, frozen encoder")
    result.add("step_tflop", flops / 1e12, "TFLOP", "operations of a step, counted")
    for world in wanted.gpus:
        if run.train.batch % world:
            raise ConfigError(f"gpus={world} does not divide the batch of {run.train.batch} of {wanted.config}")
        _at(result, wanted, world, run.train.batch, flops, trained, still, units)
    return result


def _trains(unit: nn.Module) -> bool:
    return any(p.requires_grad for p in unit.parameters())


def _at(
    result: Result,
    wanted: ScalingSettings,
    world: int,
    batch: int,
    flops: float,
    trained: int,
    still: int,
    units: list[tuple[int, bool]],
) -> None:
    """The figures of one number of GPUs."""

    def add(name: str, value: float, unit: str, note: str = "") -> None:
        result.add(f"{world}.{name}", value, unit, note)

    compute = flops / (world * wanted.tflops * 1e12)
    bandwidth = 1e9 * (wanted.inside if world <= wanted.node else min(wanted.inside, wanted.between))
    share = (world - 1) / world
    sent = {"ddp": 2 * share * 4 * trained, "fsdp": share * 4 * (3 * trained + still)}
    collectives = {"ddp": -(-4 * trained // _BUCKET), "fsdp": sum(3 if trains else 1 for _, trains in units)}
    hidden = {"ddp": 2 / 3 * compute, "fsdp": compute}
    whole = 16 * trained + 4 * still  # weights, gradients and two moments in float32; the teacher's weights
    memory = {"ddp": whole, "fsdp": whole / world + 2 * 4 * max((count for count, _ in units[:-1]), default=0)}
    add("images_per_gpu", batch / world, "", "samples of a step on each GPU")
    add("compute_ms", 1e3 * compute, "ms", "of a step")
    best = 0.0
    for kind in sent:
        exchange = sent[kind] / bandwidth + collectives[kind] * wanted.latency * 1e-6 * log2(world)
        exposed = max(0.0, exchange - wanted.overlap * hidden[kind])
        efficiency = compute / (compute + exposed)
        best = max(best, efficiency)
        add(f"{kind}.sent_gb", sent[kind] / 1e9, "GB", "a GPU sends in a step")
        add(f"{kind}.exchange_ms", 1e3 * exchange, "ms", f"of it {1e3 * exposed:.3g} ms not behind compute")
        add(f"{kind}.efficiency", efficiency, "", "of the GPUs' sustained rate")
        add(f"{kind}.memory_gb", memory[kind] / 1e9, "GB", "weights, gradients, optimiser; activations come on top")
    rate = batch / (compute / best)
    add("images_per_s", rate, "1/s", "with the better of the two")
    add("read_mb_per_s", rate * wanted.sample_kb / 1e3, "MB/s", "that all nodes read together")


# --- measured ---------------------------------------------------------------------------------------------------------


def _measured(wanted: ScalingSettings) -> Result:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    children = [context.Process(target=_child, args=(rank, port, wanted, found)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(_LIMIT)
    if any(child.exitcode for child in children):
        for child in children:
            child.kill()
        raise ConfigError("a measured process failed or took too long; what it said is above")
    seconds: dict[str, list[float]] = found.get()
    shown = {"model": f"I-JEPA, ViT-{wanted.size}/16", "images of a process": wanted.batch, "rounds": wanted.rounds}
    result = Result("scaling", shown, hardware() | {"threads": 1, "backend": "gloo"})
    notes = {
        "one": "a step of one process, the other one waits",
        "both": "of both at once, without exchange",
        "ddp": "of both with DDP",
        "fsdp": "of both, sharded",
    }
    for name, note in notes.items():
        result.add(f"{name}_ms", 1e3 * median(seconds[name]), "ms", note)
    for name, label in (("both", "machine"), ("ddp", "ddp"), ("fsdp", "fsdp")):
        ratio = median([a / b for a, b in zip(seconds["one"], seconds[name], strict=True)])
        result.add(label, ratio, "", f"efficiency: one_ms / {name}_ms, median over rounds")
    return result


def _child(rank: int, port: int, wanted: ScalingSettings, found: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    run = config.build(RunConfig, {"method": {"name": "ijepa", "encoder": {"size": wanted.size}}})
    made = {name: Ours(run.method, run.data.size, torch.device("cpu"), torch.float32) for name in ("alone", "ddp")}
    made["ddp"].wrap(DistributedDataParallel(made["ddp"].method))
    made["fsdp"] = Ours(run.method, run.data.size, torch.device("cpu"), torch.float32, shard=2)
    example = made["alone"].example(wanted.batch)
    seconds: dict[str, list[float]] = {name: [] for name in ("one", "both", "ddp", "fsdp")}
    for number in range(-1, wanted.rounds):
        for name in seconds if number % 2 else reversed(seconds):
            dist.barrier()
            start = time.perf_counter()
            if name != "one" or rank == 0:
                made["alone" if name in ("one", "both") else name].step(*example)
            if name == "both":
                dist.barrier()  # a step of both is done when the slower one is
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    if rank == 0:
        found.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


__all__ = ["ScalingSettings", "bench_scaling"]
