"""Official I-JEPA checkpoints become runs that compute what the official code computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import jepa
from jepa import checkpoint, config, losses
from jepa.bench import photos
from jepa.errors import CheckpointError, ConfigError
from jepa.export import ijepa, import_checkpoint
from jepa.masks import Masks
from jepa.methods import base
from jepa.methods.ijepa import IJEPA
from jepa.nn.tokens import gather_tokens
from jepa.nn.vit import SIZES, EncoderConfig, VisionTransformer
from jepa.train import train
from tests import golden_set, tiny
from tests.export import official

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture
def golden_run(tmp_path: Path) -> Path:
    source = official.write_golden(tmp_path / "IN1K-vit.pth.tar")
    import_checkpoint(source, "ijepa", tmp_path / "run", official.golden_settings())
    return tmp_path / "run"


def load_method(run: Path) -> IJEPA:
    path = checkpoint.latest(run)
    settings = checkpoint.read_config(path)
    method = base.create(settings.method, settings.data.image_size)
    checkpoint.load_model(path, method)
    assert isinstance(method, IJEPA)
    return method


def expected(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Golden outputs and the tolerance the golden README gives for them."""
    if dtype == torch.float64:
        return golden_set.tensors("ijepa_forward_f64"), {"atol": 1e-9, "rtol": 0}
    return golden_set.tensors("ijepa_forward"), {"atol": 2e-5, "rtol": 1e-5}


@pytest.mark.golden("ijepa_forward")
@DTYPES
def test_loaded_encoders_give_the_official_outputs(golden_run: Path, dtype: torch.dtype) -> None:
    given = golden_set.tensors("ijepa_forward")
    want, close = expected(dtype)
    images = given["imgs"].to(dtype)

    context = jepa.load_encoder(golden_run, which="context").to(dtype)
    torch.testing.assert_close(context(images), want["out.encoder_full"], **close)

    target = jepa.load_encoder(golden_run).to(dtype)
    assert target.which == "target"
    wanted = gather_tokens(losses.normalise_targets(target(images)), golden_set.listed(given, "masks_pred"))
    torch.testing.assert_close(wanted, want["out.h"], **close)


@pytest.mark.golden("ijepa_forward")
@DTYPES
def test_imported_method_gives_the_official_loss(golden_run: Path, dtype: torch.dtype) -> None:
    given = golden_set.tensors("ijepa_forward")
    want, close = expected(dtype)
    method = load_method(golden_run).to(dtype)
    masks = Masks(golden_set.listed(given, "masks_enc"), golden_set.listed(given, "masks_pred"))
    torch.testing.assert_close(method.predict(given["imgs"].to(dtype), masks), want["out.z"], **close)
    loss = method(given["imgs"].to(dtype), masks, {}).loss
    assert abs(loss.item() - want["out.loss"].item()) < (1e-9 if dtype == torch.float64 else 1e-6)


@pytest.mark.golden("ijepa_forward")
def test_every_key_is_accounted_for_in_the_record(golden_run: Path) -> None:
    source = golden_run.parent / "IN1K-vit.pth.tar"
    record = json.loads((golden_run / "import.json").read_text())
    parts = official.golden_parts()
    names = {f"{part}.{name}" for part, tensors in parts.items() for name in tensors}
    used = record["used_keys"]
    assert set(used.values()) == names | {"import record"}
    assert used["target_encoder.module.norm.weight"] == "target.norm.weight"
    assert record["origin"] == {"epoch": 300, "loss": "nan", "batch_size": 128, "world_size": 16, "lr": 1e-3}
    assert record["ignored_keys"]["opt.state.0.exp_avg"].startswith("optimiser state")
    assert record["keys"] == len(used) + len(record["ignored_keys"])
    assert record["filled"] == {} and record["bytes"] == source.stat().st_size
    assert checkpoint.describe(golden_run)["state"]["imported"]["origin"]["epoch"] == 300


@pytest.mark.golden("ijepa_forward")
def test_imported_run_has_a_config_that_rebuilds_it(golden_run: Path) -> None:
    model = golden_set.facts("ijepa_forward")["config"]["model"]
    run = config.load(golden_run / "config.yaml")
    method = base.create(run.method, run.data.image_size)
    assert isinstance(method, IJEPA)
    assert run.data.image_size == (model["img"], model["img"])
    assert method.config.encoder.resolved() == (model["embed"], model["depth"], model["heads"], model["mlp_ratio"])
    assert method.config.encoder.patch == (model["patch"], model["patch"])
    assert (method.config.predictor.width, method.config.predictor.depth) == (model["pred_dim"], model["pred_depth"])


# --- layouts ------------------------------------------------------------------------------------------------------


def imported(source: Path, out: Path, *settings: str) -> dict[str, Tensor]:
    import_checkpoint(source, "ijepa", out, [*official.golden_settings(), *settings])
    return dict(load_method(out).state_dict())


