"""The report's pictures as PNG files, of clips as GIF files too: for a README, a talk, or a closer look."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from jepa.data import storage
from jepa.errors import ConfigError, JepaError
from jepa.nn.rope import Grid
from jepa.report import material, panels, pictures
from jepa.report.pictures import Picture
from jepa.report.read import Run, open_run

What = Literal["masks", "pca", "attention", "neighbours"]
KINDS: tuple[What, ...] = get_args(What)
_RIGHT, _WRONG, _QUERY = (26, 127, 75), (179, 38, 30), (120, 128, 136)
_SAMPLES = {"masks": 4, "pca": 6, "attention": 4, "neighbours": 5}  # drawn when not said otherwise
_OVER_TIME = 3  # clips at most in a table over time
_BY_HEAD = 2  # samples whose heads are drawn one by one
_FILM_SIDE = 128
_SET = ("pca", "attention")  # what layer and query are about

Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Settings:
    """What is shown of a run, and how."""

    data: str | None = None  # folder of another data set than the run's
    split: str | None = None  # default: one the encoder was not trained on
    samples: int | None = None  # in each picture; default: 4 to 6
    layer: int | None = None  # block, negative from the end; default: the output (pca), the last block (attention)
    query: tuple[int, ...] = ()  # [time,] row, column of the patch whose attention is drawn; default: the middle one
    foreground: bool = False  # pca: colour only what the first component takes for the foreground
    device: str = "auto"  # where the encoder runs: auto, cpu, cuda, mps

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples: got {self.samples}, allowed: 1 or more")

    def count(self, what: What) -> int:
        return self.samples or _SAMPLES[what]


@dataclass
class Shown:
    """Files written, and why other pictures could not be drawn, by what they would show."""

    paths: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def save_pictures(
    run: Path | str, folder: Path | str, what: Sequence[str] = (), settings: Settings | None = None
) -> Shown:
    """Draw a run and write the pictures into a folder: masks, PCA of its features, attention, neighbours.

    Args:
        what: of `KINDS`; empty: all that can be drawn, the others are named in `left_out`.

    Raises:
        ConfigError: not a run folder, something unknown in `what` or `settings`, something asked for by name that
            cannot be drawn of this method, or a folder that cannot be written.
        CheckpointError: the run has no usable checkpoint. DataError: its data set is gone.
    """
    unknown = [name for name in what if name not in KINDS]
    if unknown:
        raise ConfigError(f"what: got {unknown[0]!r}, allowed: {', '.join(KINDS)}")
    opened, target, settings = open_run(run), Path(folder), settings or Settings()
    settings, done = replace(settings, device=material.device(settings.device)), Shown()
    if settings.data is not None or settings.split is not None:
        _view(opened, settings)  # what cannot be read is an error, not a picture less
    for name, draw in _DRAWN.items():
        if what and name not in what:
            continue
        try:
            for file, data in draw(opened, settings):
                done.paths.append(_write(target / file, data))
        except _CannotWrite as error:
            raise ConfigError(str(error)) from None
        except JepaError as error:
            if what or (name in _SET and (settings.layer is not None or settings.query)):
                raise
            done.left_out[name] = str(error)
    if not done.paths:
        raise ConfigError("nothing could be drawn. " + "; ".join(f"{k}: {v}" for k, v in done.left_out.items()))
    return done


class _CannotWrite(JepaError):
    """No picture can be written there, so there is no point in drawing the others."""


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, data)
    except OSError as error:
        raise _CannotWrite(f"cannot write {path}: {error.strerror or error}. Give another folder") from None
    return path


# --- what is drawn ------------------------------------------------------------------------------------------------


def _masks(run: Run, settings: Settings) -> Files:
    """masks.png of the main source, masks-NAME.png of others; of clips a GIF too. One set of pictures per mask."""
    if settings.data is not None:
        raise ConfigError("masks are those of the run's own training samples: leave out data=")
    for source in material.sources(run.config):
        found = material.crops(run, settings.count("masks"), source)
        if found is None:
            raise ConfigError("this method uses no masks, so there are none to draw")
        for group in range(len(found.groups)):
            samples = [panels.mask_panels(found, i, group) for i in range(len(found.images))]
            parts = ["masks", *([source] if source != "data" else [])]
            parts += [str(group + 1)] if len(found.groups) > 1 else []
            yield from _files("-".join(parts), samples, found.grid)


def _pca(run: Run, settings: Settings) -> Files:
    pair = material.encoders(run, settings.device)
    found = material.features(run, _view(run, settings), pair, settings.device, settings.layer)
    heads = "trained", "random init"
    samples, _ = panels.feature_panels(found, settings.count("pca"), heads, settings.foreground)
    yield from _files("pca", samples, found.grid)


def _attention(run: Run, settings: Settings) -> Files:
    """attention.png is the mean over heads, attention-heads.png has a row of heads for each sample."""
    layer = -1 if settings.layer is None else settings.layer
    found = material.attention(
        run, _view(run, settings), material.trained(run, settings.device), settings.device,
        settings.count("attention"), layer, settings.query,
    )  # fmt: skip
    samples, _ = panels.attention_panels(found, len(found.images))
    yield from _files("attention", samples, found.grid)
    by_head = [panels.head_panels(found, i) for i in range(min(_BY_HEAD, len(found.images)))]
    yield from _files("attention-heads", by_head, found.grid)


def _neighbours(run: Run, settings: Settings) -> Files:
    seen, encoder = _view(run, settings), material.trained(run, settings.device)
    found = material.pools(run, seen, encoder, settings.device, settings.count("neighbours"))
    near, _ = pictures.nearest(found.queries, found.bank, 6)
    shown = material.pictures(seen, run.config.data.split, found.bank_index[near.flatten().numpy()])
    rows: list[list[Picture | None]] = []
    frames: list[list[tuple[int, int, int] | None]] = []
    for q, neighbours in enumerate(near.tolist()):
        k, label = len(neighbours), int(found.query_labels[q])
        rows.append([pictures.plain(found.query_images[q]), *(pictures.plain(shown[q * k + i]) for i in range(k))])
        frames.append([_QUERY, *(_frame(label, int(found.bank_labels[i])) for i in neighbours)])
    sheet = pictures.sheet(rows, ["query", *(["nearest"] if rows else [])], side=112, frames=frames)
    yield "neighbours.png", _png(sheet)


_DRAWN: dict[What, Callable[[Run, Settings], Files]] = {
    "masks": _masks, "pca": _pca, "attention": _attention, "neighbours": _neighbours,
}  # fmt: skip


def _view(run: Run, settings: Settings) -> material.View:
    return material.view(run, settings.data, settings.split)


def _frame(label: int, other: int) -> tuple[int, int, int]:
    if min(label, other) < 0:
        return _QUERY
    return _RIGHT if label == other else _WRONG


# --- how ----------------------------------------------------------------------------------------------------------


def _files(name: str, samples: Sequence[panels.Sample], grid: Grid) -> Files:
    """Of images one table; of clips a table over time of the first ones, and a film of all."""
    if panels.moments(samples) == 1:
        yield f"{name}.png", _png(_table(samples))
        return
    yield f"{name}.png", _png(panels.over_time(samples[:_OVER_TIME], grid))
    yield f"{name}.gif", panels.encoded(panels.film(samples, _FILM_SIDE))


def _table(samples: Sequence[panels.Sample]) -> Picture:
    """A row for each sample; two beside each other where panels are few."""
    abreast = 2 if len(samples[0]) <= 3 and len(samples) > 1 else 1
    tiles = [[panel.tiles[0] for panel in sample] for sample in samples]
    rows = [[tile for sample in tiles[i : i + abreast] for tile in sample] for i in range(0, len(tiles), abreast)]
    return pictures.sheet(rows, [panel.head for panel in samples[0]] * abreast)


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
