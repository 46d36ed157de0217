"""Timed segments of real videos: the right frames, labels of several kinds, onsets, and lists that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.sources import bouncing_digits
from jepa.data.video.decode import decode
from jepa.errors import ConfigError, DataError
from tests.data.video.films import film, number_of

RECIPE = "name: mine\nsource: {kind: segments}\nsplits: {fractions: {}}\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 60 frames at 10 per second; each frame shows its number."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "p1").mkdir()
    for name in ("p1/a.mp4", "p1/b.mp4"):
        (folder / name).write_bytes(film(60, rate=10))
    return folder


def made(videos: Path, out: Path, text: str | dict[str, str], *more: str) -> Manifest:
    out.mkdir()
    (out / "recipe.yaml").write_text(RECIPE)
    texts = {"": text} if isinstance(text, str) else text
    for split, lines in texts.items():
        (out / f"{split}.csv").write_text(lines)
    listed = str(out / ".csv") if "" in texts else "{" + ", ".join(f"{s}: {out / s}.csv" for s in texts) + "}"
    overrides = [f"source.path={videos}", f"source.segments={listed}", *more]
    return build(out / "recipe.yaml", out / "data", overrides=overrides, progress=False)


def shown(found: Manifest, split: str, i: int) -> list[int]:
    """The numbers of the frames of a sample."""
    data = found.split(split).read(i)[0]
    count = int(found.split(split).video[i, 0])
    return [number_of(p.permute(1, 2, 0).numpy()) for p in decode(data, range(count), backend="pyav").pixels]


PLAIN = "file,label,start,stop\np1/a.mp4,open,2.0,3.0\np1/a.mp4,close,00:00:04.5,0:05.2\np1/b.mp4,open,0.3,1\n"


def test_segments_become_samples_with_what_led_to_them(videos: Path, tmp_path: Path) -> None:
    found = made(videos, tmp_path / "x", PLAIN, "source.before=1.0")
    train = found.split("train")
    assert found.classes == ["close", "open"] and found.kinds == {"label": ["close", "open"]}
    onset = [round(float(v), 3) for v in train.targets["onset"]]
    frames = {tuple(shown(found, "train", i)): (int(train.labels[i]), onset[i]) for i in range(3)}
    assert frames == {
        tuple(range(10, 30)): (1, 1.0),
        tuple(range(35, 52)): (0, 1.0),
        tuple(range(10)): (1, 0.3),  # the video begins less than a second ahead
    }
    assert train.originals[0] == train.originals[1] or train.originals[1] == train.originals[2]
    assert len(set(train.originals.tolist())) == 2, "one original for each video"


def test_only_so_much_behind_the_start_and_another_rate(videos: Path, tmp_path: Path) -> None:
    found = made(videos, tmp_path / "x", PLAIN, "source.after=0.4", "source.before=0.2", "video.fps=5")
    every = {tuple(shown(found, "train", i)) for i in range(3)}
    assert every == {(18, 20, 22), (43, 45, 47), (1, 3, 5)}


EPIC = (
    "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    "a,00:00:02.00,00:00:03.00,0,4\na,00:00:03.00,00:00:04.00,2,4\nb,00:00:01.50,00:00:02.00,0,1\n"
)
COLUMNS = (
    "source.file=p1/{video_id}.mp4",
    "source.start=start_timestamp",
    "source.stop=stop_timestamp",
    'source.labels={action: "{verb_class} {noun_class}", verb: verb_class, noun: noun_class}',
)


def test_labels_of_several_kinds_from_columns_of_any_name(videos: Path, tmp_path: Path) -> None:
    found = made(videos, tmp_path / "x", {"train": EPIC, "test": EPIC}, *COLUMNS)
    assert found.kinds == {"action": ["0 1", "0 4", "2 4"], "verb": ["0", "1", "2"], "noun": ["0", "1", "2", "3", "4"]}
    for split in ("train", "test"):
        part = found.split(split)
        columns = np.stack([part.kind(kind) for kind in found.kinds], axis=1)
        assert sorted(columns.tolist()) == [[0, 0, 1], [1, 0, 4], [2, 2, 4]]
        assert part.labels.tolist() == columns[:, 0].tolist(), "the first kind is the sample's own label"
    with pytest.raises(DataError, match=r"cannot read .*labels-colour\.npy"):
        found.split("train").kind("colour")


def test_segments_of_one_video_stay_in_one_split(videos: Path, tmp_path: Path) -> None:
    for i in range(12):
        (videos / f"{i}.mp4").write_bytes((videos / "p1/a.mp4").read_bytes())
    lines = [f"{i}.mp4,{k},{k}.0,{k}.4" for i in range(12) for k in range(3)]
    text = "file,label,start,stop\n" + "\n".join(lines) + "\n"
    found = made(videos, tmp_path / "x", text, "splits.fractions={val: 0.3, test: 0.2}")
    originals = {name: set(split.originals.tolist()) for name, split in found.splits.items()}
    assert len(originals) > 1 and sum(map(len, originals.values())) == 12, "every video in one split only"
    train = found.split("train")
    assert np.count_nonzero(np.diff(train.originals)) == len(originals["train"]) - 1, "and its segments in a row"


def test_segments_that_cannot_be_cut_are_counted(videos: Path, tmp_path: Path) -> None:
    (videos / "p1/broken.mp4").write_bytes((videos / "p1/a.mp4").read_bytes()[:500])
    more = "p1/a.mp4,open,9.0,9.5\np1/broken.mp4,open,1,2\np1/a.mp4,open,5.95,7\n"
    found = made(videos, tmp_path / "x", PLAIN + more)
    reasons = {bad["source"]: bad["reason"] for bad in found.bad}
    assert len(found.split("train")) == 3 and found.bad_count == 3
    assert "behind the video's end at 6.00 s" in reasons["p1/a.mp4 from 9 s"]
    assert "moov" in reasons["p1/broken.mp4 from 1 s"]
    assert "1 frame(s), the recipe asks for video.min_frames=2" in reasons["p1/a.mp4 from 5.95 s"]


@pytest.mark.parametrize(
    ("text", "more", "error", "words"),
    [
        (PLAIN, ('source.path=""',), ConfigError, r"source\.path and source\.segments: say"),
        (PLAIN, ("source.path=/nowhere/at/all",), DataError, "is not a folder"),
        (PLAIN, ("source.segments=/nowhere.csv",), DataError, "cannot read source.segments=/nowhere.csv"),
        ("", (), DataError, "lists nothing"),
        ("file,label,start,stop\n", (), DataError, "lists nothing"),
        (
            PLAIN,
            ('source.file="{video}.mp4"',),
            ConfigError,
            r"source\.file=.* has no column video; it has file, label",
        ),
        (PLAIN, ("source.labels={verb: v}",), ConfigError, r"source\.labels\.verb=.* has no column v"),
        (PLAIN.replace("3.0", "1.0"), (), DataError, "line 2 runs from '2.0' to '1.0'; write seconds"),
        (PLAIN.replace("0:05.2", "soon"), (), DataError, "line 3 .* 'soon'"),
        (PLAIN.replace("/b", "/gone"), (), DataError, r"1 of 2 videos .* p1/gone\.mp4.*source\.missing=skip"),
        (PLAIN.replace("p1", "p2"), ("source.missing=skip",), DataError, "none of the videos listed"),
        (PLAIN, ("source.before=-1",), ConfigError, "before=-1"),
        (PLAIN, ("source.labels={}",), ConfigError, "at least one kind"),
        (PLAIN, ("video.clip=1",), ConfigError, "segments are cut already"),
    ],
)
def test_what_is_wrong_is_said(
    videos: Path, tmp_path: Path, text: str, more: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        made(videos, tmp_path / "x", text, *more)


def test_a_video_that_is_gone_is_left_out_when_asked(videos: Path, tmp_path: Path) -> None:
    found = made(videos, tmp_path / "x", PLAIN.replace("/b", "/gone"), "source.missing=skip")
    assert len(found.split("train")) == 2 and "1 listed videos are not there" in found.notes[0]


def test_bouncing_digits_touch_the_edge_that_their_label_names() -> None:
    config = bouncing_digits.Config(clutter=0, gradient=0.0, speed=(1.5, 2.0), event=(12, 18), frames=24)
    make, seen = bouncing_digits.Maker(config), set()
    for i in range(24):
        sample = make(("train", i))
        edge, digit, event = sample.kinds
        (onset,) = sample.targets
        assert (sample.label, event) == (edge, 10 * edge + digit) and 1.5 <= onset <= 18 / 8
        frames = np.asarray(sample.image, dtype=np.float64)
        ink = np.abs(frames - np.median(frames, axis=(1, 2), keepdims=True)).mean(-1)
        axis, far = (2, 1)[edge // 2], edge % 2  # left and right run along columns
        along = np.where(ink > 25, ink, 0).sum(axis=3 - axis)  # (T, 40)
        place = (along * np.arange(40)).sum(axis=1) / along.sum(axis=1)
        nearest = int(np.argmax(place) if far else np.argmin(place))
        t = onset * 8
        near = place[int(t)] if far else -place[int(t)]
        assert near >= (place[nearest] if far else -place[nearest]) - 2.5, "it is at its edge when the event is"
        ahead, behind = place[max(0, int(t) - 3)], place[min(23, int(np.ceil(t)) + 3)]
        side = 1 if far else -1
        assert side * (place[round(t)] - ahead) > 0 and side * (place[round(t)] - behind) > 0, (
            "it comes, and turns back"
        )
        seen.add(edge)
    assert seen == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="event: need 1 <= first"):
        bouncing_digits.Config(event=(10, 40))
