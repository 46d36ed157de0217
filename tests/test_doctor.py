"""`jepa doctor`: on this machine, and on installations broken in the ways people meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import doctor
from jepa.errors import FOUND


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jepa", "doctor", *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def found(**env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = run("--json", **env)
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in report["checks"]}


@pytest.fixture(scope="module")
def here() -> dict[str, dict[str, Any]]:
    return found()[1]


def test_a_working_installation_has_no_errors(here: dict[str, dict[str, Any]]) -> None:
    assert [check for check in here.values() if check["status"] == "error"] == []
    assert set(here) == {
        *("python", "packages", "torch pair", "import torch", "import torchvision", "cpu", "threads"),
        *("accelerator", "disk", "shared memory", "open files", "decoders", "process group"),
    }


def test_versions_are_those_installed(here: dict[str, dict[str, Any]]) -> None:
    assert torch.__version__.startswith(here["packages"]["facts"]["torch"])
    assert here["import torch"]["facts"]["version"] == torch.__version__


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads /proc/cpuinfo")
def test_bf16_flag_is_what_the_processor_says(here: dict[str, dict[str, Any]]) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert here["cpu"]["facts"]["avx512_bf16"] is ("avx512_bf16" in flags or "amx_bf16" in flags)
    assert here["cpu"]["facts"]["gflops"]["float32"] > 0.1


def test_two_processes_meet(here: dict[str, dict[str, Any]]) -> None:
    assert here["process group"]["detail"] == "two processes met over gloo"


def test_a_process_group_that_cannot_form_is_a_warning_with_advice() -> None:
    _, checks = found(GLOO_SOCKET_IFNAME="no-such-network")
    assert checks["process group"]["status"] == "warning"
    assert checks["process group"]["advice"]


def test_torchvision_of_another_torch_is_recognised_by_its_import_error(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code, checks = found(PYTHONPATH=str(tmp_path))
    assert code == FOUND
    assert checks["import torchvision"]["status"] == "error"
    assert "torchvision::nms does not exist" in checks["import torchvision"]["detail"]
    assert "released in pairs" in checks["import torchvision"]["advice"]
    assert checks["import torch"]["status"] == "ok", "the other checks go on"


def test_torchvision_of_another_torch_is_recognised_by_its_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "torchvision-0.28.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\nRequires-Dist: torch==2.13.0\n"
    )
    code, checks = found(PYTHONPATH=str(tmp_path))
    assert code == FOUND
    assert checks["torch pair"]["status"] == "error"
    assert "built for torch 2.13.0" in checks["torch pair"]["detail"]
    assert "torch==2.15.*" in checks["torch pair"]["advice"]


def test_a_broken_torch_still_gets_a_whole_answer(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    code, checks = found(PYTHONPATH=str(tmp_path))
    assert code == FOUND
    assert "libcudart.so.13" in checks["import torch"]["detail"] and checks["import torch"]["advice"]
    assert checks["disk"]["status"] in {"ok", "warning"}


def test_text_says_what_to_do() -> None:
    checks = [
        doctor.Check("disk", "warning", "1.0 GiB free here", "make room"),
        doctor.Check("python", "ok", "jepa on Python"),
        doctor.Check("torch pair", "error", "no pair", "install one"),
    ]
    lines = doctor.as_text(checks).splitlines()
    assert lines[0].startswith("WARNING") and lines[1].strip() == "-> make room"
    assert lines[2].startswith("ok") and lines[3].startswith("ERROR")
    assert lines[-1] == "1 errors, 1 warnings"
    assert doctor.as_text(checks[1:2]).splitlines()[-1] == "all is well"


def test_low_disk_space_is_about_the_folder_that_will_be_written(tmp_path: Path) -> None:
    assert doctor.disk(tmp_path / "not" / "yet" / "there").facts["free_bytes"] > 0
