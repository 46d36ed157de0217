"""`jepa export`: every shipped configuration in every format it has, and what a stranger gets from the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jepa import checkpoint, config, resources
from jepa.errors import CheckpointError, ConfigError
from jepa.export import subject, to_safetensors
from jepa.export.graphs import DTYPES
from jepa.export.subject import Asked
from jepa.export.verify import LIMITS
from jepa.export.write import FORMATS, export, unfit
from jepa.methods import base
from tests import tiny
from tests.export import runs

NAMES = [name for name in resources.names("configs") if name != "debug"]


def instances() -> dict[str, list[str]]:
    """Tiny instances that differ in weights or positions: the first configuration of each, and all that become it."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        run = runs.settings(name)
        method = base.create(run.method, run.data.size)
        shapes = {key: tuple(tensor.shape) for key, tensor in method.state_dict().items()}
        position = getattr(method.config, "position", None)
        found.setdefault(repr((type(method), shapes, position)), []).append(name)
    return {names[0]: names for names in found.values()}


INSTANCES = instances()
AVAILABLE = {  # by method; vjepa: with fixed positions (V-JEPA) or another shape than a square not in transformers
    "ijepa": set(FORMATS),
    "vjepa": {"transformers", "torch", "onnx", "safetensors"},
    "vjepa21": {"torch", "onnx", "safetensors"},
    **{name: {"torch", "onnx", "safetensors"} for name in ("ac", "dinowm", "lewm", "rssm")},
}


def available(run: Path) -> set[str]:
    return {form for form, reason in unfit(subject.load(run, Asked())).items() if reason is None}


def test_every_configuration_is_covered() -> None:
    assert sorted(name for names in INSTANCES.values() for name in names) == sorted(NAMES)


@pytest.mark.parametrize("name", INSTANCES)
def test_every_format_gives_what_the_model_gives(name: str, tmp_path: Path) -> None:
    """`export` itself compares, on random inputs of several batches and sizes; here that it did, and what is there."""
    run = runs.make(tmp_path / "run", name)
    settings = config.load(name)
    wanted = AVAILABLE[settings.method["name"]]
    if settings.method["name"] == "vjepa" and settings.method.get("position", {}).get("kind") == "sincos":
        wanted = wanted - {"transformers"}
    assert available(run) == wanted
    for form in sorted(wanted):
        done = export(run, form, tmp_path / form)
        assert len(done.checks) >= 1 and all(check.error <= check.limit for check in done.checks)
        record = json.loads((tmp_path / form / "export.json").read_text())
        assert record["format"] == form and record["model"]["step"] == 7 and len(record["checks"]) == len(done.checks)
        assert f"# {settings.name}" in (tmp_path / form / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["run", *wanted]), "no temporary folder is left"


def test_context_and_target_are_two_exports(tmp_path: Path) -> None:
    run = runs.make(tmp_path / "run", "ijepa-vit-b16")
    for which in ("context", "target"):
        export(run, "timm", tmp_path / which, Asked(which=which))
    one, other = (load_file(tmp_path / which / "model.safetensors") for which in ("context", "target"))
    assert not torch.equal(one["norm.weight"], other["norm.weight"])


# --- layers, types ----------------------------------------------------------------------------------------------------


def test_layers_come_out_of_onnx_in_half_precision(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    run = runs.make(tmp_path / "run", "vjepa2-vit-l16")
    asked = Asked(dtype="fp16", layers=(0, -1), frames=2)
    export(run, "onnx", tmp_path / "out", asked)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "encoder.onnx")
    assert [i.shape for i in session.get_inputs()] == [["batch", 3, "2*times", "16*rows", "16*columns"]]
    pixels = np.random.default_rng(0).random((1, 3, 6, 48, 32), dtype=np.float32)
    tokens, pooled, first, last = session.run(None, {"pixels": pixels})
    assert tokens.shape == (1, 18, 24) and np.array_equal(tokens, last) and np.abs(tokens - first).max() > 0.02
    wanted = subject.load(run, asked).resized((6, 48, 32)).tokens(torch.from_numpy(pixels)).numpy()
    assert np.abs(tokens - wanted).max() < 0.03 and np.abs(pooled - wanted.mean(1)).max() < 0.02
    kinds = {
        t.data_type for t in onnx.load(tmp_path / "out" / "encoder.onnx").graph.initializer if len(t.raw_data) > 500
    }
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [("lewm", "onnx", "fp16"), ("lewm", "torch", "bf16"), ("ac-vit-g16", "torch", "fp16")],
)
def test_programs_of_world_models_in_half_precision(name: str, form: str, dtype: str, tmp_path: Path) -> None:
    """Each program and whole roll-outs within the limits of that type; float32 in and out."""
    run = runs.make(tmp_path / "run", name)
    done = export(run, form, tmp_path / "out", Asked(dtype=dtype))  # type: ignore[arg-type]
    assert {check.limit for check in done.checks} == {LIMITS[dtype]}
    assert max(check.error for check in done.checks) > 1e-4, "it is in half precision"
    assert any(check.what.startswith("roll-out") for check in done.checks)
    if form == "torch":
        state = torch.export.load(tmp_path / "out" / "step.pt2").state_dict
        assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {DTYPES[dtype]}


