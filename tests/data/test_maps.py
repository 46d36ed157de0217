"""Label maps from folders and tars: what their numbers come to mean, where they are looked for, what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa.data import Manifest, labelmap
from jepa.data.build import build
from jepa.data.checkup import check_built
from jepa.data.labelmap import VOID, LabelMap, MapConfig
from jepa.data.show import show
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture

CLASSES = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 5  # 0: nothing, 1 to 4


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    image = Image.fromarray(values)
    return encoded(image.convert(mode) if mode else image)


def npy(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, values, **options)
    return out.getvalue()


def read(data: bytes, extension: str = "png", **config: Any) -> np.ndarray:
    return labelmap.read(LabelMap("class", data, extension, MapConfig(**config)))


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def made(out: Path, *overrides: str, kind: str = "folder") -> Manifest:
    recipe = out.parent / f"{out.name}.yaml"
    recipe.write_text(f"name: mine\nsource: {{kind: {kind}}}\nsplits: {{fractions: {{}}}}\n")
    return build(recipe, out, overrides=list(overrides), progress=False)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_classes_come_out_as_they_went_in() -> None:
    assert np.array_equal(read(png(CLASSES)), CLASSES)
    assert np.array_equal(read(png(CLASSES.astype(np.uint16))), CLASSES)
    palette = Image.fromarray(CLASSES)
    palette.putpalette([7, 200, 3] * 5)  # indices count, colours do not
    assert np.array_equal(read(encoded(palette)), CLASSES)
    assert np.array_equal(read(encoded(palette, bits=4)), CLASSES)
    assert np.array_equal(read(png(CLASSES > 2)), CLASSES > 2)
    assert np.array_equal(read(npy(CLASSES.astype(np.int32)), "npy"), CLASSES)
    assert np.array_equal(read(npy(np.asfortranarray(CLASSES)), "npy"), CLASSES)


def test_the_first_class_may_have_another_number() -> None:
    values = CLASSES.copy()
    values[0, 0] = VOID
    found = read(png(values), first=1)
    wanted = np.where((values == 0) | (values == VOID), VOID, values.astype(int) - 1)
    assert found.dtype == np.uint8 and np.array_equal(found, wanted)


def test_measures() -> None:
    millimetres = np.array([[0, 1500], [65535, 20]], dtype=np.uint16)
    found = read(png(millimetres), scale=0.001)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 1.5], [65.535, 0.02]], rtol=1e-6)
    metres = np.array([[np.nan, 1.5]], dtype=np.float64)
    np.testing.assert_array_equal(read(npy(metres), "npy"), metres.astype(np.float32))
    assert labelmap.picture(found).shape == (3, 2, 2) and labelmap.picture(CLASSES).unique().numel() > 5


@pytest.mark.parametrize(
    ("data", "extension", "words"),
    [
        (png(CLASSES, "RGB"), "png", "colour of 8 bits, not one number for every pixel"),
        (png(CLASSES, "LA"), "png", "grey and transparency"),
        (png(np.full((2, 2), 300, np.uint16)), "png", "holds the number 300.*maps.NAME.scale"),
        (npy(np.full((2, 2), -1)), "npy", "holds the number -1"),
        (encoded(picture(0), "JPEG"), "png", "jpg file named .png"),
        (png(CLASSES)[:-20], "png", "truncated|checksum"),
        (b"", "png", "empty"),
        (npy(np.zeros((2, 2, 3))), "npy", r"\(2, 2, 3\), expected numbers"),
        (npy(np.zeros((2, 2)))[:-1], "npy", "cannot hold"),
        (npy(np.zeros((2, 0))), "npy", "expected numbers"),
        (npy(np.array([["a"]])), "npy", "expected numbers"),
        (npy(np.array([[{"a": 1}]], dtype=object), allow_pickle=True), "npy", "expected numbers"),
        (b"\x80\x04]q\x00.", "npy", "no .npy file"),
        (b"", "npy", "no .npy file"),
    ],
)
def test_what_is_no_map(data: bytes, extension: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(data, extension)


def test_a_header_that_claims_too_much_costs_nothing() -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (9_999_999, 10**9)})
    with pytest.raises(DataError, match="cannot hold"):
        read(out.getvalue() + bytes(100), "npy")
    for cut in (7, 20, 60):
        with pytest.raises(DataError, match="no .npy file"):
            read(npy(np.zeros((2, 2)))[:cut], "npy")
    with pytest.raises(DataError, match="no .npy file"):
        read(npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(2, 2,"), "npy")


@pytest.mark.parametrize("values", [{"first": -1}, {"first": 255}, {"scale": 0.0}, {"first": 1, "scale": 0.1}])
def test_bad_settings(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="first|scale"):
        MapConfig(**values)


@pytest.mark.parametrize("name", ["Class", "cls", "json", "a.b", "a/b", "facts", ""])
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a map's name"):
        made(tmp_path / "out", f"source.path={tmp_path}", f"source.maps={json.dumps({name: {}})}")


# --- folders ------------------------------------------------------------------------------------------------------

IMAGES = {f"{i}.jpg": encoded(picture(i), "JPEG") for i in range(4)}


def maps_of(found: Manifest, split: str = "train", name: str = "class") -> dict[str, np.ndarray]:
    """By the sample's source."""
    chosen, sources = found.split(split), []
    for shard in chosen.shards:
        with tarfile.open(shard.path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    sources.append(json.loads(tar.extractfile(member).read())["source"])  # type: ignore[union-attr]
    return {source: chosen.read_map(i, name) for i, source in enumerate(sources)}


def numbered(i: int) -> np.ndarray:
    return np.where(CLASSES > 2, CLASSES, i).astype(np.uint8)


LAYOUTS: dict[str, tuple[dict[str, bytes], str]] = {
    "a folder of their own": (
        {f"images/{n}": d for n, d in IMAGES.items()} | {f"annotations/{i}.png": png(numbered(i)) for i in range(4)},
        "{splits: {train: images}, maps: {class: {path: {train: annotations}}}}",
    ),
    "a folder that repeats the images' paths": (
        {f"a/{n}": d for n, d in IMAGES.items()} | {f"maps/a/{i}.png": png(numbered(i)) for i in range(4)},
        "{maps: {class: {path: maps}}, classes: none}",
    ),
    "beside the images, by suffix": (
        dict(IMAGES) | {f"{i}.seg.npy": npy(numbered(i)) for i in range(4)},
        "{maps: {class: {suffix: .seg.npy}}}",
    ),
    "beside the images, by name": (
        {f"x/rgb_{n}": d for n, d in IMAGES.items()} | {f"x/seg_{i}.png": png(numbered(i)) for i in range(5)},
        "{maps: {class: {rename: {rgb_: seg_}}}, classes: none}",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_maps_are_looked_for(layout: str, tmp_path: Path) -> None:
    files, source = LAYOUTS[layout]
    put(tmp_path / "in", files)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: x\nsplits: {{fractions: {{}}}}\nsource: {{kind: folder, {source[1:-1]}}}\n")
    found = build(recipe, tmp_path / "out", overrides=[f"source.path={tmp_path / 'in'}"], progress=False)
    kept = maps_of(found)
    assert len(kept) == 4 and found.bad_count == 0 and found.split("train").map_names == ["class"]
    for source_name, values in kept.items():
        assert np.array_equal(values, numbered(int(Path(source_name).stem[-1])))
    spare = [n for n in found.notes if "have no image" in n]
    assert len(spare) == (layout == "beside the images, by name")  # the fifth map
    report = check_built(tmp_path / "out")
    assert report.summary().startswith("4 images: 4 ok")
    with tarfile.open(found.split("train").shards[0].path) as tar:
        assert sum(".class." in name for name in tar.getnames()) == 4


def test_samples_whose_map_is_missing_or_wrong_are_left_out(tmp_path: Path) -> None:
    files = {f"images/{n}": d for n, d in IMAGES.items()}
    files |= {"maps/0.png": png(numbered(0)), "maps/1.png": png(numbered(1)[:, :9]), "maps/2.png": b"x"}
    put(tmp_path / "in", files)
    where = "source.splits={train: images}", "source.maps={class: {path: {train: maps}}}"
    found = made(tmp_path / "out", f"source.path={tmp_path / 'in'}", *where)
    assert len(found.split("train")) == 1
    reasons = " ".join(bad["reason"] for bad in found.bad)
    assert "has 12x9 pixels, its image 12x16" in reasons and "maps/3.png: No such file" in reasons
    assert "not a jpg" in reasons


def test_shrunk_images_keep_their_maps_whole(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.png": encoded(picture(0, 61, 90)), "a.map.png": png(np.zeros((61, 90), np.uint8))})
    found = made(tmp_path / "out", f"source.path={tmp_path / 'in'}", "source.maps={class: {suffix: .map.png}}",
                 "image.resize=7")  # fmt: skip
    assert found.image["largest"] == [7, 10] and found.split("train").read_map(0, "class").shape == (61, 90)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ("{class: {}}", "leads from .* to itself"),
        ("{class: {path: {test: maps}}}", "names the splits test; there are none: give one folder"),
        ("{class: {suffix: .jpg}}", "label maps are .png or .npy"),
        ("{class: {pth: x}}", "Did you mean 'path'"),
    ],
)
def test_maps_that_cannot_be(maps: str, words: str, tmp_path: Path) -> None:
    put(tmp_path / "in", {"0.png": encoded(picture(0))})
    with pytest.raises(ConfigError, match=words):
        made(tmp_path / "out", f"source.path={tmp_path / 'in'}", f"source.maps={maps}")


# --- tars ---------------------------------------------------------------------------------------------------------


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            for extension, data in sample.items():
                info = tarfile.TarInfo(f"s{i}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("copied", [False, True])
def test_maps_in_tars(copied: bool, tmp_path: Path) -> None:
    depth = np.linspace(0, 3, 192, dtype=np.float32).reshape(12, 16)
    good = {"class.png": png(CLASSES), "depth.npy": npy(depth), "jpg": IMAGES["0.jpg"]}  # the image stands last
    write_tar(tmp_path / "x.tar", [good, {"jpg": IMAGES["1.jpg"]}, good | {"class.png": png(CLASSES[:6])}, good])
    options = (f"source.shards={tmp_path}/x.tar", "source.maps={class: {first: 1}, depth: {}}", f"source.copy={copied}")
    found = made(tmp_path / "out", *options, "source.verify=true", kind="webdataset")
    train = found.split("train")
    assert len(train) == 2 and train.map_names == ["class", "depth"] and train.read(0)[1] == "jpg"
    for i in range(2):
        assert np.array_equal(train.read_map(i, "class"), np.where(CLASSES == 0, VOID, CLASSES - 1))
        assert np.array_equal(train.read_map(i, "depth"), depth)
    reasons = {bad["source"]: bad["reason"] for bad in found.bad}
    assert "no label map class.png or class.npy" in reasons["x.tar/s1"] and "6x16 pixels" in reasons["x.tar/s2"]
    if not copied:
        unread = made(tmp_path / "unread", *options, kind="webdataset")
        assert len(unread.split("train")) == 3
        report = check_built(tmp_path / "unread")
        assert report.counts()["broken"] == 1 and "s2 in" in report.verdicts[1].line
        with (tmp_path / "x.tar").open("ab") as file:
            file.write(bytes(512))
        with pytest.raises(DataError, match="1 of 1 shards cannot be used"):
            check_built(tmp_path / "unread")


def test_the_sheet_shows_images_beside_their_maps(tmp_path: Path) -> None:
    put(tmp_path / "in", dict(IMAGES) | {f"{i}.map.png": png(numbered(i)) for i in range(4)})
    made(tmp_path / "out", f"source.path={tmp_path / 'in'}", "source.maps={class: {suffix: .map.png}}")
    summary = show(tmp_path / "out", count=8)
    assert "label maps: class" in summary.text
    with Image.open(summary.picture) as sheet:
        assert sheet.width == 4 + 4 * (2 * 96 + 4)
