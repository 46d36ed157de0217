"""Where a run happens: processes, device, precision, versions, hardware. Nothing here starts anything."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from jepa.checkpoint.io import versions
from jepa.config import Precision
from jepa.errors import ConfigError

Resolved = Literal["bf16", "fp16", "fp32", "fp64"]
Device = Literal["cuda", "mps", "cpu"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}  # autocast; others run plain


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes, from what `accelerate launch` or torchrun sets.

    Raises:
        ConfigError: the variables contradict each other.
    """
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ConfigError(
            f"RANK={os.environ.get('RANK')!r} and WORLD_SIZE={os.environ.get('WORLD_SIZE')!r} do not fit together. "
            "Start several processes with `accelerate launch`, or unset both for one process"
        )
    return rank, world


def device_type() -> Device:
    """The kind of device a run will use here: the first of CUDA, MPS, CPU. ACCELERATE_USE_CPU=1 asks for the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def multiplies_bf16(device: Device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (a CPU: AVX512-BF16 or AMX), so that it is faster."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":  # stored but not faster, and autocast coverage is thin
        return False
    facts = torch.cpu.get_capabilities()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def resolve_precision(wanted: Precision, device: Device) -> Resolved:
    """What ``train.precision`` means on a device; "auto" is bf16 where the hardware multiplies in it, else fp32.

    Raises:
        ConfigError: a precision that the device cannot train in.
    """
    if wanted == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU. On a CPU use bf16, fp32 or auto")
    if wanted == "fp64" and device == "mps":
        raise ConfigError("train.precision=fp64: MPS has no float64. Use fp32, or ACCELERATE_USE_CPU=1")
    return wanted


def record(device: torch.device, precision: str, world: int) -> dict[str, Any]:
    """What environment.json holds: when, how and on what this run was started."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "processes": world,
        "precision": precision,
        "versions": versions(),
        "git": git(),
        "hardware": _hardware(device),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    out: dict[str, Any] = {
        "device": device.type,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "usable_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "multiplies_bf16": multiplies_bf16("cuda" if device.type == "cuda" else "cpu"),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        out["gpu"] = facts.name
        out["gpu_memory_gib"] = round(facts.total_memory / 2**30, 1)
        out["gpus_here"] = torch.cuda.device_count()
        out["cuda"] = torch.version.cuda
    return out


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def git() -> dict[str, Any] | None:
    """Commit of the checkout this package is imported from, or of the one a job's snapshot was taken of.

    None for an installed wheel.
    """
    root = Path(__file__).resolve().parent.parent
    with contextlib.suppress(OSError, ValueError, KeyError):  # there is none but in a snapshot (jepa.slurm.snapshot)
        found: dict[str, Any] | None = json.loads((root / "code.json").read_text(encoding="utf-8"))["git"]
        return found
    if not (root / ".git").exists():
        return None
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):  # no git here: the record goes without
            return None
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "changed": bool(answers[1])}


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has held so far: on the GPU, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
