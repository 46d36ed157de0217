"""Baselines that take something away from a video: the order of its frames, or all frames but one.

Shapes: B samples, C clips, V views, T frames, H W image, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa import checkpoint, keyed
from jepa.checkpoint import Encoder, folder, layers
from jepa.errors import ConfigError
from jepa.probe.features import Embed, Ints, Levels, Source

FrameOrder = Literal["shuffled", "still"]


@dataclass(frozen=True)
class RunBaseline:
    """Another run's encoder on the same data."""

    path: str  # run folder or checkpoint
    name: str | None = None  # in the table; default: the run's folder and step
    encoder: str | None = None  # of the method; null: the exported one


# --- the same encoder, less of the video --------------------------------------------------------------------------


def reordered(source: Source, how: FrameOrder) -> Source:
    """The run's encoder on clips that tell less: probes are trained and tested on such clips.

    "shuffled": the frames of a clip in a random order, drawn for each sample by its index. "still": the frame in the
    middle of the clip, repeated.
    """
    alter = shuffle_frames if how == "shuffled" else hold_frame
    name = source.name.split(" (")[0]
    words = "frames shuffled" if how == "shuffled" else "one frame held"
    identity = (source.identity or {}) | {"frames": how}
    return replace(source, name=f"{name}, {words}", role="frames", identity=identity, alter=alter)


def shuffle_frames(clips: Tensor, index: Ints) -> Tensor:
    """Clips (B, C, V, 3, T, H, W), the frames of each sample in an order keyed by its index."""
    scores = keyed.uniform("probe.frames", 0, index, clips.shape[4])
    order = torch.from_numpy(np.argsort(scores, axis=1)).to(clips.device)  # (B, T)
    return torch.stack([clip.index_select(3, o) for clip, o in zip(clips, order, strict=True)])


def hold_frame(clips: Tensor, index: Ints) -> Tensor:
    """Clips (B, C, V, 3, T, H, W) with all frames the middle one."""
    middle = clips.shape[4] // 2
    return clips[:, :, :, :, middle : middle + 1].expand_as(clips)


# --- another run --------------------------------------------------------------------------------------------------


def other_run(config: RunBaseline, clips: bool) -> Source:
    """Another run's encoder. One of images sees the middle frame of each clip.

    Args:
        clips: whether the suite looks at clips of videos.

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: an encoder of clips where the suite looks at images.
    """
    path = checkpoint.resolve(config.path, files=(folder.MODEL, folder.CONFIG))
    encoder = checkpoint.load_encoder(path, which=config.encoder)
    single = clips and len(encoder.size) == 2
    if len(encoder.size) == 3 and not clips:
        raise ConfigError(f"baselines.runs: {config.path} encodes clips, and the suite looks at images")

    def build(device: torch.device) -> Embed:
        return _frames(encoder.to(device).pool, single)

    def inner(device: torch.device, wanted: tuple[int, ...]) -> Levels:
        found = layers.levels(encoder.to(device), wanted)
        return lambda x: found(x[:, :, x.shape[2] // 2] if single else x)

    run = path.parent.parent if path.parent.name == folder.FOLDER else path
    name = config.name or f"{run.name} ({encoder.which}, step {encoder.step}{', one frame' if single else ''})"
    weights = folder.manifest(path)["files"][folder.MODEL]["sha256"]
    identity = {"weights": weights, "which": encoder.which, "config": arithmetic(encoder), "single": single}
    facts = {"run": str(run), "step": encoder.step, "width": encoder.width}
    return Source(name, "other", encoder.image_size, identity, build, facts, inner, layers.grid(encoder), False)


def _frames(embed: Embed, single: bool) -> Embed:
    return (lambda x: embed(x[:, :, x.shape[2] // 2])) if single else embed


def arithmetic(encoder: Encoder) -> dict[str, object]:
    """What of a run's configuration, besides its weights, changes an encoder's numbers."""
    config = encoder.config
    return {"method": config.method, "mean": list(config.data.mean), "std": list(config.data.std)}
