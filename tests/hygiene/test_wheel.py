"""The wheel, built and installed into a clean environment, works from a folder that has nothing to do with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from jepa import resources
from tests.hygiene.tree import ROOT

pytestmark = pytest.mark.slow
SMALL = ("source.samples={train: 48, val: 16, test: 16}", "shards.max_samples=32")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("jepa-*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are borrowed from this one instead of downloaded."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    found = subprocess.run(
        [venv / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # entries of a .pth file are not searched for .pth files, so the editable install of the checkout stays out
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(found.stdout.strip(), "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "-q", "--no-deps"]
    subprocess.run([*install, "--no-index", "--force-reinstall", str(wheel)], check=True)
    return venv / "bin"


def run(binaries: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([binaries / command[0], *command[1:]], cwd=folder, env=env, capture_output=True, text=True)


def test_the_wheel_carries_the_package_and_every_yaml_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"jepa/_share/{k}/{p.name}" for k in resources.KINDS for p in (ROOT / k).glob("*.yaml")}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "jepa").rglob("*.py")} | {"jepa/py.typed"}
    assert expected - names == set()
    assert {n.split("/")[0] for n in names} == {"jepa", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


def test_it_runs_from_another_folder(binaries: Path, tmp_path: Path) -> None:
    where = run(binaries, tmp_path, "python", "-c", "import jepa; print(jepa.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(binaries.parent), where.stdout + where.stderr
    helped = run(binaries, tmp_path, "jepa", "--help")
    assert helped.returncode == 0 and "train" in helped.stdout


def test_it_finds_the_shipped_configurations(binaries: Path, tmp_path: Path) -> None:
    trained = run(binaries, tmp_path, "jepa", "train", "ijepa-vit-s16")
    assert trained.returncode == 2
    assert "data.path is empty" in trained.stderr and "jepa data build" in trained.stderr
    unknown = run(binaries, tmp_path, "jepa", "train", "ijepa-vit-s17")
    assert unknown.returncode == 2 and "Did you mean 'ijepa-vit-s16'?" in unknown.stderr


def test_it_builds_the_embedded_data(binaries: Path, tmp_path: Path) -> None:
    """A shipped recipe, by name, from the wheel; the manifest then opens from the same environment."""
    built = run(binaries, tmp_path, "jepa", "data", "build", "digits", "--out", "digits", *SMALL)
    assert built.returncode == 0, built.stderr
    shown = run(binaries, tmp_path, "jepa", "data", "show", "digits")
    assert shown.returncode == 0 and "train" in shown.stdout, shown.stdout + shown.stderr
