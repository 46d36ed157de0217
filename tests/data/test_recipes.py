"""Shipped recipes for data of one's own: built from tiny folders that are laid out as their comments say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jepa import resources
from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.sources import emoji
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture
from tests.data.test_archive import tarred
from tests.data.test_lerobot import CAMERAS, write_v21
from tests.data.video.films import film

FILM = film(8)


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def made(recipe: str, path: Path, out: Path, *overrides: str) -> Manifest:
    return build(recipe, out, overrides=[f"source.path={path}", *overrides], progress=False)


def test_imagenet_from_folders_and_from_the_official_tar(tmp_path: Path) -> None:
    files = {f"{s}/{c}/{c}_{i}.JPEG": encoded(picture(i), "JPEG") for s in ("train", "val")
             for c in ("n01440764", "n01443537") for i in range(4)}  # fmt: skip
    found = made("imagenet", put(tmp_path / "in", files), tmp_path / "out")
    assert found.classes == ["n01440764", "n01443537"] and len(found.splits["test"]) == 8
    by_class = {
        c: tarred({Path(n).name: d for n, d in files.items() if n.startswith(f"train/{c}/")}) for c in found.classes
    }
    whole = tmp_path / "ILSVRC2012_img_train.tar"
    whole.write_bytes(tarred({f"{c}.tar": data for c, data in by_class.items()}))
    packed = made("imagenet-tar", whole, tmp_path / "packed")
    assert packed.classes == found.classes and sum(len(s) for s in packed.splits.values()) == 8


def test_kinetics(tmp_path: Path) -> None:
    files = {f"{s}/{c}/{i}.mp4": FILM for s in ("train", "val") for c in ("riding a bike", "yoga") for i in range(2)}
    found = made("k400", put(tmp_path / "in", files), tmp_path / "out", "splits.fractions={val: 0.5}")
    assert found.classes == ["riding a bike", "yoga"] and len(found.splits["test"]) == 4 and "val" in found.splits


def test_something_something(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {f"20bn-something-something-v2/{i}.webm": FILM for i in range(6)})
    rows = [
        {"id": str(i), "label": "holding potato", "template": f"{word} [something]", "placeholders": ["potato"]}
        for i, word in enumerate(["Holding", "Pushing", "Holding", "Pushing", "Holding", "Pushing"])
    ]
    put(
        root,
        {"labels/train.json": json.dumps(rows[:4]).encode(), "labels/validation.json": json.dumps(rows[4:]).encode()},
    )
    found = made("ssv2", root, tmp_path / "out", "splits.fractions={}")
    assert found.classes == ["Holding something", "Pushing something"]
    assert {name: sorted(split.labels.tolist()) for name, split in found.splits.items()} == {
        "train": [0, 0, 1, 1], "test": [0, 1]}  # fmt: skip
    # the folder of videos as path, and lists elsewhere
    lists = f"source.labels={{train: {root}/labels/train.json, test: {root}/labels/validation.json}}"
    again = made("ssv2", root / "20bn-something-something-v2", tmp_path / "again", "source.folder=''", lists)
    assert again.classes == found.classes
    for text, said in ((b"{}", "no JSON list of objects"), (b'[{"label": "x"}]', "object 1 has no id")):
        put(root, {"labels/train.json": text})
        with pytest.raises(DataError, match=said):
            made("ssv2", root, tmp_path / "no")


def test_lerobot(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "in")
    small = ["source.repo=''", "splits.fractions={}"]
    aloha = made("lerobot-aloha", root, tmp_path / "aloha", *small, "episode.frame_skip=2", "video.resize=null")
    assert aloha.arrays["action"].steps == 2 and aloha.arrays["proprio"].size == 3
    info = root / "meta" / "info.json"
    info.write_text(info.read_text().replace(CAMERAS[1], "observation.image"))
    for folder in root.glob(f"videos/*/{CAMERAS[1]}"):
        folder.rename(folder.with_name("observation.image"))
    pusht = made("lerobot-pusht", root, tmp_path / "pusht", *small)
    assert sum(len(s) for s in pusht.splits.values()) == 5 and list(pusht.arrays) == ["action", "proprio"]


def test_emoji_of_two_vendors(tmp_path: Path) -> None:
    tones = {k: {"1F3FB": {"image": f"{k:04x}-1f3fb.png"}} for k in range(0, 30, 3)}
    rows = [
        {"image": f"{k:04x}.png", "unified": f"{k:04X}", "category": ["Food", "Flags"][k % 2],
         "subcategory": f"s{k % 5}", "skin_variations": tones.get(k, {})} for k in range(30)
    ]  # fmt: skip
    sides = {}
    for number, vendor in enumerate(("google", "twitter")):
        files = [rows[k]["image"] for k in range(30)] + [f"{k:04x}-1f3fb.png" for k in range(0, 30, 3)]
        names = files if vendor == "google" else files[:-1]  # not every vendor draws everything
        root = put(tmp_path / vendor, {f"img/{vendor}/64/{n}": encoded(picture(number)) for n in names})
        put(root, {"emoji.json": json.dumps(rows).encode()})
        found = made("emoji", root, tmp_path / f"out-{vendor}")
        assert found.classes == ["Flags", "Food"] and sum(len(s) for s in found.splits.values()) == len(names)
        sides[vendor] = {int(o): name for name, split in found.splits.items() for o in split.originals}
        assert len(sides[vendor]) == 30  # tones are of one original
    assert sides["google"] == sides["twitter"]  # the same emoji are held out
    assert any("twitter draws 39 of 40" in note for note in found.notes)
    plain = made("emoji", tmp_path / "google", tmp_path / "plain", "source.tones=false", "source.label=subcategory")
    assert len(plain.classes) == 5 and sum(len(s) for s in plain.splits.values()) == 30
    with pytest.raises(ConfigError, match="npm install"):
        emoji.open_source(emoji.Config())
    with pytest.raises(DataError, match="is no package of emoji"):
        emoji.open_source(emoji.Config(str(tmp_path)))
    with pytest.raises(ConfigError, match="vendor=apple: there are google"):
        emoji.open_source(emoji.Config(str(tmp_path / "google"), vendor="apple"))
    rows[0]["image"] = "../../secret.png"
    put(tmp_path / "google", {"emoji.json": json.dumps(rows).encode()})
    with pytest.raises(DataError, match="lead out of the folder"):
        emoji.open_source(emoji.Config(str(tmp_path / "google")))


@pytest.mark.parametrize("name", resources.names("datasets"))
def test_every_recipe_says_how_it_is_built(name: str) -> None:
    text = resources.find("datasets", name).read_text(encoding="utf-8")
    assert re.search(rf"^# Build: +jepa data build (datasets/)?{name}(\.yaml)? --out", text, re.M), name
