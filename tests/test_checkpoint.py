"""Checkpoints: whole or not at all, strict, self-describing, and never pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import jepa
from jepa import checkpoint, optim
from jepa.checkpoint import folder
from jepa.config import OptimConfig, RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.methods.base import Method
from tests.tiny import run_config

STATE = {"g": 24, "precision": "fp32", "window": None}


def stepped(config: RunConfig, steps: int = 3) -> tuple[Method, torch.optim.AdamW]:
    """A method after some optimiser steps on made-up gradients."""
    method = checkpoint.create(config)
    optimizer = optim.build_optimizer(method, OptimConfig())
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return method, optimizer


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return run_config(Path("unused"))


@pytest.fixture(scope="module")
def saved(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoint step-3."""
    run = tmp_path_factory.mktemp("saved") / "run"
    checkpoint.save(run, 3, *stepped(config), STATE, config)
    return run


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


# --- writing and reading back -----------------------------------------------------------------------------------------


def test_round_trip_is_exact(saved: Path, config: RunConfig) -> None:
    method, optimizer = stepped(config)
    fresh = checkpoint.create(config, seed=99)
    fresh_optimizer = optim.build_optimizer(fresh, OptimConfig())
    path = checkpoint.latest(saved)
    checkpoint.load_model(path, fresh)
    checkpoint.load_optim(path, fresh, fresh_optimizer)
    for name, value in method.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    for old, new in zip(optimizer.param_groups, fresh_optimizer.param_groups, strict=True):
        for p, q in zip(old["params"], new["params"], strict=True):
            assert all(torch.equal(v, fresh_optimizer.state[q][k]) for k, v in optimizer.state[p].items())
    assert checkpoint.read_state(path) == {"step": 3, **STATE}
    assert checkpoint.read_config(path) == config


def test_optimiser_state_is_keyed_by_parameter_name(saved: Path, config: RunConfig) -> None:
    keys = load_file(saved / "checkpoints" / "step-3" / "optim.safetensors").keys()
    trained = [n for n, p in checkpoint.create(config).named_parameters() if p.requires_grad]
    assert set(keys) == {f"{kind}.{n}" for n in trained for kind in ("exp_avg", "exp_avg_sq", "step")}


