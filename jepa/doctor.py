"""Looks at the machine and the installation and says what is wrong and what to do about it.

Every check is one function that returns a `Check`; none of them raises, and none needs another one to pass, so a
broken installation still gets a full answer. torch and torchvision are imported inside the checks for that reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jepa

Status = Literal["ok", "warning", "error"]

PACKAGES = (
    *("torch", "torchvision", "numpy", "safetensors", "accelerate", "webdataset", "pillow", "scikit-learn"),
    *("tensorboard", "psutil", "rich", "typer", "pyyaml", "braceexpand"),
)
OPTIONAL = ("timm", "transformers")
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
REINSTALL = (
    "torch and torchvision are released in pairs and this is not a pair. Install one: "
    'pip install --force-reinstall "torch==2.15.*" "torchvision==0.29.*" '
    "(a looser requirement may pick an older CPU-only torch that a find-links folder offers)"
)
GIB = 1024**3


@dataclass(frozen=True)
class Check:
    """One finding. `detail` is what was found, `advice` what to do (empty when all is well)."""

    name: str
    status: Status
    detail: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def advice_for(error: BaseException) -> str:
    """What to do about an import error of torch or torchvision; empty when the error is not a known one."""
    text = str(error)
    if "torchvision::nms does not exist" in text or ("undefined symbol" in text and "torch" in text):
        return REINSTALL
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("jepa"):
        return f"{error.name} is not installed; install the whole package: pip install jepa -c constraints.txt"
    return ""


def examine(folder: Path = Path()) -> list[Check]:
    """Run every check; `folder` is where runs and data would be written (for free space)."""
    return [_guarded(check) for check in _checks(folder)]


def _checks(folder: Path) -> Iterator[Callable[[], Check]]:
    yield from (python, packages, pair, import_torch, import_torchvision, cpu, threads, accelerators)
    yield lambda: disk(folder)
    yield from (shared_memory, open_files, decoders, process_group)


def _guarded(check: Callable[[], Check]) -> Check:
    name = getattr(check, "__name__", "check").replace("_", " ")
    try:
        return check()
    except Exception as error:  # a check must never take the others down
        return Check(name, "error", f"{type(error).__name__}: {error}", advice_for(error))


# --- installation -------------------------------------------------------------------------------------------------


def python() -> Check:
    """Interpreter and package version."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "jepa": jepa.__version__}
    detail = f"jepa {facts['jepa']} on Python {facts['python']}, {facts['platform']}"
    return Check("python", "ok", detail, facts=facts)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages() -> Check:
    """Versions of what is installed, without importing it."""
    found = {name: _version(name) for name in PACKAGES + OPTIONAL}
    missing = [name for name in PACKAGES if found[name] is None]
    detail = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing:
        advice = f"install them: pip install {' '.join(missing)}"
        return Check("packages", "error", f"missing: {', '.join(missing)}; {detail}", advice, found)
    return Check("packages", "ok", detail, facts=found)


