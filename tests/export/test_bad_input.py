"""What is wrong with an import, an export or a load is said in a line, by the command line too, and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import jepa
from jepa import cli
from jepa.errors import CheckpointError, ConfigError
from jepa.export.extras import need
from jepa.export.write import export
from tests import golden_set
from tests.export import official, runs

pytestmark = [pytest.mark.golden("ijepa_forward"), pytest.mark.golden("vjepa2_forward")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("images") / "run", "ijepa-vit-b16")


@pytest.fixture(scope="module")
def given(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole checkpoints in every layout."""
    folder = tmp_path_factory.mktemp("given")
    official.write_golden(folder / "ijepa.pth")
    torch.save(official.training_checkpoint(official.video_parts()), folder / "vjepa2.pt")
    save_file({k: t.contiguous() for k, t in official.golden_parts()["target"].items()}, folder / "ijepa.safetensors")
    clips = runs.make(folder / "run", "vjepa2-vit-l16")
    for run, form, name in (
        (images, "transformers", "hf"), (images, "timm", "timm"), (clips, "transformers", "hf-clips"),
    ):  # fmt: skip
        export(run, form, folder / name)
    return folder


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def code(place: Path) -> None:
    """A file of weights, or the one of a folder, becomes a pickle that runs something."""
    file = place / "pytorch_model.bin" if place.is_dir() else place
    if place.is_dir():
        (place / "model.safetensors").unlink()
    torch.save({"encoder": {"a": torch.ones(2)}, "more": Payload(place.parent / "owned")}, file)


def cut(place: Path) -> None:
    file = place / "model.safetensors" if place.is_dir() else place
    file.write_bytes(file.read_bytes()[:-1000])


def change(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        file = place / "model.safetensors" if place.is_dir() else place
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)

    return changed


def without(word: str) -> Callable[[Path], None]:
    return change(lambda tensors: [tensors.pop(name) for name in list(tensors) if word in name])


unknown = change(lambda tensors: tensors.update({"teacher.temperature": torch.ones(1)}))


def whole(place: Path) -> None: ...


CASES = [
    ("ijepa.pth", code, "ijepa", "refused"),
    ("vjepa2.pt", code, "vjepa2", "refused"),
    ("hf", code, "transformers", "refused"),
    ("ijepa.pth", cut, "ijepa", "truncated"),
    ("ijepa.safetensors", cut, "ijepa", "truncated"),
    ("hf", cut, "transformers", "truncated"),
    ("timm", cut, "timm", "truncated"),
    ("ijepa.safetensors", unknown, "ijepa", "teacher.temperature"),
    ("hf", unknown, "transformers", "teacher.temperature"),
    ("hf-clips", unknown, "transformers", "teacher.temperature"),
    ("timm", unknown, "timm", "teacher.temperature"),
    ("vjepa2.pt", whole, "ijepa", "no I-JEPA; try --from vjepa or vjepa2"),
    ("ijepa.pth", whole, "vjepa2", "as I-JEPA's; V-JEPA 2's are rotary. Try --from ijepa"),
    ("ijepa.safetensors", whole, "vjepa2", "Try --from ijepa"),
    ("vjepa2.pt", whole, "vjepa2-ac", "holds no action-conditioned predictor"),
    ("ijepa.pth", whole, "dinowm", "no DINO-WM predictor"),
    ("timm", whole, "transformers", "is a folder of timm: import it with --from timm"),
    ("hf", whole, "timm", "is a folder of transformers: import it with --from transformers"),
    ("hf", whole, "ijepa", "is a folder"),
    ("hf", whole, "onnx", "--from onnx"),
    ("ijepa.safetensors", without("blocks.0."), "ijepa", "blocks"),
    ("ijepa.safetensors", without("blocks.0.mlp.fc2.bias"), "ijepa", "lacks 1 weight"),
    ("hf", without("0.attention.attention.key.bias"), "transformers", "needs 3 weights, 2 are there"),
    ("hf-clips", without("encoder.layer.1.norm2"), "transformers", "norm2"),
    ("timm", without("norm1"), "timm", "lacks 4 weight"),
    ("nowhere.pth", None, "ijepa", "nowhere.pth"),
    ("nowhere", None, "transformers", "is no folder of transformers"),
]


