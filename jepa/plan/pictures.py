"""Pictures of plans: films of episodes, and the landscape of costs over first actions.

Shapes: H W height and width of a frame, G points of a landscape along each of two numbers of the action.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from jepa.methods.world import History
from jepa.plan.act import Planner
from jepa.plan.envs import Frame
from jepa.plan.objective import Target
from jepa.plan.trial import Film, Trial

_SIDE = 192  # frames are shown at least about this large
_GAP, _LINE, _PLOT = 8, 14, 48
_INK, _FAINT, _BAR, _WON = (34, 34, 34), (160, 160, 160), (70, 110, 180), (40, 140, 70)
# dark to light: good to bad is read without a legend, and in grey too
_SCALE = np.array([(30, 20, 70), (60, 80, 140), (50, 140, 140), (130, 195, 100), (250, 230, 60)], dtype=np.float64)


@dataclass(frozen=True)
class Landscape:
    """Cost of plans that differ in two numbers of their first action."""

    x: npt.NDArray[np.float64]  # (G,) values of number 0
    y: npt.NDArray[np.float64]  # (G,) of number 1; (1,) for actions of one number
    cost: npt.NDArray[np.float64]  # (len(y), G)
    chosen: tuple[float, float]  # what the planner took


def landscape(planner: Planner, history: History, target: Target, steps: int) -> Landscape | None:
    """Around the plan just made for the first row; None for discrete actions.

    The two numbers are held over the steps of the first action of the model, the rest of the plan stays as it is.
    """
    space = planner.space.to("cpu")
    if space.discrete or planner.agent.last is None:
        return None
    plan = planner.agent.last.actions[:1].cpu()  # (1, H, A)
    width = space.size // space.stride
    mean = plan[0, 0].view(space.stride, width).mean(0)
    axes = [_axis(space.low[i], space.high[i], space.centre[i], space.scale[i], steps) for i in range(min(2, width))]
    x, y = axes[0], axes[1] if width > 1 else torch.zeros(1)
    grid = plan[:, None].repeat(1, len(x) * len(y), 1, 1)
    first = grid[0, :, 0].view(-1, space.stride, width)
    first[:, :, 0] = x.repeat(len(y))[:, None]
    if width > 1:
        first[:, :, 1] = y.repeat_interleave(len(x))[:, None]
    with torch.no_grad():
        proprio = None if history.proprio is None else history.proprio[:1]
        state = planner.model.observe(History(history.frames[:1], history.actions[:1], proprio))
        cost = planner.objective.cost(planner.model, state, target.rows(slice(0, 1)), planner.mpc.chunk)
        found = cost(grid.to(planner.device))[0].double().cpu().view(len(y), len(x))
    chosen = (float(mean[0]), float(mean[1]) if width > 1 else 0.0)
    return Landscape(x.double().numpy(), y.double().numpy(), found.numpy(), chosen)


def _axis(low: torch.Tensor, high: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor, steps: int) -> torch.Tensor:
    """From bound to bound, or two units of the search to either side where there is none."""
    ends = [float(b) if bool(b.isfinite()) else float(centre + s * 2 * scale) for b, s in ((low, -1), (high, 1))]
    return torch.linspace(ends[0], ends[1], steps)


def draw_landscape(found: Landscape, path: Path) -> None:
    """A PNG: dark is good; the cross is the best point of the picture, the ring is what the planner chose."""
    rows, columns = found.cost.shape
    cell = max(6, 320 // columns)
    values = found.cost - found.cost.min()
    share = values / (values.max() or 1.0)
    colours = np.stack([np.interp(share, np.linspace(0, 1, len(_SCALE)), _SCALE[:, c]) for c in range(3)], axis=-1)
    body = Image.fromarray(colours[::-1].astype(np.uint8)).resize(
        (columns * cell, rows * cell), Image.Resampling.NEAREST
    )
    left, top, below = 56, 24, 52
    sheet = Image.new("RGB", (left + body.width + 16, top + body.height + below), "white")
    sheet.paste(body, (left, top))
    pen = ImageDraw.Draw(sheet)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - found.x[0]) / (found.x[-1] - found.x[0])
        up = (y - found.y[0]) / (found.y[-1] - found.y[0]) if rows > 1 else 0.5
        wide, high = (columns - 1) * cell, (rows - 1) * cell
        return left + cell / 2 + across * wide, top + body.height - cell / 2 - up * high

    best = np.unravel_index(found.cost.argmin(), found.cost.shape)
    bx, by = place(found.x[best[1]], found.y[best[0]])
    cx, cy = place(*found.chosen)
    for shade, wide in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        pen.line((bx - 6, by - 6, bx + 6, by + 6), fill=shade, width=wide)
        pen.line((bx - 6, by + 6, bx + 6, by - 6), fill=shade, width=wide)
        pen.ellipse((cx - 7, cy - 7, cx + 7, cy + 7), outline=shade, width=wide)
    bottom = top + body.height
    pen.text((left, 6), f"cost of the plan: dark {found.cost.min():.3g}, light {found.cost.max():.3g}", fill=_INK)
    pen.text((left, bottom + 4), f"{found.x[0]:.3g}", fill=_INK)
    pen.text((left + body.width, bottom + 4), f"{found.x[-1]:.3g}", fill=_INK, anchor="ra")
    pen.text((left + body.width / 2, bottom + 4), "first action, number 0", fill=_INK, anchor="ma")
    if rows > 1:
        pen.text((left - 4, top), f"{found.y[-1]:.3g}", fill=_INK, anchor="ra")
        pen.text((left - 4, bottom), f"{found.y[0]:.3g}", fill=_INK, anchor="rd")
        pen.text((left - 4, (top + bottom) / 2), "number 1", fill=_INK, anchor="rm")
    pen.text((left, bottom + 24), "ring: chosen    cross: best here", fill=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def draw_film(trial: Trial, path: Path) -> None:
    """An animated GIF: start, now and goal side by side, and below the cost of the plan in force over time."""
    film = trial.film
    assert film is not None, "only filmed trials are drawn"
    frames = [film.start, *film.frames]
    pages = [_page(film, trial, i, frame) for i, frame in enumerate(frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [100] * (len(pages) - 1) + [1500]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=times, loop=0)


def _page(film: Film, trial: Trial, i: int, frame: Frame) -> Image.Image:
    shown = [("start", film.start), (f"step {i} of {trial.budget}", frame), ("goal", film.goal)]
    pictures = [(label, _enlarged(f)) for label, f in shown]
    width = sum(p.width for _, p in pictures) + _GAP * 4
    height = _LINE + pictures[0][1].height + _PLOT + _LINE + 3 * _GAP
    page = Image.new("RGB", (width, height), "white")
    pen, left = ImageDraw.Draw(page), _GAP
    won = trial.success and i == len(film.frames)
    for label, picture in pictures:
        pen.text((left, 4), label, fill=_INK)
        page.paste(picture, (left, _LINE + _GAP))
        if won and label.startswith("step"):
            box = (left - 2, _LINE + _GAP - 2, left + picture.width + 1, _LINE + _GAP + picture.height + 1)
            pen.rectangle(box, outline=_WON, width=3)
        left += picture.width + _GAP
    top = _LINE + _GAP + pictures[0][1].height + _GAP
    told = "reached" if won else ""
    pen.text((_GAP, top), f"imagined distance to the goal at the plan's end  {told}", fill=_WON if won else _INK)
    _bars(pen, film.distance, i, (_GAP, top + _LINE, width - _GAP, top + _LINE + _PLOT))
    return page


def _bars(pen: ImageDraw.ImageDraw, values: list[float], now: int, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    pen.line((left, bottom, right, bottom), fill=_FAINT)
    low, high = min([0.0, *values]), max([0.0, *values]) or 1.0
    wide = (right - left) / max(len(values), 1)
    for j, value in enumerate(values):
        size = (value - low) / (high - low) * (bottom - top) if high > low else 0.0
        x = left + j * wide
        colour = _BAR if j < now else (215, 220, 230)
        pen.rectangle((x, bottom - max(size, 1), max(x + wide - 1, x), bottom), fill=colour)


def _enlarged(frame: Frame) -> Image.Image:
    picture = Image.fromarray(frame)
    times = max(1, round(_SIDE / frame.shape[0]))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