def pair() -> Check:
    """Whether the installed torch is the one that the installed torchvision was built for."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch is None or torchvision is None:
        return Check("torch pair", "error", f"torch {torch}, torchvision {torchvision}", REINSTALL)
    wanted = [r for r in metadata.requires("torchvision") or [] if re.match(r"torch\s*\(?==", r)]
    built_for = re.sub(r"[^0-9.].*", "", wanted[0].split("==")[1]) if wanted else ""
    facts = {"torch": torch, "torchvision": torchvision, "built_for": built_for}
    detail = f"torchvision {torchvision} with torch {torch}"
    if built_for and torch.split("+")[0] != built_for:
        return Check("torch pair", "error", f"{detail}, but it was built for torch {built_for}", REINSTALL, facts)
    if torch.partition("+")[2] != torchvision.partition("+")[2] and "+" in torch and "+" in torchvision:
        return Check("torch pair", "error", f"{detail}: built for different accelerators", REINSTALL, facts)
    return Check("torch pair", "ok", detail, facts=facts)


def _imported(name: str) -> Check:
    start = time.perf_counter()
    try:
        module = importlib.import_module(name)
    except Exception as error:
        advice = advice_for(error) or f"reinstall it: pip install --force-reinstall {name}"
        return Check(f"import {name}", "error", f"{type(error).__name__}: {error}", advice)
    seconds = time.perf_counter() - start
    facts = {"version": str(module.__version__), "seconds": round(seconds, 3)}
    return Check(f"import {name}", "ok", f"{module.__version__} in {seconds:.1f} s", facts=facts)


def import_torch() -> Check:
    """torch imports."""
    return _imported("torch")


def import_torchvision() -> Check:
    """torchvision imports; with a torch of another release it fails with `operator torchvision::nms ...`."""
    return _imported("torchvision")


# --- machine ------------------------------------------------------------------------------------------------------


def cpu() -> Check:
    """Model, vector instructions, and how fast it multiplies in float32 and bfloat16."""
    import torch

    model, flags = _cpu_model()
    capability = torch.backends.cpu.get_cpu_capability()
    rate = {str(dtype).removeprefix("torch."): _matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    facts = {"model": model, "flags": flags, "torch_uses": capability, "avx512_bf16": bf16, "gflops": rate}
    detail = (
        f"{model}; {' '.join(flags) or 'no known vector flags'}; torch uses {capability}; matrix product "
        f"{rate['float32']:.0f} GFLOP/s in float32, {rate['bfloat16']:.0f} in bfloat16"
    )
    return Check("cpu", "ok", detail, facts=facts)


def _cpu_model() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        present = set(flags.group(1).split()) if flags else set()
        return (model.group(1) if model else platform.machine()), [f for f in CPU_FLAGS if f in present]
    return platform.processor() or platform.machine(), []


def _matmul_gflops(dtype: Any, size: int = 768) -> float:
    import torch

    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    a @ b  # the first call picks a kernel
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e9, 1)


def threads() -> Check:
    """Cores this process may use, the container's limit, and torch's threads."""
    import torch

    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _cgroup_cores()
    used = torch.get_num_threads()
    variable = os.environ.get("OMP_NUM_THREADS")
    facts = {"cores": cores, "usable": usable, "quota": quota, "torch": used, "OMP_NUM_THREADS": variable}
    detail = f"{usable} of {cores} cores usable, torch uses {used} threads"
    detail += f", container limit {quota:g} cores" if quota else ""
    if used > min(usable, quota or usable) + 0.5:
        return Check("threads", "warning", detail, f"set OMP_NUM_THREADS={int(min(usable, quota or usable))}", facts)
    return Check("threads", "ok", detail, facts=facts)


def _cgroup_cores() -> float | None:
    limit = Path("/sys/fs/cgroup/cpu.max")
    if not limit.is_file():
        return None
    quota, _, period = limit.read_text(encoding="ascii").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def accelerators() -> Check:
    """CUDA devices or Apple's MPS, else a CPU."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        shown = [f"{d.name}, {d.total_memory / GIB:.0f} GiB, compute {d.major}.{d.minor}" for d in devices]
        facts = {"cuda": torch.version.cuda, "devices": shown, "bf16": torch.cuda.is_bf16_supported()}
        return Check("accelerator", "ok", f"CUDA {torch.version.cuda}: {'; '.join(shown)}", facts=facts)
    if torch.backends.mps.is_available():
        return Check("accelerator", "ok", "Apple MPS", facts={"mps": True})
    facts = {"cuda": torch.version.cuda, "devices": []}
    driver = shutil.which("nvidia-smi")
    if driver:
        advice = "run nvidia-smi: the driver must support the CUDA version torch was built for"
        return Check("accelerator", "warning", "nvidia-smi is here, but torch sees no GPU", advice, facts)
    return Check("accelerator", "ok", "none: training runs on the CPU", facts=facts)


def disk(folder: Path) -> Check:
    """Free space where runs would be written."""
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    facts = {"free_bytes": free}
    if free < 5 * GIB:
        return Check("disk", "warning", f"{free / GIB:.1f} GiB free here", "make room or pass --out elsewhere", facts)
    return Check("disk", "ok", f"{free / GIB:.0f} GiB free here", facts=facts)