def test_a_belief_is_not_exported_in_half_precision(tmp_path: Path) -> None:
    run = runs.make(tmp_path / "run", "rssm")
    with pytest.raises(ConfigError, match="programs can be written in fp32: in half precision its belief"):
        export(run, "torch", tmp_path / "out", Asked(dtype="fp16"))


def test_half_precision_that_overflows_is_refused(tmp_path: Path) -> None:
    run = runs.settings("ijepa-vit-b16")
    runs.save(tmp_path / "run", run)
    broken = runs.save(tmp_path / "large", run)
    file = broken / "checkpoints" / "step-7" / "model.safetensors"
    assert file.is_file()
    found = subject.load(broken, Asked())
    with torch.no_grad():
        found.encoder.get_parameter("norm.weight").fill_(1e5)  # finite in float32, infinite in float16
    checkpoint.save(broken, 8, found.method, None, {"g": 0}, run)
    with pytest.raises(CheckpointError, match="not the model.*--dtype fp32"):
        export(broken, "timm", tmp_path / "out", Asked(dtype="fp16"))
    assert not (tmp_path / "out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["large", "run"]
    export(broken, "timm", tmp_path / "out", Asked(dtype="bf16"))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("images") / "run", "ijepa-vit-b16")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("world") / "run", "lewm")


