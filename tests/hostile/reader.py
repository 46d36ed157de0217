"""Reads the files of a folder one after the other, as the package does, and says of each what came of it.

    python -m tests.hostile.reader FOLDER DATA      FOLDER/KIND/NAME

One line each: name, then "read", "refused" and the reason, or "raised" and what no reader should raise. The name is
printed before the file is opened, so that who waits knows which one hangs or ends this process.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jepa import config
from jepa.data.arrays import ArrayConfig, from_npy
from jepa.data.decode import decode
from jepa.data.manifest import Manifest
from jepa.data.tarindex import Tar
from jepa.data.video.decode import decode as decode_video
from jepa.errors import JepaError
from jepa.export import describe, import_checkpoint


def image(path: Path, _: Path) -> None:
    decode(path.read_bytes())


def tar(path: Path, _: Path) -> None:
    found = Tar(path)
    for group in found.groups():
        for place in group.files.values():
            found.read(place)
    if found.broken:
        raise_broken(found.broken)


def raise_broken(reason: str) -> None:
    raise JepaError(reason)


def video(path: Path, _: Path) -> None:
    decode_video(path.read_bytes(), [0, 3], backend="pyav")


def npy(path: Path, _: Path) -> None:
    from_npy(path.read_bytes(), "action", ArrayConfig(size=2, dtype="float32"), 12)


def tensors(path: Path, _: Path) -> None:
    describe(path)
    with tempfile.TemporaryDirectory() as folder:
        import_checkpoint(path, "ijepa", Path(folder) / "run")


def yaml(path: Path, _: Path) -> None:
    config.load(path)


def manifest(path: Path, data: Path) -> None:
    name, _, content = path.read_bytes().partition(b"\0")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        shutil.copytree(data, folder, symlinks=True)
        (folder / name.decode()).write_bytes(content)
        found = Manifest.open(folder)
        for split in found.splits.values():
            split.check()
            for i in range(min(len(split), 3)):
                decode(split.read(i)[0])
                split.place(i)
            np.asarray(split.labels).sum()


READERS: dict[str, Callable[[Path, Path], None]] = {
    "image": image, "tar": tar, "video": video, "npy": npy, "tensors": tensors, "yaml": yaml, "manifest": manifest,
}  # fmt: skip


def main(folder: Path, data: Path) -> None:
    for path in sorted(folder.glob("*/*")):
        print(f"{path.parent.name}/{path.name}", end=" ", flush=True)
        try:
            READERS[path.parent.name](path, data)
        except JepaError as error:
            print("refused", " ".join(str(error).split())[:200], flush=True)
        except Exception:
            print("raised", " | ".join(traceback.format_exc().splitlines()[-4:]), flush=True)
        else:
            print("read", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