def shared_memory() -> Check:
    """Size of /dev/shm, through which decoding workers hand over batches."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "ok", "not a separate file system on this platform")
    usage = shutil.disk_usage(place)
    detail = f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
    facts = {"total_bytes": usage.total, "free_bytes": usage.free}
    if usage.free < GIB:
        advice = (
            "decoding workers may die with a bus error: start the container with --shm-size=8g or use data.workers=0"
        )
        return Check("shared memory", "warning", detail, advice, facts)
    return Check("shared memory", "ok", detail, facts=facts)


def open_files() -> Check:
    """The limit on open files: every worker keeps its shards open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return Check("open files", "ok", "no limit on this platform")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    if soft < 1024:
        return Check("open files", "warning", f"limit {soft}", f"raise it: ulimit -n {min(hard, 65536)}", facts)
    return Check("open files", "ok", f"limit {soft}", facts=facts)


# --- things that must work together -------------------------------------------------------------------------------


def decoders() -> Check:
    """Encode a small image in every format that shards may hold and decode it as training does."""
    from PIL import Image

    from jepa.data.decode import decode

    broken: dict[str, str] = {}
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    for extension, name in formats.items():
        buffer = io.BytesIO()
        try:
            Image.new("RGB", (8, 6), (200, 30, 90)).save(buffer, name)
            shape = tuple(decode(buffer.getvalue()).shape)
            assert shape == (3, 6, 8), f"decoded to {shape}, expected (3, 6, 8)"
        except Exception as error:
            broken[extension] = f"{type(error).__name__}: {error}"
    if broken:
        detail = "; ".join(f"{extension}: {why}" for extension, why in broken.items())
        return Check("decoders", "error", detail, "reinstall pillow and torchvision", {"broken": broken})
    return Check("decoders", "ok", ", ".join(formats), facts={"formats": list(formats)})


def process_group(seconds: float = 90.0) -> Check:
    """Start two processes that add a number over gloo, as training on several processes does."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        ranks = [_start_rank(rank, store) for rank in range(2)]
        outputs = []
        for process in ranks:
            try:
                outputs.append(process.communicate(timeout=seconds)[0].strip())
            except subprocess.TimeoutExpired:
                for other in ranks:
                    other.kill()
                advice = "loopback traffic is blocked, or GLOO_SOCKET_IFNAME names a network that is not there"
                return Check("process group", "warning", f"two processes did not meet within {seconds:.0f} s", advice)
    if all(output.endswith("sum 3.0") for output in outputs):
        return Check("process group", "ok", "two processes met over gloo")
    last = next(o for o in outputs if not o.endswith("sum 3.0")).splitlines()
    detail = last[-1] if last else "a process died without a word"
    return Check("process group", "warning", detail, "training on one process works; several need gloo or nccl")


def _start_rank(rank: int, store: Path) -> subprocess.Popen[str]:
    code = f"from jepa.doctor import add_over_gloo; add_over_gloo({rank}, {str(store)!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def add_over_gloo(rank: int, store: str) -> None:
    """One of the two processes of `process_group`; prints the sum of rank + 1 over both."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    value = torch.tensor(rank + 1.0)
    dist.all_reduce(value)
    dist.destroy_process_group()
    print(f"sum {value.item()}")


# --- printing -----------------------------------------------------------------------------------------------------


def as_json(checks: list[Check]) -> dict[str, Any]:
    """Everything found, ready for JSON; `ok` is False when any check is an error."""
    return {
        "ok": all(check.status != "error" for check in checks),
        "checks": [dataclasses.asdict(check) for check in checks],
    }


def as_text(checks: list[Check]) -> str:
    """One line per check, advice below it, and a closing sentence."""
    mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
    lines = []
    for check in checks:
        lines.append(f"{mark[check.status]}  {check.name}: {check.detail}")
        if check.advice:
            lines.append(f"         -> {check.advice}")
    errors = sum(check.status == "error" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    lines.append(f"{errors} errors, {warnings} warnings" if errors or warnings else "all is well")
    return "\n".join(lines)