@pytest.mark.parametrize(("name", "spoil", "layout", "says"), CASES)
def test_an_import_that_cannot_be(
    name: str, spoil: Callable[[Path], None] | None, layout: str, says: str, given: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if spoil is not None:
        copy = shutil.copytree if (given / name).is_dir() else shutil.copy
        copy(given / name, tmp_path / name)
        spoil(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    settings = official.video_settings() if name == "vjepa2.pt" and layout != "ijepa" else []
    heads = f"method.encoder.heads={golden_set.facts('ijepa_forward')['config']['model']['heads']}"
    settings = [heads] if name.startswith("ijepa") or layout == "ijepa" else settings
    call = ["import", str(tmp_path / name), "--from", layout, "--to", str(tmp_path / "run"), *settings]
    assert cli.main(call) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and says in told and "Traceback" not in told
    assert sorted(tmp_path.iterdir()) == before, "nothing was written, and nothing ran"


def test_a_model_without_its_predictor_gets_a_new_one_and_says_so(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "hf-clips", tmp_path / "hf")
    without("predictor.")(tmp_path / "hf")
    from jepa.export import import_checkpoint

    record = import_checkpoint(tmp_path / "hf", "transformers", tmp_path / "run", ["method.predictor.heads=2"])
    assert "fresh random weights" in record["filled"]["predictor"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--format", "timm", "--frames", "4"], "--frames 4: this encoder takes images"),
        (["--format", "tim"], "Did you mean 'timm'"),
        (["--format", "onnx", "--dtype", "bf16"], "can be written in fp32, fp16"),
        (["--format", "onnx", "--dtype", "int8"], "int8"),
        (["--format", "torch", "--layers=0,7"], "layers 0 to 1"),
        (["--format", "timm", "--image-size", "30,x"], "--image-size"),
        (["--format", "timm", "--which", "teacher"], "context and target"),
    ],
)
def test_an_export_that_cannot_be(
    more: list[str], says: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(images), "--out", str(tmp_path / "out"), *more]) == 2
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told and list(tmp_path.iterdir()) == []


def test_formats_that_clips_do_not_have(given: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timm has models of images.*Available: transformers, torch, onnx, safetens"):
        export(given / "run", "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_before_its_first_checkpoint_and_a_folder_that_is_full(
    images: Path, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = tmp_path / "started"
    started.mkdir()
    shutil.copy(images / "config.yaml", started)
    assert cli.main(["export", str(started), "--format", "timm", "--out", str(tmp_path / "out")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    full = str(tmp_path / "full")
    assert cli.main(["export", str(images), "--format", "timm", "--out", full, "--force"]) == 2
    assert "is no earlier export" in capsys.readouterr().err
    assert cli.main(["import", str(given / "hf"), "--from", "transformers", "--to", full]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_videos_for_an_encoder_of_images(images: Path, given: Path) -> None:
    video = torch.rand(1, 3, 4, 32, 32)
    for place in (images, given / "hf", given / "timm"):
        with pytest.raises(ConfigError, match="this encoder takes images"):
            jepa.load_encoder(place).features(video)


@pytest.mark.parametrize(("name", "spoil"), [("hf", cut), ("timm", unknown), ("hf", code), ("timm", without("norm1"))])
def test_a_load_that_cannot_be(name: str, spoil: Callable[[Path], None], given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / name, tmp_path / name)
    spoil(tmp_path / name)
    with pytest.raises(CheckpointError):
        jepa.load_encoder(tmp_path / name)
    (tmp_path / name / "export.json").unlink()  # the same of a folder that somebody else made
    with pytest.raises(CheckpointError):
        jepa.load_encoder(tmp_path / name)
    assert not (tmp_path / "owned").exists()
    (tmp_path / name / "export.json").write_text(json.dumps({"made_by": "somebody"}))
    with pytest.raises(CheckpointError, match="was not written by"):
        jepa.load_encoder(tmp_path / name)


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"--format x needs nowhere_to_be_found: pip install 'jepa\[onnx\]'"):
        need("--format x", "onnx", "json", "nowhere_to_be_found")