def test_names_are_the_methods_own_whatever_wraps_it(config: RunConfig, tmp_path: Path) -> None:
    method, _ = stepped(config)
    plain = set(method.state_dict())

    class Wrapped(nn.Module):
        """Names as DistributedDataParallel and torch.compile leave them."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = nn.Module()
            self.module._orig_mod = inner

    wrapped: Any = Wrapped(method)
    assert set(wrapped.state_dict()) != plain
    assert set(checkpoint.snapshot.model_tensors(wrapped)) == plain
    for part in method.children():
        part.compile(backend="eager")  # how the loop compiles: in place
    assert set(checkpoint.snapshot.model_tensors(method)) == plain


def test_tied_weights_are_saved_and_loaded(tmp_path: Path, config: RunConfig) -> None:
    method, _ = stepped(config)
    method.again = method.encoder  # type: ignore[assignment]
    path = checkpoint.save(tmp_path / "run", 0, method, None, STATE, config)
    other = checkpoint.create(config, seed=5)
    other.again = other.encoder  # type: ignore[assignment]
    checkpoint.load_model(path, other)
    assert torch.equal(other.encoder.norm.weight, method.encoder.norm.weight)  # type: ignore[union-attr, arg-type]


def test_nothing_of_a_failed_write_is_left(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    method, optimizer = stepped(config)
    checkpoint.save(run, 1, method, optimizer, STATE, config)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(run, 2, method, optimizer, {"bad": object()}, config)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-1"]


def test_leftovers_of_a_killed_writer_are_swept(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (".tmp-step-9", ".old-step-4", ".gone-step-2"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "model.safetensors").write_text("half")
    checkpoint.save(run, 1, *stepped(config), STATE, config)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-1"]


def test_which_checkpoints_are_kept(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    method, _ = stepped(config, 0)
    for step in range(0, 50, 5):
        checkpoint.save(run, step, method, None, STATE, config, keep=2, keep_every=20)
    assert checkpoint.steps(run) == [0, 20, 40, 45]
    assert checkpoint.prune(run, keep=0) == [] and checkpoint.prune(run, keep=1) == [0, 20, 40]
    assert checkpoint.steps(run) == [45]


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optim.safetensors", "state.json", "config.yaml", "checkpoint.json", "COMPLETE"]
)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_any_damage_to_any_file_is_found(name: str, damage: str, copy: Path) -> None:
    path = copy / "checkpoints" / "step-3"
    assert checkpoint.problem(path) is None
    if damage == "flipped":
        flip(path / name)
    elif damage == "truncated":
        os.truncate(path / name, (path / name).stat().st_size // 2)
    else:
        (path / name).unlink()
    wrong = checkpoint.problem(path)
    assert wrong is not None and (name in wrong or name == "COMPLETE"), wrong
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: checkpoint .*step-3 was passed over"):
        checkpoint.latest(copy)
    with pytest.raises(CheckpointError, match=r"step-3 cannot be used: "):
        checkpoint.resolve(path)


def test_the_newest_good_one_wins_and_the_bad_one_is_named(copy: Path) -> None:
    checkpoints = copy / "checkpoints"
    for step in (20, 100):  # 100 sorts before 20 as text
        shutil.copytree(checkpoints / "step-3", checkpoints / f"step-{step}")
    (checkpoints / "step-7").mkdir()  # an unfinished copy
    assert checkpoint.latest(copy).name == "step-100"
    flip(checkpoints / "step-100" / "model.safetensors")
    with pytest.warns(UserWarning, match=r"step-100 was passed over: model\.safetensors is damaged"):
        assert checkpoint.latest(copy).name == "step-20"
    with pytest.warns(UserWarning, match="step-100"):
        assert jepa.load_encoder(copy).step == 3


def test_another_format_version_is_not_passed_over(copy: Path) -> None:
    path = copy / "checkpoints" / "step-3"
    newer = copy / "checkpoints" / "step-4"
    shutil.copytree(path, newer)
    values = json.loads((newer / "checkpoint.json").read_text())
    folder._seal(
        shutil.copytree(newer, copy / "new", ignore=lambda *_: ["COMPLETE", "checkpoint.json"]), values | {"version": 2}
    )
    shutil.rmtree(newer)
    (copy / "new").rename(newer)
    with pytest.raises(CheckpointError, match=r"format version 2, this program reads 1"):
        checkpoint.latest(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"files": None}, {"files": [1]}, {"files": {}}, {"files": {"model.safetensors": {"bytes": "9"}}},
        {"files": {"model.safetensors": {"bytes": 1, "sha256": ""}, "../x": {"bytes": 1, "sha256": ""}}},
    ],
)  # fmt: skip
def test_a_manifest_that_was_written_by_hand(change: dict[str, Any], copy: Path) -> None:
    path = copy / "checkpoints" / "step-3"
    text = json.dumps(json.loads((path / "checkpoint.json").read_text()) | change)
    (path / "checkpoint.json").write_text(text)
    (path / "COMPLETE").write_text(hashlib.sha256(text.encode()).hexdigest())
    for read in (checkpoint.describe, jepa.load_encoder):
        with pytest.raises(CheckpointError, match=r"does not list model\.safetensors and its other files"):
            read(path)


def test_weights_that_are_none_under_the_right_hash(copy: Path) -> None:
    path = copy / "checkpoints" / "step-3"
    about = json.loads((path / "checkpoint.json").read_text())
    about.pop("files")
    for name in ("checkpoint.json", "COMPLETE"):
        (path / name).unlink()
    (path / "model.safetensors").write_bytes(b"\x00" * 64)
    folder._seal(path, about)
    for read in (checkpoint.describe, jepa.load_encoder):
        with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
            read(path)


# --- strict loading ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_architecture_lists_what_differs(saved: Path) -> None:
    path = saved / "checkpoints" / "step-3"
    deeper = checkpoint.create(run_config(Path("unused"), "method.encoder.depth=2"))
    before = {k: v.clone() for k, v in deeper.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"another architecture.* missing: encoder\.blocks\.1\.attn.*and \d+ more"
    ):
        checkpoint.load_model(path, deeper)
    assert all(torch.equal(v, deeper.state_dict()[k]) for k, v in before.items()), "nothing may be loaded"
    wider = checkpoint.create(run_config(Path("unused"), "method.encoder.width=64"))
    with pytest.raises(CheckpointError, match=r"of another shape: encoder\.blocks\.0.*\(32,\) instead of \(64,\)"):
        checkpoint.load_model(path, wider)
    with pytest.raises(CheckpointError, match=r"unexpected: .*weight"):
        checkpoint.load_model(path, nn.Linear(2, 2))


def test_optimiser_state_of_another_architecture(saved: Path) -> None:
    deeper = checkpoint.create(run_config(Path("unused"), "method.encoder.depth=2"))
    with pytest.raises(CheckpointError, match=r"another architecture \(optimiser\).*missing: encoder\.blocks\.1"):
        checkpoint.load_optim(saved / "checkpoints" / "step-3", deeper, optim.build_optimizer(deeper, OptimConfig()))


def test_weights_without_optimiser_state_cannot_be_resumed(config: RunConfig, tmp_path: Path) -> None:
    method, optimizer = stepped(config)
    path = checkpoint.save(tmp_path / "run", 0, method, None, STATE, config)
    with pytest.raises(CheckpointError, match=r"no optimiser state.*--init-from"):
        checkpoint.load_optim(path, method, optimizer)


@pytest.mark.parametrize("name", ["model.pt", "jepa.pth", "x.pth.tar", "pytorch_model.bin", "last.ckpt"])
def test_pickles_are_refused_without_being_opened(name: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"encoder": Trap()}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is refused: .* hold pickles.*jepa import"):
        jepa.load_encoder(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        jepa.load_encoder(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(looked for checkpoints/step-N\)"):
        jepa.load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        jepa.load_encoder(saved / "checkpoints" / "step-3" / "model.safetensors")


# --- saying what it is ------------------------------------------------------------------------------------------------


def test_describe_reads_no_tensor(copy: Path, config: RunConfig) -> None:
    path = copy / "checkpoints" / "step-3"
    facts = checkpoint.describe(copy)
    assert facts["path"] == str(path) and facts["step"] == 3 and facts["method"] == "ijepa" and facts["optimiser"]
    assert facts["image_size"] == [20, 20] and facts["exported"] == "target"
    assert facts["encoders"] == ["context", "target"] and facts["dtypes"] == ["float32"]
    assert facts["normalisation"] == {"mean": list(config.data.mean), "std": list(config.data.std)}
    method = checkpoint.create(config)
    assert facts["tensors"] == len(method.state_dict())
    assert facts["parameters"]["target"] == sum(v.numel() for v in method.encoder.state_dict().values())  # type: ignore[union-attr, operator]
    assert facts["config"]["seed"] == 3 and facts["state"]["g"] == 24 and facts["versions"]["torch"]
    json.dumps(facts)
    # a hole instead of the tensors: the header is all that is needed, and size is checked
    size = (path / "model.safetensors").stat().st_size
    header = int.from_bytes((path / "model.safetensors").read_bytes()[:8], "little") + 8
    os.truncate(path / "model.safetensors", header)
    os.truncate(path / "model.safetensors", size)
    assert checkpoint.describe(path) == facts


# --- the frozen encoder -----------------------------------------------------------------------------------------------


def test_load_encoder_is_the_methods_encoder_with_normalisation_inside(saved: Path, config: RunConfig) -> None:
    method, _ = stepped(config)
    encoder = jepa.load_encoder(saved)
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    want = method.encode((images / 255 - mean) / std)
    torch.testing.assert_close(encoder(images), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(images.float() / 255), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.pool(images), want.mean(dim=1), atol=1e-5, rtol=0)
    assert torch.equal(encoder.pool(encoder(images)), encoder.pool(images))
    assert encoder(images).shape == (4, 25, 32)
    assert (encoder.width, encoder.image_size, encoder.step, encoder.which) == (32, (20, 20), 3, "target")
    assert encoder.config == config

    context = jepa.load_encoder(saved / "checkpoints" / "step-3", which="context")
    assert not torch.equal(context(images), encoder(images))


def test_the_encoder_is_frozen(saved: Path) -> None:
    encoder = jepa.load_encoder(saved).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(torch.rand(1, 3, 20, 20).requires_grad_()).requires_grad


def test_what_the_encoder_refuses(saved: Path) -> None:
    encoder = jepa.load_encoder(saved)
    for wrong in (torch.zeros(1, 3, 24, 20), torch.zeros(3, 20, 20), torch.zeros(1, 1, 20, 20)):
        with pytest.raises(ConfigError, match=r"takes \(B, 3, 20, 20\)"):
            encoder(wrong)
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        encoder(torch.zeros(1, 3, 20, 20, dtype=torch.int64))
    with pytest.raises(CheckpointError, match=r"no encoder 'teacher'.*\['context', 'target'\]"):
        jepa.load_encoder(saved, which="teacher")


def test_random_encoder_is_the_same_architecture_from_a_seed_alone(saved: Path, config: RunConfig) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (checkpoint.random_encoder(config, seed) for seed in (7, 7, 8))
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.rand(2, 3, 20, 20)
    assert torch.equal(one(images), two(images)) and not torch.equal(one(images), other(images))
    trained = jepa.load_encoder(saved)
    assert one.state_dict().keys() == trained.state_dict().keys() and one.step == 0


def test_weights_of_a_foreign_safetensors_header_are_not_trusted(copy: Path) -> None:
    """Sealed again by somebody, so that hashes fit, but with other tensors: strict loading still refuses."""
    path = copy / "checkpoints" / "step-3"
    save_file({"encoder.norm.weight": torch.from_numpy(np.zeros(3, np.float32))}, path / "model.safetensors")
    values = json.loads((path / "checkpoint.json").read_text())
    for name in ("COMPLETE", "checkpoint.json"):
        (path / name).unlink()
    folder._seal(path, values)
    with pytest.raises(CheckpointError, match="another architecture"):
        jepa.load_encoder(copy)
