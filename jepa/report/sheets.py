"""The report's pictures as PNG files, for a README or a talk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from jepa.errors import ConfigError
from jepa.report import gallery, material, pictures
from jepa.report.read import Run, open_run

_RIGHT, _WRONG, _QUERY = (26, 127, 75), (179, 38, 30), (120, 128, 136)


def save_pictures(run: Path | str, folder: Path | str, device: str = "cpu") -> list[Path]:
    """Write masks.png, features.png and neighbours.png of a run into a folder.

    Raises:
        ConfigError: not a run folder, a method without masks, or a folder that cannot be written.
        CheckpointError: the run has no usable checkpoint. DataError: its data set is gone.
    """
    opened, target = open_run(run), Path(folder)
    drawn: dict[str, Callable[[Run, str], Image.Image]] = {
        "masks": _masks, "features": _features, "neighbours": _neighbours,
    }  # fmt: skip
    paths = []
    for name, draw in drawn.items():
        picture, path = draw(opened, device), target / f"{name}.png"
        try:
            target.mkdir(parents=True, exist_ok=True)
            picture.save(path, optimize=True)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}. Give another folder") from None
        paths.append(path)
    return paths


def _masks(run: Run, _: str) -> Image.Image:
    found = material.crops(run, 4)
    if found is None:
        raise ConfigError("this method uses no masks, so there are none to draw")
    tiles = [gallery.mask_tiles(found, i) for i in range(len(found.images))]
    rows = [[t for sample in tiles[i : i + 2] for t in sample] for i in range(0, len(tiles), 2)]
    return pictures.sheet(rows, ["crop", "context", "targets"] * (len(rows[0]) // 3))


def _features(run: Run, device: str) -> Image.Image:
    pair = material.encoders(run, device)
    found = material.features(run, material.manifest(run), pair, device)
    trained, _ = pictures.feature_maps(found.trained, found.grid, 6)
    untrained, _ = pictures.feature_maps(found.untrained, found.grid, 6)
    triples = [
        [pictures.plain(image), mine, other]
        for image, mine, other in zip(found.images[: len(trained)], trained, untrained, strict=True)
    ]
    rows = [[t for triple in triples[i : i + 2] for t in triple] for i in range(0, len(triples), 2)]
    return pictures.sheet(rows, ["image", "trained", "random init"] * (len(rows[0]) // 3))


def _neighbours(run: Run, device: str) -> Image.Image:
    data, encoder = material.manifest(run), material.encoders(run, device)[0]
    found = material.pools(run, data, encoder, device, 5)
    near, _ = pictures.nearest(found.queries, found.bank, 6)
    places = found.bank_index[near.flatten().numpy()]
    shown = material.pictures(run, data, run.config.data.split, places)
    rows: list[list[Image.Image | None]] = []
    frames: list[list[tuple[int, int, int] | None]] = []
    for q, neighbours in enumerate(near.tolist()):
        k, label = len(neighbours), int(found.query_labels[q])
        rows.append([pictures.plain(found.query_images[q]), *(pictures.plain(shown[q * k + i]) for i in range(k))])
        frames.append([_QUERY, *(_frame(label, int(found.bank_labels[i])) for i in neighbours)])
    return pictures.sheet(rows, ["query", *(["nearest"] if rows else [])], side=112, frames=frames)


def _frame(label: int, other: int) -> tuple[int, int, int]:
    if min(label, other) < 0:
        return _QUERY
    return _RIGHT if label == other else _WRONG
