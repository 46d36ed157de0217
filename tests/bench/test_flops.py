"""The analytic operation count equals what torch's own counter sees, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.bench.flops import StepFlops, step_flops
from jepa.bench.plain import PlainIJEPA
from jepa.bench.plain_video import PlainVJEPA
from jepa.bench.step import Ours
from jepa.masks import Masks
from jepa.methods.vjepa import VJEPA

CPU = torch.device("cpu")


def make(image: tuple[int, ...], masks: dict[str, Any], **encoder: Any) -> Ours:
    options = {
        "name": "ijepa" if len(image) == 2 else "vjepa",
        "encoder": {"patch": 4, "width": 16, "depth": 2, "heads": 2, **encoder},
        "predictor": {"width": 8 if len(image) == 2 else 12, "depth": 3, "heads": 2},
        "masks": masks,
    }
    return Ours(options, image, CPU, torch.float32)


def counted(function: Any) -> int:
    # the spelt-out attention kernel: fused ones recompute in backward, which is no work the model needs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


def analytic(ours: Ours, batch: int, masks: Masks) -> StepFlops:
    sizes = [[m.shape[1] for m in kind] for kind in (masks.context, masks.target)]
    return step_flops(ours.geometry, batch, *sizes, paired=ours.video)


@pytest.mark.parametrize(
    ("image", "masks", "encoder"),
    [
        ((32, 32), {}, {}),
        ((24, 40), {"targets": 2, "context_keep": 0.2}, {"mlp_ratio": 3.0}),
        ((32, 32), {"contexts": 2, "targets": 3, "target_scale": [0.1, 0.12]}, {"patch": [4, 8], "depth": 1}),
    ],
)
def test_every_part_of_a_step(image: tuple[int, int], masks: dict[str, Any], encoder: dict[str, Any]) -> None:
    ours = make(image, masks, **encoder)
    images, drawn = ours.example(3)
    want, method = analytic(ours, 3, drawn), ours.method
    assert counted(lambda: method.targets(images, drawn)) == want.target
    with torch.no_grad():
        context = method.encoder(images, drawn.context)
    assert counted(lambda: method.encoder(images, drawn.context)) == want.context
    assert counted(lambda: method.predictor(context, drawn.context, drawn.target)) == want.predictor
    with sdpa_kernel(SDPBackend.MATH):
        loss = method(images, drawn, {}).loss
    assert counted(loss.backward) == want.backward
    assert counted(lambda: ours.step(images, drawn)) == want.total


@pytest.mark.parametrize("size", [(4, 32, 32), (6, 24, 40)])
def test_every_part_of_a_step_on_clips(size: tuple[int, ...]) -> None:
    ours = make(size, {}, tubelet=2)
    clips, drawn = ours.example(3)
    want, method = analytic(ours, 3, drawn), ours.method
    assert isinstance(method, VJEPA)
    assert counted(lambda: method.targets(clips, drawn)) == want.target
    with torch.no_grad():
        visible = method.encoder(clips, drawn.context)
    assert counted(lambda: method.encoder(clips, drawn.context)) == want.context
    assert counted(lambda: method.predictor(visible, drawn, method.encoder.grid, [0, 0])) == want.predictor
    with sdpa_kernel(SDPBackend.MATH):
        loss = method(clips, drawn, {}).loss
    assert counted(loss.backward) == want.backward
    assert counted(lambda: ours.step(clips, drawn)) == want.total
    plain = PlainVJEPA(ours.geometry, CPU, torch.float32)
    g, kept = ours.geometry, sum(m.shape[1] for m in drawn.context)
    wasted = 3 * 2 * (2 * (2 * g.tokens - kept) * 3 * 2 * 4 * 4 * g.width)  # embeds the whole clip for every mask
    found = counted(lambda: plain.step(clips, drawn.context, drawn.target))
    assert found == want.total + wasted


def test_the_plain_video_baseline_is_the_same_model() -> None:
    ours = make((4, 32, 32), {}, tubelet=2)
    clips, drawn = ours.example(2)
    plain, method = PlainVJEPA(ours.geometry, CPU, torch.float32), ours.method
    assert isinstance(method, VJEPA)
    method.predictor.use_tokens([0])
    for theirs, mine in ((plain.encoder, method.encoder), (plain.target, method.target)):
        theirs.load_state_dict({name: mine.state_dict()[_ours(name)] for name in theirs.state_dict()})
    state = method.predictor.state_dict()
    plain.predictor.load_state_dict({n: state[_ours(n, "predictor_")] for n in plain.predictor.state_dict()})
    want = method(clips, drawn, {}).loss.detach()
    torch.testing.assert_close(plain.step(clips, drawn.context, drawn.target), want, atol=1e-6, rtol=0)


def _ours(name: str, prefix: str = "") -> str:
    for theirs in ("qkv", "proj"):
        name = name.replace(f".{theirs}.", f".attn.{theirs}.")
    for theirs in ("fc1", "fc2"):
        name = name.replace(f".{theirs}.", f".mlp.{theirs}.")
    if name.startswith(("blocks.", "norm.")):
        return prefix + name
    whole = {"embed.": "patch_embed.proj.", "enter.": "predictor_embed.", "leave.": "predictor_proj."}
    return next((name.replace(k, v) for k, v in whole.items() if name.startswith(k)), "mask_tokens.0")


def test_the_baseline_needs_the_same_and_wastes_only_the_embedding_of_dropped_patches() -> None:
    ours = make((32, 32), {})
    images, drawn = ours.example(2)
    plain = PlainIJEPA(ours.geometry, CPU, torch.float32)
    g, kept = ours.geometry, drawn.context[0].shape[1]
    wasted = 2 * 2 * (2 * (g.tokens - kept) * 3 * 4 * 4 * g.width)  # forward and weight gradient, two images
    found = counted(lambda: plain.step(images, drawn.context, drawn.target))
    assert found == analytic(ours, 2, drawn).total + wasted


def test_a_known_size_by_hand() -> None:
    """ViT-Ti/16 at 224."""
    ours = Ours(
        {"name": "ijepa", "encoder": {"size": "tiny", "patch": 16}, "predictor": {"width": 192, "depth": 1}},
        (224, 224), CPU, torch.float32,
    )  # fmt: skip
    one = step_flops(ours.geometry, 1, [49], [35])
    # 12 blocks x 196 tokens x 12 x 192^2 multiply-adds, + attention 2 x 196^2 x 192, + embedding 196 x 768 x 192
    assert one.target == 2 * (12 * (196 * 12 * 192**2 + 2 * 196**2 * 192) + 196 * 768 * 192)
