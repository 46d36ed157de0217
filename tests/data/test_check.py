"""`jepa data check` of whole data sets: broken, odd, there twice, in two splits; and what a build makes of its list."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.cli import main
from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.check import twins
from jepa.data.check.look import BITS, PATTERN, odd_frames, odd_rows, one_colour, pattern
from jepa.data.check.run import check
from jepa.data.video.scan import ScanConfig
from jepa.data.video.write import write
from jepa.errors import FOUND, ConfigError, DataError
from tests.data.conftest import encoded, picture
from tests.data.video.films import film

QUICK = ScanConfig(workers=1)
BAD = {
    "train/cat/cut.png": "broken",
    "train/cat/text.jpg": "broken",
    "train/cat/black.png": "odd",
    "train/dog/red.png": "odd",
    "train/dog/thin.png": "odd",
    "train/dog/tiny.png": "odd",
}


def big(seed: int) -> Image.Image:
    return picture(seed, 90, 120)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 good pictures in two splits, each kind of trouble, and some pictures more than once."""
    root = tmp_path_factory.mktemp("messy data")  # a space in the path
    files = {f"{s}/{c}/{i}.png": encoded(big(100 * k + i)) for k, (s, c) in enumerate(
        [("train", "cat"), ("train", "dog"), ("val", "cat")]) for i in range(10)}  # fmt: skip
    files |= {
        "train/cat/cut.png": files["train/cat/0.png"][:300],
        "train/cat/text.jpg": b"no picture",
        "train/cat/black.png": encoded(Image.new("RGB", (40, 40))),
        "train/dog/red.png": encoded(Image.new("RGB", (40, 40), (200, 20, 20)), "PNG"),
        "train/dog/thin.png": encoded(big(900).resize((200, 20))),
        "train/dog/tiny.png": encoded(big(901).resize((6, 6))),
        "train/dog/of another label.png": files["train/cat/1.png"],
        "train/cat/leak.png": files["val/cat/2.png"],
        "train/cat/small.jpg": encoded(big(203).resize((60, 45)), "JPEG", quality=90),  # looks like val/cat/3.png
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_a_folder_of_images(messy: Path, tmp_path: Path) -> None:
    found = check(messy, QUICK, tmp_path / "found")
    lines = [json.loads(line) for line in (found.folder / "findings.jsonl").read_text().splitlines()]
    assert {line["name"]: line["status"] for line in lines} == BAD
    values = json.loads((found.folder / "check.json").read_text())
    assert values == json.loads(json.dumps(found.values))
    assert values["samples"] == 39 and values["clean"] == 39 - len(BAD) - 2
    counts = {"odd": 4, "broken": 2, "duplicate": 2, "near": 1, "variable": 0, "short": 0, "lying": 0, "slow": 0}
    assert values["findings"] == counts and values["contradictions"] == 1
    assert values["leaks"] == [{"splits": ["train", "val"], "same": 1, "near": 1, "originals": 0}]
    assert found.bad == {"odd": 4, "broken": 2, "duplicate": 2, "same between train and val": 1}
    assert [{m["name"] for m in group} for group in values["near"]] == [{"train/cat/small.jpg", "val/cat/3.png"}]
    # the one in val is kept, and the first where both are in train
    firsts = {group[0]["name"] for group in values["duplicates"]}
    assert firsts == {"val/cat/2.png", "train/cat/1.png"}
    clean = (found.folder / "clean.txt").read_text().splitlines()
    assert not {*BAD, "train/cat/leak.png", "train/dog/of another label.png"} & set(clean)
    assert "val/cat/2.png" in clean and "train/cat/small.jpg" in clean
    assert values["classes"]["samples"]["train"] == {"cat": 13, "dog": 14}
    with Image.open(found.folder / "contact-sheet.png") as sheet:
        assert sheet.width > 900 and (200, 20, 20) in set(sheet.convert("RGB").get_flattened_data())

    given = [f"source.path={messy}", f"clean={found.folder / 'clean.txt'}", "splits.fractions={}"]
    built = build("folder", tmp_path / "built", overrides=given, progress=False)
    assert sum(len(split) for split in built.splits.values()) == values["clean"] and built.bad_count == 0
    again = check(tmp_path / "built", QUICK)
    assert again.folder == tmp_path / "built" / "check" and again.bad == {} and again.values["findings"]["near"] == 1
    assert sorted((again.folder / "clean.txt").read_text().splitlines()) == sorted(clean)  # names of the source


def test_the_command(messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(messy), "workers=1", "near=-1", "keep=[variable, near, odd]", "--out", str(tmp_path / "out")]
    assert main(["data", "check", *given, "--strict", "--clean", str(tmp_path / "lists" / "clean.txt")]) == FOUND
    said = capsys.readouterr().out
    assert "broken: train/cat/cut.png: " in said and "odd: train/cat/black.png: it is black" in said
    assert "39 samples: 35 usable, 4 odd, 2 broken, 2 duplicate\n" in said
    assert "train and val share 1 picture, 0 that look alike" in said and "1 picture with more than one label" in said
    assert len((tmp_path / "lists" / "clean.txt").read_text().splitlines()) == 35
    page = (tmp_path / "out" / "check.html").read_text()
    assert "Leaks between splits" in page and "train/cat/cut.png" in page and 'src="http' not in page


def test_files_of_other_kinds(tmp_path: Path) -> None:
    """Videos, an archive, numbers in place of pixels, and names that would be markup."""
    root = tmp_path / "mixed"
    root.mkdir()
    still, moving = np.asarray(picture(5, 32, 32)), film(8)
    (root / "moving.mp4").write_bytes(moving)
    (root / "<b>again.mp4").write_bytes(moving)
    (root / "black.mp4").write_bytes(write(np.zeros((8, 32, 32, 3), np.uint8), 10))
    (root / "still.mp4").write_bytes(write(np.stack([still] * 8), 10))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("one.png", encoded(big(1)))
    (root / "more.zip").write_bytes(out.getvalue())
    assert main(["data", "check", str(root), "workers=1", "--out", str(tmp_path / "out"), "--json"]) == 0
    values = json.loads((tmp_path / "out" / "check.json").read_text())
    lines = {r["name"]: r for r in map(json.loads, (tmp_path / "out" / "findings.jsonl").read_text().splitlines())}
    assert "all 4 frames looked at are black" in lines["black.mp4"]["findings"]["odd"]
    assert "its picture stands still" in lines["still.mp4"]["findings"]["odd"]
    assert values["samples"] == 5 and values["findings"]["duplicate"] == 1 and values["sizes"]["frames"]["max"] == 8
    page = (tmp_path / "out" / "check.html").read_text()
    assert "<b>again" not in page and "&lt;b&gt;again" in page


def test_a_recipe_is_checked_before_it_is_built(tmp_path: Path) -> None:
    small = ["source.samples={train: 12, val: 4, test: 4}"]
    found = check(Path("digits"), QUICK, tmp_path / "digits", small)
    assert found.values["samples"] == 20 and found.values["splits"] == {"train": 12, "val": 4, "test": 4}
    with pytest.raises(ConfigError, match="nonsense"):
        check(Path("digits"), QUICK, tmp_path / "digits", ["source.nonsense=1"])
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "absent", QUICK)
    with pytest.raises(ConfigError, match="keep: rubbish is no finding"):
        ScanConfig(keep=("rubbish",))