@pytest.mark.parametrize(
    ("form", "asked", "says"),
    [
        ("onyx", Asked(), "Did you mean 'onnx'"),
        ("timm", Asked(which="teacher"), "--which teacher: .*context and target"),
        ("timm", Asked(image_size=(33, 32)), "33 is not a multiple of the patch"),
        ("timm", Asked(frames=4), "takes images"),
        ("torch", Asked(layers=(2,)), "layers 0 to 1"),
        ("transformers", Asked(layers=(0,)), "--layers is for torch and onnx"),
        ("onnx", Asked(dtype="bf16"), "can be written in fp32, fp16"),
    ],
)
def test_what_a_model_does_not_have_is_said(images: Path, tmp_path: Path, form: str, asked: Asked, says: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=says):
        export(images, form, tmp_path / "out", asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "asked", "says"),
    [
        ("timm", Asked(), "world model.*Available: torch, onnx, safetensors"),
        ("onnx", Asked(dtype="bf16"), "programs can be written in fp32, fp16"),
        ("torch", Asked(image_size=(64, 64)), "for the frames it was trained on"),
        ("torch", Asked(layers=(0,)), "shows no layers"),
    ],
)
def test_and_of_world_models(world: Path, tmp_path: Path, form: str, asked: Asked, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        export(world, form, tmp_path / "out", asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ac-vit-g16", "dinowm-own-encoder", "lewm"])
def test_chunks_of_actions_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    run = runs.make(tmp_path / "run", name, "method.chunk=2")
    with pytest.raises(ConfigError, match=r"method\.chunk=1.*Available: safetensors"):
        export(run, "onnx", tmp_path / "out")


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export(tmp_path / "run", "onnx", tmp_path / "out")
    run = runs.make(tmp_path / "half", "ijepa-vit-b16")
    (run / "checkpoints" / "step-7" / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint.*no COMPLETE"):
        export(run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_export_is_replaced_and_only_by_force(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(ConfigError, match="is no earlier export"):
            export(images, "safetensors", tmp_path / "mine", force=force)
    export(images, "safetensors", tmp_path / "out")
    (tmp_path / "out" / "stale").touch()
    with pytest.raises(ConfigError, match="--force"):
        export(images, "timm", tmp_path / "out")
    with pytest.raises(CheckpointError, match="--which"):
        export(images, "timm", tmp_path / "out", Asked(which="none"), force=True)
    assert (tmp_path / "out" / "stale").exists(), "a refused export leaves the earlier one"
    export(images, "timm", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "stale").exists() and (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_folder_of_another_kind_is_not_read(images: Path, tmp_path: Path) -> None:
    export(images, "timm", tmp_path / "timm")
    with pytest.raises(CheckpointError, match="holds an export for timm"):
        to_safetensors.read(tmp_path / "timm")
    with pytest.raises(CheckpointError, match="no folder made by `jepa export`"):
        to_safetensors.read(tmp_path)
    export(images, "safetensors", tmp_path / "plain")
    file = tmp_path / "plain" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be used"):
        to_safetensors.read(tmp_path / "plain")


# --- the run's own data -------------------------------------------------------------------------------------------


def test_real_clips_are_compared_where_the_data_set_is(tmp_path: Path) -> None:
    data = tiny.build_movies(tmp_path / "movies", 4, 4, 4)
    small = ["data.image_size=32", "data.decoder=pyav"]
    run = runs.make(tmp_path / "run", "demo-video", f"data.path={data}", *small)
    done = export(run, "torch", tmp_path / "out")
    assert done.real.startswith("4 of split val of movies") and any("real clips" in c.inputs for c in done.checks)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Licence: BSD-3-Clause" in card and str(tmp_path) not in card
    gone = runs.make(tmp_path / "gone", "demo-video", "data.path=nowhere", *small)
    assert export(gone, "safetensors", tmp_path / "plain").real.startswith("none: the run's data set is not here")


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 9 frames of 32 x 32 with actions of four numbers and proprioception of three."""

    def draw(rng: np.random.Generator) -> tiny.Arrays:
        return {
            "frames": rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8),
            "action": rng.normal(3, 2, (9, 4)).astype(np.float32),
            "proprio": rng.normal(size=(9, 3)).astype(np.float32),
        }

    return tiny.build_walks(tmp_path_factory.mktemp("data") / "walks", 8, 4, draw)


def test_roll_outs_from_real_frames_are_compared(walks: Path, tmp_path: Path) -> None:
    stride = ["data.clip.stride=1", "data.decoder=pyav", f"data.path={walks}"]
    run = runs.make(tmp_path / "run", "dinowm-own-encoder", "method.history=2", *stride)
    done = export(run, "torch", tmp_path / "out")
    assert any(c.what == "roll-out of 3 steps" and c.inputs == "real frames" for c in done.checks)
    assert {p.name for p in (tmp_path / "out").glob("*.pt2")} == {"encode.pt2", "step.pt2", "step_1.pt2"}
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["window"] == 2 and record["programs"]["step"]["inputs"]["actions"] == ["rows", 2, 4]


def test_the_card_shows_probes_with_their_intervals(images: Path, tmp_path: Path) -> None:
    row = {"encoder": "target (step 7)", "baseline": False, "probe": "knn", "metric": "top1", "value": 0.5}
    (images / "probes").mkdir()
    (images / "probes" / "digits.json").write_text(json.dumps({"rows": [row | {"low": 0.4, "high": 0.6}]}))
    export(images, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| digits | knn | top1 | target (step 7) | 0.5 | 0.4 to 0.6 |" in card


# --- encoders of other kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vjepa2-vit-l16", "vjepa21-vit-b16"])
def test_video_encoders_that_were_built_for_images(name: str, tmp_path: Path) -> None:
    run = runs.make(tmp_path / "run", name, "data.clip=null")
    assert available(run) == {"torch", "onnx", "safetensors"}
    export(run, "torch", tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    assert program(torch.rand(1, 3, 48, 32))[0].shape == (1, 6, 24)


def test_a_method_from_outside_keeps_its_size(tmp_path: Path) -> None:
    values = {"name": "own", "method": {"name": "tests.train.outside:Mean"}, "data": {"image_size": 20}}
    run = runs.save(tmp_path / "run", config.build(config.RunConfig, values))
    done = export(run, "torch", tmp_path / "out")
    assert done.notes == ["the size of inputs is fixed: how Tokens interpolates positions is not known"]
    program = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    assert program(torch.rand(5, 3, 20, 20))[0].shape[0] == 5
    with pytest.raises(ConfigError, match="takes the size it was built for only"):
        export(run, "torch", tmp_path / "larger", Asked(image_size=(40, 40)))