@pytest.mark.golden("ijepa_forward")
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod.", "backbone."])
def test_wrapped_names_mean_the_same(tmp_path: Path, wrapper: str) -> None:
    parts = official.golden_parts()
    torch.save(official.training_checkpoint(parts, wrapper), tmp_path / "a.pth")
    found = imported(tmp_path / "a.pth", tmp_path / "run")
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[f"{part}.{name}"], tensor, atol=0, rtol=0)


@pytest.mark.golden("ijepa_forward")
def test_safetensors_with_prefixes(tmp_path: Path) -> None:
    parts = official.golden_parts()
    flat = {f"{part}.{name}": t.contiguous() for part, tensors in parts.items() for name, t in tensors.items()}
    save_file(flat, tmp_path / "a.safetensors")
    found = imported(tmp_path / "a.safetensors", tmp_path / "run")
    assert found.keys() == flat.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in flat.items())


@pytest.mark.golden("ijepa_forward")
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
def test_a_bare_encoder_serves_as_both_and_the_predictor_is_declared_fresh(tmp_path: Path, wrapper: str) -> None:
    target = official.golden_parts()["target"]
    torch.save({f"{wrapper}{k}": v for k, v in target.items()}, tmp_path / "bare.pth")
    settings = [*official.golden_settings(), "method.predictor.width=24", "method.predictor.depth=2"]
    record = import_checkpoint(tmp_path / "bare.pth", "ijepa", tmp_path / "run", settings)
    assert set(record["filled"]) == {"encoder", "predictor"} and record["notes"]
    assert "random" in record["filled"]["predictor"]
    method = load_method(tmp_path / "run")
    for name, tensor in target.items():
        assert torch.equal(method.target.state_dict()[name], tensor)
        assert torch.equal(method.encoder.state_dict()[name], tensor)
    assert float(method.predictor.predictor_embed.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.golden("ijepa_forward")
def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    target = official.golden_parts()["target"]
    torch.save({k: v.half() for k, v in target.items()}, tmp_path / "half.pth")
    record = import_checkpoint(
        tmp_path / "half.pth", "ijepa", tmp_path / "run", [*official.golden_settings(), "method.predictor.width=24"]
    )
    assert record["dtypes"] == ["float16"]
    weight = load_method(tmp_path / "run").state_dict()["target.norm.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, target["norm.weight"].half().float())


# --- architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize(("image", "patch"), [((224, 224), (14, 14)), ((32, 96), (16, 8))])
def test_every_official_size_is_recognised(size: str, image: tuple[int, int], patch: tuple[int, int]) -> None:
    want = EncoderConfig(size=size, patch=patch)  # type: ignore[arg-type]
    with torch.device("meta"):
        encoder = VisionTransformer(want, image).state_dict()
    run = ijepa.run_config({"target": dict(encoder)}, Path("x.pth"), [])
    assert run.data.image_size == image
    assert run.method["encoder"] == {"size": size, "patch": list(patch)}


def small_encoder(image: tuple[int, int] = (32, 48), patch: int = 8, **sizes: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    settings = EncoderConfig(patch=(patch, patch), **({"width": 16, "depth": 2, "heads": 2} | sizes))
    return dict(VisionTransformer(settings, image).state_dict())


def refused(tmp_path: Path, tensors: dict[str, object], *settings: str) -> str:
    """The message of an import that must fail, and must leave nothing behind."""
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(tmp_path / "x.pth", "ijepa", tmp_path / "run", list(settings))
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_unknown_heads_are_asked_for(tmp_path: Path) -> None:
    assert "method.encoder.heads=N" in refused(tmp_path, small_encoder())
    assert "official models of this width have 3" in refused(tmp_path, small_encoder(width=192, heads=3))


def test_an_odd_mlp_ratio_survives(tmp_path: Path) -> None:
    for hidden in (47, 49, 62, 90):
        with torch.device("meta"):
            tensors = dict(
                VisionTransformer(EncoderConfig(patch=(8, 8), width=44, depth=1, heads=2), (16, 16)).state_dict()
            )
        tensors["blocks.0.mlp.fc1.weight"] = torch.empty(hidden, 44, device="meta")
        run = ijepa.run_config({"target": tensors}, Path("x.pth"), ["method.encoder.heads=2"])
        with torch.device("meta"):
            method = base.create(run.method | {"predictor": {"width": 8}}, run.data.image_size)
        assert method.get_parameter("encoder.blocks.0.mlp.fc1.weight").shape == (hidden, 44)


def test_a_learned_table_that_is_not_square_asks_for_the_image_size(tmp_path: Path) -> None:
    tensors = small_encoder()
    tensors["pos_embed"] = torch.randn(1, 24, 16)
    message = refused(tmp_path, tensors, "method.encoder.heads=2")
    assert "data.image_size=[HEIGHT,WIDTH]" in message and "24 positions" in message
    assert "8x8" in refused(tmp_path, tensors, "method.encoder.heads=2", "data.image_size=[64,64]")
    import_checkpoint(
        tmp_path / "x.pth", "ijepa", tmp_path / "run",
        ["method.encoder.heads=2", "data.image_size=[32,48]", "method.predictor.width=16"],
    )  # fmt: skip
    encoder = jepa.load_encoder(tmp_path / "run")
    assert encoder(torch.zeros(1, 3, 32, 48)).shape == (1, 24, 16)


# --- strictness ---------------------------------------------------------------------------------------------------

HEADS = "method.encoder.heads=2"


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    wrapped = {"target_encoder": small_encoder()}
    assert "teacher_temp" in refused(tmp_path, wrapped | {"teacher_temp": 0.1}, HEADS)
    assert "momentum_buffer.a" in refused(tmp_path, wrapped | {"momentum_buffer": {"a": torch.ones(1)}}, HEADS)
    assert "cls_token" in refused(tmp_path, small_encoder() | {"cls_token": torch.ones(1, 1, 16)}, HEADS)


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    tensors = small_encoder()
    without = {k: v for k, v in tensors.items() if k != "blocks.1.attn.proj.bias"}
    assert "blocks.1.attn.proj.bias" in refused(tmp_path, without, HEADS)
    without = {k: v for k, v in tensors.items() if not k.startswith("blocks.0.")}
    assert "blocks.0 are missing" in refused(tmp_path, without, HEADS)
    message = refused(tmp_path, tensors | {"blocks.1.mlp.fc1.bias": torch.ones(3)}, HEADS)
    assert "blocks.1.mlp.fc1.bias is (3,)" in message and "(64,)" in message
    broken = tensors["norm.weight"].clone()
    broken[3] = float("nan")
    assert "norm.weight" in refused(tmp_path, tensors | {"norm.weight": broken}, HEADS)
    assert "floating point" in refused(tmp_path, tensors | {"norm.weight": torch.ones(16, dtype=torch.int64)}, HEADS)


def test_a_predictor_of_another_encoder_is_refused(tmp_path: Path) -> None:
    predictor = {"predictor_embed.weight": torch.ones(8, 20), "predictor_blocks.0.mlp.fc1.weight": torch.ones(32, 8)}
    message = refused(tmp_path, {"encoder": small_encoder(), "predictor": predictor}, HEADS)
    assert "width 20" in message and "16" in message


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    tensors = small_encoder()
    both = tensors | {"module.norm.bias": tensors["norm.bias"]}
    assert "'norm.bias' and 'module.norm.bias'" in refused(tmp_path, both, HEADS)
    assert "unclear" in refused(tmp_path, {"target": tensors, "target_encoder": tensors}, HEADS)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    assert "no I-JEPA encoder" in refused(tmp_path, {"conv1.weight": torch.ones(1)})
    assert "it is empty" in refused(tmp_path, {})
    assert "no I-JEPA encoder" in refused(tmp_path, {"predictor": {"mask_token": torch.ones(1)}})


def test_settings_and_layout_are_checked(tmp_path: Path) -> None:
    torch.save(small_encoder(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="head"):
        import_checkpoint(tmp_path / "x.pth", "ijepa", tmp_path / "run", [HEADS, "method.encoder.head=2"])
    with pytest.raises(ConfigError, match="ijepa"):
        import_checkpoint(tmp_path / "x.pth", "ijeppa", tmp_path / "run", [HEADS])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        import_checkpoint(tmp_path / "x.pth", "ijepa", tmp_path / "run", [HEADS])


# --- what one does with it ----------------------------------------------------------------------------------------


def test_training_goes_on_from_imported_weights_but_does_not_resume(tmp_path: Path) -> None:
    dataset = photos.build_dataset(tmp_path, 8)
    still = ["optim.lr=0", "optim.start_lr=0", "optim.final_lr=0", "optim.warmup={steps: 0}"]
    short = ["train.duration={steps: 1}", "monitor.every={steps: 0}"]
    torch.save(small_encoder((20, 20), patch=4, width=32, depth=1), tmp_path / "x.pth")
    settings = ["method.predictor.width=16", "method.predictor.depth=1", "method.predictor.heads=2"]
    settings += [f"data.path={dataset.root}", "data.workers=0", "train.batch=8", "train.trackers=[]", *still, *short]
    import_checkpoint(tmp_path / "x.pth", "ijepa", tmp_path / "imported", [HEADS, *settings])

    run = tiny.run_config(dataset.root, *still, *short)
    train(run, tmp_path / "run", init_from=tmp_path / "imported", quiet=True)
    before, after = load_method(tmp_path / "imported").state_dict(), load_method(tmp_path / "run").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)  # EMA of equal weights rounds
    with pytest.raises(CheckpointError, match="init-from"):
        train(checkpoint.read_config(tmp_path / "imported"), tmp_path / "imported", resume=True, quiet=True)
