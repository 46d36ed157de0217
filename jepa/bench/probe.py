"""``jepa bench probe``: what a grid of linear probes costs beside a single one.

All heads of a grid share the features, and in each step one product forward and one backward. So the grid costs more
than one head in the fit alone, and next to nothing where the encoder has to look at the images first, as in any probe
of a new encoder. Both are measured: the fit on random features, and the encoder's rate on random images, from which
the time for as many images as there are features is calculated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from jepa.bench.result import Result, hardware, interleaved, median, pick_device
from jepa.errors import ConfigError
from jepa.nn.vit import EncoderConfig, VisionTransformer
from jepa.probe.axes import Axes
from jepa.probe.linear import LinearConfig, linear_probe

_WIDTHS = {"tiny": 192, "small": 384, "base": 768}


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured."""

    size: Literal["tiny", "small", "base"] = "small"  # of the ViT/16
    image_size: int = 224
    samples: int = 10_000  # training features; a fifth as many each for choosing and reporting
    classes: int = 100
    batch: int = 16  # images that the encoder sees at once
    rounds: int = 3


def bench_probe(settings: ProbeSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures: heads; fit_one_s, fit_grid_s; encode_s (calculated from encoder, images/s); fit_ratio = fit_grid_s /
        fit_one_s; ratio = the same with encoding in both.

    Raises:
        ConfigError: settings or a device that cannot be measured.
    """
    wanted, place = settings or ProbeSettings(), pick_device(device)
    if min(wanted.samples, wanted.batch, wanted.classes - 1) < 1:
        raise ConfigError(
            f"samples={wanted.samples}, batch={wanted.batch}, classes={wanted.classes}: allowed: samples and batch "
            "from 1, classes from 2"
        )
    width, grid = _WIDTHS[wanted.size], LinearConfig()
    one = LinearConfig(lr=(1.0,), weight_decay=(1e-3,))
    torch.manual_seed(0)
    held_out = max(wanted.samples // 5, 1)
    count = wanted.samples + 2 * held_out
    labels = torch.arange(count) % wanted.classes
    features = torch.randn(count, width) + torch.randn(wanted.classes, width)[labels]
    axes = Axes.fit(features[: wanted.samples], device=place)
    train, val, test = (x.contiguous() for x in torch.split(axes.apply(features), [wanted.samples, held_out, held_out]))
    seen = (train, labels[: wanted.samples]), (val, labels[wanted.samples :][:held_out])
    encoder = (
        VisionTransformer(EncoderConfig(size=wanted.size), (wanted.image_size, wanted.image_size)).to(place).eval()
    )
    images = torch.randn(wanted.batch, 3, wanted.image_size, wanted.image_size, device=place)

    def fit(config: LinearConfig) -> None:
        linear_probe(axes, *seen, test, wanted.classes, config)

    def encode() -> None:
        with torch.inference_mode():
            encoder(images)

    seconds = interleaved(
        {"one": lambda: fit(one), "grid": lambda: fit(grid), "encode": encode}, wanted.rounds, device=place
    )
    alone, whole, look = (median(seconds[name]) for name in ("one", "grid", "encode"))
    encoding = look / wanted.batch * count
    shown = {"size": wanted.size, "image_size": wanted.image_size, "samples": count, "classes": wanted.classes}
    result = Result("probe", shown | {"rounds": wanted.rounds}, hardware(place))
    result.add("heads", len(grid.heads()), "", "of the default grid")
    result.add("fit_one_s", alone, "s", "one head: fit, choose, predict")
    result.add("fit_grid_s", whole, "s", "the grid")
    result.add("fit_ratio", whole / alone, "x", "the grid over one head, features at hand")
    result.add("encoder", wanted.batch / look, "images/s", "the frozen encoder alone")
    result.add("encode_s", encoding, "s", "calculated: samples over that rate")
    result.add("ratio", (encoding + whole) / (encoding + alone), "x", "the grid over one head, encoding in both")
    return result


__all__ = ["ProbeSettings", "bench_probe"]
