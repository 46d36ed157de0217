"""Roll-outs as pictures: a strip of what happened above what was imagined, and the same as a film.

Shapes: H steps, T frames seen, N tokens, D width.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jepa.errors import DataError
from jepa.methods.world import WorldModel
from jepa.monitor.imagination import courses, seen_latents
from jepa.nn.tokens import Normalise
from jepa.probe.episodes import Place, Recordings, batches, by_episode, spread_places
from jepa.rollout.decoder import Decoder, Nearest, train_decoder
from jepa.rollout.suite import PicturesConfig, RolloutSuite

SIDE = 96  # pixels of the longer side of a tile
COLUMNS = 10  # most steps in a strip
MILLISECONDS, LAST = 200, 900  # that each picture of a film stays, and the last one
INK, GAP, NAMES, HEAD = (60, 66, 72), 4, 108, 20
Draw = Callable[[Tensor], Tensor]  # latents (B, N, D) to pixels (B, 3, h, w) from 0 to 1


@dataclass(frozen=True)
class Rollout:
    """One episode's roll-out: rows by name, a picture of each step."""

    episode: int
    start: int  # last frame seen, in the model's steps
    rows: dict[str, list[Image.Image]]


def drawer(
    model: WorldModel, normalise: Normalise, recordings: Recordings, config: PicturesConfig, seen: int, size: int,
    device: torch.device,
) -> tuple[Draw, dict[str, Any]]:  # fmt: skip
    """What turns latents into pictures, learned from frames of the training split, and what it is in words."""
    each = max(1, -(-config.bank // max(len(recordings.lengths), 1)))
    places = spread_places(recordings.lengths, each, seen, 0)
    if not places:
        raise DataError(f"split {recordings.name!r} has no episode of {seen} frames at the model's pace")
    picked = np.linspace(0, len(places) - 1, min(config.bank, len(places))).round().astype(np.int64)
    latents, frames = [], []
    for batch in batches(recordings, [places[i] for i in picked], seen, 0, size):
        with torch.no_grad():
            found = model.readout(model.observe(batch.history(device, normalise)))[:, -1]
        latents.append(found.float().cpu())
        frames.append(batch.frames[:, -1])
    known, shown = torch.cat(latents), torch.cat(frames)
    if not config.decoder_steps:
        return Nearest(known, shown), {"by": "nearest training frame", "bank": len(known)}
    decoder, error = train_decoder(known, shown, config, device)

    def draw(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return _decoded(decoder, latents, device)

    return draw, {"by": "decoder", "steps": config.decoder_steps, "bank": len(known), "mse": error}


def _decoded(decoder: Decoder, latents: Tensor, device: torch.device) -> Tensor:
    picture: Tensor = decoder(latents.to(device))
    return picture.cpu()


def roll_outs(
    model: WorldModel, normalise: Normalise, recordings: Recordings, places: Sequence[Place], suite: RolloutSuite,
    draw: Draw, device: torch.device,
) -> list[Rollout]:  # fmt: skip
    """The first window of the first episodes: what happened, the same through the latents, and what was imagined."""
    assert suite.pictures is not None, "no pictures were asked for"
    first = [(e, frames[0]) for e, frames in by_episode(places).items()][: suite.pictures.episodes]
    found = []
    for (episode, start), batch in zip(
        first, batches(recordings, first, suite.windows.seen, suite.windows.horizon, 1), strict=True
    ):
        windows = batch.to(device, normalise, suite.windows.seen, suite.windows.blank)
        zero = {} if model.space.discrete else {"zero": torch.zeros_like(windows.future)}
        made = courses(model, windows, zero)
        with torch.no_grad():
            true = seen_latents(model, windows)[0, suite.windows.seen - 1 :]
        last = made.copy[0]
        rows = {"what happened": _tiles(batch.frames[0, suite.windows.seen - 1 :].float() / 255)}
        rows["seen, drawn"] = _tiles(draw(true))
        rows["imagined"] = _tiles(draw(torch.cat([last, made.imagined["open_loop"][0]])))
        if zero:
            rows["no action"] = _tiles(draw(torch.cat([last, made.imagined["zero"][0]])))
        found.append(Rollout(episode, start, rows))
    return found


def _tiles(pixels: Tensor) -> list[Image.Image]:
    """(n, 3, h, w) from 0 to 1 as pictures of one size; small ones keep sharp pixels."""
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).contiguous().numpy()
    scale = SIDE / max(whole.shape[1:3])
    size = (max(1, round(whole.shape[2] * scale)), max(1, round(whole.shape[1] * scale)))
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return [Image.fromarray(one).resize(size, how) for one in whole]


# --- files --------------------------------------------------------------------------------------------------------


def strip(found: Rollout) -> Image.Image:
    """Rows by name, columns by step; step 0 is the last frame seen."""
    steps = len(next(iter(found.rows.values())))
    columns = np.unique(np.linspace(0, steps - 1, min(COLUMNS + 1, steps)).round().astype(int)).tolist()
    rows = [[tiles[c] for c in columns] for tiles in found.rows.values()]
    return _sheet(rows, list(found.rows), ["seen" if c == 0 else f"+{c}" for c in columns])


def film(found: Rollout) -> list[Image.Image]:
    """A picture for each step: the rows of the strip side by side."""
    steps = len(next(iter(found.rows.values())))
    heads = list(found.rows)
    return [
        _sheet([[tiles[c] for tiles in found.rows.values()]], [f"+{c}" if c else "seen"], heads) for c in range(steps)
    ]


def save(roll_outs: Sequence[Rollout], folder: Path) -> list[dict[str, Any]]:
    """Write episode-N.png and .gif, instead of those of another time; what was written, relative to `folder`'s own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = []
    for found in roll_outs:
        stem = f"episode-{found.episode}"
        strip(found).save(folder / f"{stem}.png", optimize=True)
        (folder / f"{stem}.gif").write_bytes(_gif(film(found)))
        names = {"strip": f"{folder.name}/{stem}.png", "film": f"{folder.name}/{stem}.gif"}
        written.append({"episode": found.episode, "start": found.start, **names})
    return written


def _gif(pictures: Sequence[Image.Image]) -> bytes:
    """An animation that repeats for ever, its pictures sharing one palette."""
    stay = [MILLISECONDS] * (len(pictures) - 1) + [LAST]
    every = Image.new("RGB", (pictures[0].width, sum(p.height for p in pictures)))
    for i, picture in enumerate(pictures):
        every.paste(picture, (0, i * picture.height))
    palette = every.quantize(256, Image.Quantize.MAXCOVERAGE)  # keeps a small red dot red
    first, *others = (p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=stay, loop=0, optimize=False)
    return buffer.getvalue()


def _sheet(rows: Sequence[Sequence[Image.Image]], names: Sequence[str], heads: Sequence[str]) -> Image.Image:
    width, height = rows[0][0].size
    size = (NAMES + len(heads) * (width + GAP), HEAD + len(rows) * (height + GAP))
    out = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(12)
    for c, head in enumerate(heads):
        draw.text((NAMES + c * (width + GAP) + width // 2, HEAD // 2), head, fill=INK, font=font, anchor="mm")
    for r, (name, row) in enumerate(zip(names, rows, strict=True)):
        draw.text((NAMES - 8, HEAD + r * (height + GAP) + height // 2), name, fill=INK, font=font, anchor="rm")
        for c, picture in enumerate(row):
            out.paste(picture, (NAMES + c * (width + GAP), HEAD + r * (height + GAP)))
    return out


__all__ = ["Draw", "Rollout", "drawer", "film", "roll_outs", "save", "strip"]
