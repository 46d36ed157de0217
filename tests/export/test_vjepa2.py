"""Official V-JEPA, V-JEPA 2 and V-JEPA 2.1 checkpoints become runs that compute what the official code computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

import jepa
from jepa import checkpoint, config, losses
from jepa.errors import CheckpointError, ConfigError
from jepa.export import describe, import_checkpoint, vjepa2
from jepa.export.importer import Ledger
from jepa.masks import Masks
from jepa.methods import base
from jepa.methods.vjepa import VJEPA
from jepa.methods.vjepa21 import VJEPA21
from jepa.nn.tokens import gather_tokens
from jepa.nn.video import SIZES, VideoEncoderConfig, VideoTransformer
from tests import golden_set
from tests.export import official

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def load_method(run: Path) -> base.Method:
    path = checkpoint.latest(run)
    settings = checkpoint.read_config(path)
    method = base.create(settings.method, settings.data.size)
    checkpoint.load_model(path, method)
    return method


# --- V-JEPA 2, golden ---------------------------------------------------------------------------------------------


@pytest.fixture
def golden_run(tmp_path: Path) -> Path:
    torch.save(official.training_checkpoint(official.video_parts(), "module.backbone."), tmp_path / "vitl.pt")
    import_checkpoint(tmp_path / "vitl.pt", "vjepa2", tmp_path / "run", official.video_settings())
    return tmp_path / "run"


@pytest.mark.golden("vjepa2_forward")
@DTYPES
def test_imported_run_gives_the_official_outputs(golden_run: Path, dtype: torch.dtype) -> None:
    given = golden_set.tensors("vjepa2_forward")
    wide = dtype == torch.float64
    want = golden_set.tensors("vjepa2_forward_f64") if wide else given
    close: dict[str, float] = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    clips, masks = given["clips.0"].to(dtype), Masks(
        golden_set.listed(given, "masks_enc.0"), golden_set.listed(given, "masks_pred.0")
    )  # fmt: skip
    context = jepa.load_encoder(golden_run, which="context").to(dtype)
    torch.testing.assert_close(context(clips), want["out.encoder_full.0"], **close)
    torch.testing.assert_close(context(given["image"].to(dtype)), want["out.image_as_2_frames"], **close)
    target = jepa.load_encoder(golden_run).to(dtype)
    assert target.which == "target" and target.size == tuple(clips.shape[2:])
    assert target.pool(clips).shape == (len(clips), target.width)
    height, width = clips.shape[-2:]
    for wrong in (clips[0], clips[..., :-8], clips[:, :2]):
        with pytest.raises(ConfigError, match=rf"this encoder takes \(B, 3, \[T, \]{height}, {width}\)"):
            target(wrong)
    for i, index in enumerate(masks.target):
        wanted = gather_tokens(losses.normalise_targets(target(clips)), [index])
        torch.testing.assert_close(wanted, want[f"out.h.0.{i}"], **close)

    method = load_method(golden_run).to(dtype)
    assert isinstance(method, VJEPA)
    for i, predicted in enumerate(method.predict(clips, masks)):
        torch.testing.assert_close(predicted, want[f"out.z.0.{i}"], **close)
    loss = method(clips, masks, {}).loss
    assert abs(loss.item() - want["out.loss"].item()) < (1e-9 if wide else 1e-6)


@pytest.mark.golden("vjepa2_forward")
def test_every_key_is_accounted_for_in_the_record(golden_run: Path) -> None:
    record = json.loads((golden_run / "import.json").read_text())
    names = {f"{part}.{name}" for part, tensors in official.video_parts().items() for name in tensors}
    assert set(record["used_keys"].values()) == names | {"import record"}
    assert record["used_keys"]["target_encoder.module.backbone.norm.weight"] == "target.norm.weight"
    assert record["keys"] == len(record["used_keys"]) + len(record["ignored_keys"])
    assert record["layout"] == "vjepa2" and record["filled"] == {} and record["notes"] == []


@pytest.mark.golden("vjepa2_forward")
@pytest.mark.parametrize("wrapper", ["", "module.", "backbone.", "module._orig_mod.backbone."])
def test_wrapped_names_mean_the_same(tmp_path: Path, wrapper: str) -> None:
    torch.save(official.training_checkpoint(official.video_parts(), wrapper), tmp_path / "a.pth")
    import_checkpoint(tmp_path / "a.pth", "vjepa2", tmp_path / "run", official.video_settings())
    found = load_method(tmp_path / "run").state_dict()
    for part, tensors in official.video_parts().items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[f"{part}.{name}"], tensor, atol=0, rtol=0)


@pytest.mark.golden("vjepa2_forward")
def test_a_bare_encoder_and_position_tables_that_nobody_uses(tmp_path: Path) -> None:
    target = official.video_parts()["target"] | {"pos_embed": torch.zeros(1, 7, 48)}
    save_file({k: v.contiguous() for k, v in target.items()}, tmp_path / "bare.safetensors")
    width = golden_set.facts("vjepa2_forward")["config"]["model"]["pred_dim"]
    settings = [*official.video_settings(), f"method.predictor.width={width}", "method.predictor.depth=2"]
    record = import_checkpoint(tmp_path / "bare.safetensors", "vjepa2", tmp_path / "run", settings)
    assert set(record["filled"]) == {"encoder", "predictor"}
    assert list(record["ignored"]) == [r for r in record["ignored"] if "position table" in r] and record["ignored"]
    found = load_method(tmp_path / "run").state_dict()
    assert torch.equal(found["encoder.norm.weight"], target["norm.weight"])


@pytest.mark.golden("vjepa2_forward")
def test_the_predictor_of_an_action_conditioned_model_is_ignored_for_a_reason(tmp_path: Path) -> None:
    parts = official.video_parts()
    parts["predictor"] = {"action_encoder.weight": torch.ones(4, 7), "predictor_norm.weight": torch.ones(4)}
    width = 8 * golden_set.facts("vjepa2_forward")["config"]["model"]["heads"]
    settings = [s for s in official.video_settings() if "predictor" not in s] + [f"method.predictor.width={width}"]
    torch.save(official.training_checkpoint(parts), tmp_path / "ac.pt")
    record = import_checkpoint(tmp_path / "ac.pt", "vjepa2", tmp_path / "run", settings)
    assert any("V-JEPA 2-AC" in reason for reason in record["ignored"]) and "predictor" in record["filled"]


# --- architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SIZES if n not in ("tiny", "small")])
def test_official_sizes_are_recognised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa.export import importer, vjepa2

    wanted = VideoEncoderConfig(size=name)  # type: ignore[arg-type]
    with torch.device("meta"):
        encoder = VideoTransformer(wanted, (16, 256, 256), base.resolve({"name": "vjepa"})[1].position).state_dict()
    ledger = importer.Ledger(Path("x.pt"), frozenset())
    run = vjepa2.VJEPA2.run_config({"target": dict(encoder)}, Path("x.pt"), [], ledger)
    assert run.method["encoder"] == {"size": name, "patch": [16, 16], "tubelet": 2}
    assert run.data.size == (64, 256, 256) and "rotary positions go with every size" in ledger.notes[0]


def small(values: dict[str, Any], size: tuple[int, ...]) -> base.Method:
    torch.manual_seed(0)
    sizes = {"encoder": {"patch": 8, "width": 48, "depth": 4, "heads": 3}, "predictor": {"width": 24, "depth": 2}}
    method = base.create(config.merge(sizes, values), size)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def parts_of(method: base.Method) -> dict[str, dict[str, Tensor]]:
    return {name: dict(method.get_submodule(name).state_dict()) for name in ("encoder", "predictor", "target")}


@pytest.mark.parametrize("uniform", [True, False])
def test_vjepa_shows_its_clip_size_in_its_position_table(tmp_path: Path, uniform: bool) -> None:
    position = {"kind": "sincos", "uniform": uniform}
    method = small({"name": "vjepa", "position": position, "mask_token": "mask"}, (8, 32, 32))
    torch.save(official.training_checkpoint(parts_of(method), "module.backbone."), tmp_path / "vitl16.pth.tar")
    import_checkpoint(tmp_path / "vitl16.pth.tar", "vjepa", tmp_path / "run", ["method.encoder.heads=3"])
    found = load_method(tmp_path / "run")
    settings = checkpoint.read_config(checkpoint.latest(tmp_path / "run"))
    assert settings.data.size == (8, 32, 32) and settings.data.clip is not None and settings.data.clip.stride == 4
    assert isinstance(found, VJEPA) and found.config.mask_token == "mask"
    assert (found.config.position.kind, found.config.position.uniform) == ("sincos", uniform)
    x = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(found.encode(x), method.encode(x), atol=0, rtol=0)


def test_a_grid_that_is_not_square_is_asked_for(tmp_path: Path) -> None:
    method = small({"name": "vjepa", "position": {"kind": "sincos"}}, (4, 32, 48))
    torch.save(official.training_checkpoint(parts_of(method)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"data\.image_size=\[HEIGHT,WIDTH\].*data\.clip\.frames"):
        import_checkpoint(tmp_path / "a.pt", "vjepa", tmp_path / "run", ["method.encoder.heads=3"])
    settings = ["method.encoder.heads=3", "data.image_size=[32,48]", "data.clip.frames=4"]
    import_checkpoint(tmp_path / "a.pt", "vjepa", tmp_path / "run", settings)
    assert load_method(tmp_path / "run").size == (4, 32, 48)


def test_vjepa21_with_its_levels_and_modalities(tmp_path: Path) -> None:
    method = small({"name": "vjepa21", "predictor": {"mask_tokens": 8}}, (4, 32, 32))
    torch.save(official.training_checkpoint(parts_of(method), "module.backbone."), tmp_path / "vitG.pt")
    settings = ["method.encoder.heads=3", "data.image_size=32", "data.clip.frames=4", "method.position.base_grid=16"]
    record = import_checkpoint(tmp_path / "vitG.pt", "vjepa21", tmp_path / "run", settings)
    found = load_method(tmp_path / "run")
    assert isinstance(found, VJEPA21) and record["filled"] == {} and found.config.predictor.mask_tokens == 8
    for x in (torch.randn(1, 3, 4, 32, 32), torch.randn(1, 3, 32, 32)):
        torch.testing.assert_close(found.encode(x), method.encode(x), atol=0, rtol=0)


def test_a_distilled_vjepa21_keeps_its_encoder_and_says_why_not_its_predictor(tmp_path: Path) -> None:
    parts = parts_of(small({"name": "vjepa21"}, (4, 32, 32)))
    parts["predictor"]["predictor_proj.weight"] = torch.zeros(100, 24)
    saved = official.training_checkpoint(parts)
    saved["ema_encoder"] = saved.pop("target_encoder")
    torch.save(saved, tmp_path / "vitb.pt")
    settings = ["method.encoder.heads=3", "data.image_size=32", "data.clip.frames=4", "method.predictor.width=24"]
    record = import_checkpoint(tmp_path / "vitb.pt", "vjepa21", tmp_path / "run", settings)
    assert any("distilled" in reason and "100 wide" in reason for reason in record["ignored"])
    assert set(record["filled"]) == {"predictor"}


# --- strictness ---------------------------------------------------------------------------------------------------


def test_unknown_missing_and_misplaced_weights_are_named(tmp_path: Path) -> None:
    parts = parts_of(small({"name": "vjepa"}, (4, 32, 32)))
    settings = ["method.encoder.heads=3", "data.image_size=32", "data.clip.frames=4"]

    def refused(tensors: dict[str, Any], source: str = "vjepa2") -> str:
        torch.save(tensors, tmp_path / "x.pt")
        with pytest.raises(CheckpointError) as caught:
            import_checkpoint(tmp_path / "x.pt", source, tmp_path / "run", settings)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    whole = official.training_checkpoint(parts)
    assert "teacher_temp" in refused(whole | {"teacher_temp": 0.1})
    assert "both 'ema_encoder' and 'target_encoder'" in refused(whole | {"ema_encoder": whole["target_encoder"]})
    extra = {**whole["encoder"], "module.cls_token": torch.ones(1, 1, 48)}
    assert "cls_token" in refused(whole | {"encoder": extra})
    less = {k: v for k, v in whole["predictor"].items() if "mask_tokens.1" not in k}
    less |= {"module.mask_tokens.2": torch.zeros(1, 1, 24)}
    assert "mask_tokens.1" in refused(whole | {"predictor": less})
    assert "takes clips" in refused(whole, "ijepa")
    assert "pos_embed" in refused(whole, "vjepa"), "V-JEPA has position tables, this file has none"
    images = parts_of(
        base.create({"name": "ijepa", "encoder": {"patch": 8, "width": 48, "depth": 2, "heads": 3}}, (32, 32))
    )
    assert (
        "V-JEPA" in describe_kind(tmp_path, whole)
        and describe_kind(tmp_path, {"encoder": images["encoder"]}) == "I-JEPA"
    )
    with pytest.raises(ConfigError, match="vjepa2"):
        import_checkpoint(tmp_path / "x.pt", "vjeppa2", tmp_path / "run", settings)


def describe_kind(folder: Path, tensors: dict[str, Any]) -> str:
    torch.save(tensors, folder / "kind.pt")
    return str(describe(folder / "kind.pt")["kind"])


@pytest.mark.parametrize(
    ("values", "size", "kind", "source"),
    [
        ({"name": "vjepa"}, (4, 32, 32), "V-JEPA 2", "vjepa2"),
        ({"name": "vjepa", "position": {"kind": "sincos"}}, (4, 32, 32), "V-JEPA", "vjepa"),
        ({"name": "vjepa21"}, (4, 32, 32), "V-JEPA 2.1", "vjepa21"),
    ],
)
def test_a_file_is_described_with_the_command_that_imports_it(
    tmp_path: Path, values: dict[str, Any], size: tuple[int, ...], kind: str, source: str
) -> None:
    torch.save(official.training_checkpoint(parts_of(small(values, size))), tmp_path / "a.pt")
    facts = describe(tmp_path / "a.pt")
    assert facts["kind"] == kind and f"--from {source} --to RUN" in facts["command"]
    assert facts["architecture"]["patch"] == [2, 8, 8] and facts["architecture"]["depth"] == 4
    assert facts["architecture"]["positions"] == (32 if source == "vjepa" else "rotary")


# --- a second opinion -----------------------------------------------------------------------------------------------


def to_transformers(method: VJEPA) -> dict[str, Tensor]:
    """Our names to those of VJEPA2Model; the fused query-key-value maps are cut in three."""
    encoder, predictor = method.encoder.state_dict(), method.predictor.state_dict()
    out: dict[str, Tensor] = {}
    for theirs, ours in (
        ("encoder.embeddings.patch_embeddings.proj", "patch_embed.proj"),
        ("encoder.layernorm", "norm"),
    ):
        out |= {f"{theirs}.{kind}": encoder[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    tokens = [predictor[f"mask_tokens.{i}"] for i in range(len(method.predictor.mask_tokens))]
    out["predictor.embeddings.mask_tokens"] = torch.stack(tokens)
    renamed = {
        "predictor.embeddings.predictor_embeddings": "predictor_embed",
        "predictor.layernorm": "predictor_norm",
        "predictor.proj": "predictor_proj",
    }
    for theirs, ours in renamed.items():
        out |= {f"{theirs}.{kind}": predictor[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    blocks = [("encoder", encoder, "blocks", len(method.encoder.blocks))]
    blocks += [("predictor", predictor, "predictor_blocks", len(method.predictor.predictor_blocks))]
    for part, state, prefix, depth in blocks:
        for i in range(depth):
            for kind in ("weight", "bias"):
                for theirs in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                    out[f"{part}.layer.{i}.{theirs}.{kind}"] = state[f"{prefix}.{i}.{theirs}.{kind}"]
                out[f"{part}.layer.{i}.attention.proj.{kind}"] = state[f"{prefix}.{i}.attn.proj.{kind}"]
                pieces = state[f"{prefix}.{i}.attn.qkv.{kind}"].chunk(3)
                for name, piece in zip(("query", "key", "value"), pieces, strict=True):
                    out[f"{part}.layer.{i}.attention.{name}.{kind}"] = piece
    return out


@DTYPES
def test_transformers_agrees(dtype: torch.dtype) -> None:
    method = small({"name": "vjepa", "predictor": {"heads": 2, "mask_tokens": 4}}, (6, 40, 40)).to(dtype).eval()
    assert isinstance(method, VJEPA)
    settings = VJEPA2Config(
        patch_size=8, crop_size=40, frames_per_clip=6, tubelet_size=2, hidden_size=48, num_attention_heads=3,
        num_hidden_layers=4, mlp_ratio=4.0, layer_norm_eps=1e-6, attn_implementation="sdpa", pred_hidden_size=24,
        pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=4,
    )  # fmt: skip
    theirs = VJEPA2Model(settings).to(dtype).eval()
    assert isinstance(theirs, nn.Module)
    theirs.load_state_dict(to_transformers(method), strict=True)
    clips = torch.randn(2, 3, 6, 40, 40, dtype=dtype)
    masks = Masks([torch.arange(0, 75, 4).expand(2, -1)], [torch.arange(1, 75, 4).expand(2, -1)])
    with torch.no_grad():
        reference = theirs(clips.transpose(1, 2), context_mask=masks.context, target_mask=masks.target)
        mine = method.encoder(clips)
        visible = [gather_tokens(mine, masks.context)]  # there the encoder sees the whole clip
        (predicted,) = method.predictor(visible, masks, method.encoder.grid, [1])
    assert mine.std() > 0.1
    close: dict[str, float] = {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(mine, reference.last_hidden_state, **close)
    torch.testing.assert_close(predicted, reference.predictor_output.last_hidden_state, **close)


def test_the_giant_encoder_alone_gets_a_predictor_of_the_published_heads() -> None:
    shape = {
        "patch_embed.proj.weight": (1408, 3, 2, 16, 16),
        "norm.weight": (1408,),
        "blocks.0.mlp.fc1.weight": (6144, 1408),
    }
    parts = {"target": {name: torch.empty(size, device="meta") for name, size in shape.items()}}
    parts["target"] |= {f"blocks.{i}.norm1.weight": torch.empty(1408, device="meta") for i in range(40)}
    run = vjepa2.VJEPA2.run_config(parts, Path("vitg.pt"), [], Ledger(Path("vitg.pt"), frozenset()))
    assert run.method["predictor"]["heads"] == 12  # the encoder's 22 do not divide its width of 384
    vjepa2.VJEPA2.predictor(run)