def test_clean_lists_of_any_source(uneven: Path, tmp_path: Path) -> None:
    """Tars that are read in place go by TAR/KEY."""
    recipe = Manifest.open(uneven).recipe["source"]["shards"]
    listed = [f"part-001.tar/s{i:05d}" for i in range(1, 6)] + ["part-004.tar/s00131"]
    (tmp_path / "clean.txt").write_text("\n".join([*listed, "unknown"]) + "\n")
    given = [f"source.shards={recipe}", "splits.fractions={}", f"clean={tmp_path / 'clean.txt'}"]
    for name, more in (("place", []), ("copy", ["source.copy=true"])):
        found = build("webdataset", tmp_path / name, overrides=[*given, *more], progress=False)
        assert sorted(found.splits["train"].labels.tolist()) == [1, 2, 3, 4, 5, 131]
    assert any("only samples that are among the 7 listed" in note for note in found.notes)
    (tmp_path / "other.txt").write_text("nothing of this\n")
    for name, more in (("place", []), ("copy", ["source.copy=true"])):
        with pytest.raises(DataError, match=r"none of the|lists none of the source's samples"):
            build("webdataset", tmp_path / f"no-{name}", progress=False,
                  overrides=[*given[:2], f"clean={tmp_path / 'other.txt'}", *more])  # fmt: skip
    for name, content in (("empty.txt", ""), ("absent.txt", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name):
            build("webdataset", tmp_path / "no", overrides=[*given[:2], f"clean={tmp_path / name}"], progress=False)


def test_looks() -> None:
    image = torch.from_numpy(np.asarray(big(3)).copy()).permute(2, 0, 1)
    small = torch.from_numpy(np.asarray(big(3).resize((60, 45))).copy()).permute(2, 0, 1)
    other = torch.from_numpy(np.asarray(big(4)).copy()).permute(2, 0, 1)
    bits = [np.unpackbits(np.frombuffer(pattern(x), np.uint8)) for x in (image, small, other, image.flip(2))]
    assert len(pattern(image)) == PATTERN and not bits[0][BITS:].any()
    near, far, mirrored = ((bits[0] != other).sum() for other in bits[1:])
    assert near <= 8 < 30 < far and mirrored > 30
    assert one_colour(image) == "" and one_colour(torch.full((3, 9, 9), 7, dtype=torch.uint8)) == "black"
    assert odd_frames([image, image]) and not odd_frames([image, other]) and not odd_frames([])
    rows = np.ones((4, 2), np.float32)
    assert "never changes" in odd_rows(rows, "action") and not odd_rows(rows, "state")
    rows[1, 0] = np.nan
    assert "1 numbers that are not finite" in odd_rows(rows, "state")


@pytest.mark.parametrize("most", [0, 3, 8])
def test_near_pairs_are_all_of_them(most: int) -> None:
    """Against comparing all with all."""
    chance = np.random.default_rng(most)
    base = chance.integers(0, 2, (40, BITS), dtype=np.uint8)
    rows = np.concatenate([base, base, base])
    for row, flips in zip(rows[40:], chance.integers(0, 14, 80), strict=True):
        row[chance.choice(BITS, flips, replace=False)] ^= 1
    packed = np.zeros((len(rows) + 1, PATTERN), np.uint8)  # the last one has no hash
    packed[:-1] = np.stack([np.packbits(row) for row in np.pad(rows, ((0, 0), (0, PATTERN * 8 - BITS)))])
    close = (rows[:, None] != rows[None]).sum(-1) <= most
    wanted = np.arange(len(rows))
    for _ in range(len(rows)):  # the smallest number that can be reached
        wanted = np.where(close, wanted[None], len(rows)).min(1)
    assert twins.near(packed, most).tolist() == [*wanted.tolist(), len(rows)]
    assert twins.near(packed, -1).tolist() == list(range(len(packed)))
    digests = np.array([[1] * 16, [2] * 16, [1] * 16, [0] * 16, [0] * 16], np.uint8)
    assert twins.exact(digests).tolist() == [0, 1, 0, 3, 4]
