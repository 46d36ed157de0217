"""Emoji as one vendor draws them, from an npm package `emoji-datasource-VENDOR`: pictures of 64 pixels in categories.

Every vendor draws the same characters, so an encoder can be trained on the pictures of one and probed on another's. An
emoji's skin tones count as one original, and originals are cut into splits by their code points: the same ones are held
out for every vendor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError


@dataclass(frozen=True)
class Config:
    """Where the package is."""

    path: str = ""  # its folder, e.g. node_modules/emoji-datasource-google
    vendor: str = "auto"  # apple, facebook, google or twitter; auto: the only one that the package has
    label: Literal["category", "subcategory"] = "category"  # some 10 or 100 classes
    tones: bool = True  # with the skin tones, or only one picture of every emoji


@dataclass(frozen=True)
class Emoji:
    """One picture."""

    file: str
    base: str  # code points of the emoji without its skin tone
    label: str

    def __str__(self) -> str:
        return self.file


def open_source(config: Config) -> Source:
    """The source; tasks are pictures.

    Raises:
        ConfigError: no path given, or several vendors.
        DataError: not such a package, or damaged.
    """
    if not config.path:
        raise ConfigError(
            "source.path is empty: `npm install emoji-datasource-google`, then source.path=node_modules/"
            "emoji-datasource-google"
        )
    root = Path(config.path).expanduser()
    vendor = _vendor(root, config.vendor)
    pictures = [p for row in _rows(root) for p in _pictures(row, config)]
    folder = root / "img" / vendor / "64"
    found = [p for p in pictures if (folder / p.file).is_file()]
    if not found:
        raise DataError(f"{folder} holds none of the {len(pictures)} pictures that emoji.json lists")
    classes = sorted({p.label for p in found})
    notes = [f"{vendor} draws {len(found)} of {len(pictures)} pictures"] if len(found) < len(pictures) else []
    return Source({"": found}, Maker(folder, {c: i for i, c in enumerate(classes)}), classes, notes=notes,
                  identity=lambda picture: str(picture.base))  # fmt: skip


def _vendor(root: Path, wanted: str) -> str:
    there = sorted(p.parent.name for p in root.glob("img/*/64") if p.is_dir())
    if not there:
        raise DataError(
            f"{root} is no package of emoji: it has no img/VENDOR/64. Give the folder that npm installed, such as "
            "node_modules/emoji-datasource-google"
        )
    if wanted == "auto" and len(there) == 1:
        return there[0]
    if wanted not in there:
        raise ConfigError(f"source.vendor={wanted}: there are {', '.join(there)}")
    return wanted


def _rows(root: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads((root / "emoji.json").read_text(encoding="utf-8"))
        assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        return rows
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise DataError(f"{root / 'emoji.json'} cannot be read ({error}): install the package again") from None


def _pictures(row: dict[str, Any], config: Config) -> list[Emoji]:
    try:
        tones = list((row.get("skin_variations") or {}).values()) if config.tones else []
        files = [str(one["image"]) for one in (row, *tones)]
        if any(Path(file).name != file for file in files):
            raise ValueError(f"{files} lead out of the folder")
        return [Emoji(file, str(row["unified"]), str(row[config.label])) for file in files]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"emoji.json: an emoji has no {error}: install the package again") from None


@dataclass(frozen=True)
class Maker:
    """Reads one picture."""

    folder: Path
    classes: dict[str, int]

    def __call__(self, picture: Emoji) -> Sample:
        try:
            data = (self.folder / picture.file).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None
        return Sample(data, self.classes[picture.label], hashed("emoji", picture.base), picture.file, media="image")


__all__ = ["Config", "Emoji", "Maker", "open_source"]
