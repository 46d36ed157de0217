"""A hostile corpus: real files of every kind that is read, each damaged in one of many ways, by a seed.

    python -m tests.hostile.corpus FOLDER DATA      writes it, to look at; DATA is a small data set

Some files are not damaged but malicious: they hold code that unpickling, YAML tags or tar paths would run or follow. It
would leave a file named CANARY.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from tests.data.video.films import film

CANARY = "canary-was-here"
COUNTS = {"image": 320, "tar": 140, "video": 120, "npy": 140, "tensors": 140, "yaml": 160, "manifest": 140}
_EXTREMES = (0, 1, -1, 0x7FFFFFFF, -0x80000000, 0xFFFF, 0x10000)


class Payload:
    """Leaves CANARY where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (CANARY, "w")


def mutated(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """`data` damaged in one way; half of the time near its head, where sizes and names stand."""
    head = min(len(data), 256) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(head, 1))
    run = rng.choice((1, 4, 16, 256, 4096))
    whole = bytearray(data)

    def flipped() -> bytes:
        for _ in range(rng.choice((1, 2, 8, 64))):
            place = rng.randrange(max(head, 1))
            whole[place] ^= 1 << rng.randrange(8)
        return bytes(whole)

    def number() -> bytes:
        kind = rng.choice((">i", "<i", ">q", "<q"))
        return data[:at] + struct.pack(kind, rng.choice(_EXTREMES)) + data[at + struct.calcsize(kind) :]

    ways: tuple[Callable[[], bytes], ...] = (
        flipped,
        flipped,
        number,
        number,
        lambda: data[:at],
        lambda: data[: -rng.randrange(1, 64)],
        lambda: data[:at] + rng.randbytes(run) + data[at + run :],
        lambda: data[:at] + bytes(run) + data[at + run :],
        lambda: data[:at] + b"\xff" * run + data[at + run :],
        lambda: data[:at] + rng.randbytes(run) + data[at:],
        lambda: data[:at] + data[at + run :],
        lambda: data[:at] + data[at : at + run] * 2 + data[at + run :],
        lambda: data[:at] + other[at:],
        lambda: other[:at] + data[at:],
        lambda: rng.choice((b"", data[:8], data[::-1], bytes(len(data)), data * 2, other)),
    )
    return rng.choice(ways)()


def images(rng: random.Random) -> list[bytes]:
    """Encoded pictures of every format and mode that is decoded, and one that is not."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    found = []
    for mode, form, options in (
        ("RGB", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("L", "JPEG", {}), ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {}), ("I;16", "PNG", {}), ("RGB", "WEBP", {}),
        ("RGB", "BMP", {}), ("RGB", "GIF", {}), ("RGB", "TIFF", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        made = (
            Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
            if mode == "I;16"
            else pixels.convert(mode)
        )
        made.save(buffer, form, **options)
        found.append(buffer.getvalue())
    return found


def tars(rng: random.Random) -> list[bytes]:
    """Webdataset tars: plain, in the other formats, with evil names, links and sizes."""
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for i, picture in enumerate(images(rng)[:4]):
                for name, data in ((f"{i:04}.jpg", picture), (f"{i:04}.cls", b"3"), (f"{i:04}.json", b'{"a": 1}')):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            evil = tarfile.TarInfo(f"../../{CANARY}.jpg")
            evil.size = 4
            tar.addfile(evil, io.BytesIO(b"evil"))
            for kind, name in ((tarfile.SYMTYPE, "5.jpg"), (tarfile.LNKTYPE, "6.jpg"), (tarfile.FIFOTYPE, "7.jpg")):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, "/etc/passwd"
                tar.addfile(link)
        found.append(buffer.getvalue())
    return found


def videos(rng: random.Random) -> list[bytes]:
    """Short films in the usual containers."""
    kinds = (("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("gif", "gif"))
    pixels = {"gif": "rgb8"}
    return [film(8, codec=codec, container=form, pixels=pixels.get(form, "yuv420p")) for form, codec in kinds]


def arrays(rng: random.Random) -> list[bytes]:
    """.npy files as episodes have them; one of objects, whose pickle would run."""
    found = []
    for values in (np.arange(24, dtype=np.float32).reshape(12, 2), np.zeros((12, 2)), np.arange(3, dtype=np.int64)):
        buffer = io.BytesIO()
        np.save(buffer, values)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()] * 3, dtype=object), allow_pickle=True)
    return [*found, buffer.getvalue()]


def tensors(rng: random.Random) -> list[bytes]:
    """safetensors, torch files, and pickles whose code would run."""
    weights = {f"blocks.{i}.attn.qkv.weight": torch.zeros(12, 4) for i in range(2)}
    buffer, evil = io.BytesIO(), io.BytesIO()
    torch.save({"encoder": weights, "epoch": 3}, buffer)
    torch.save({"encoder": weights, "epoch": Payload()}, evil)
    return [save(weights), save(weights), buffer.getvalue(), evil.getvalue(), pickle.dumps(Payload())]


def settings(rng: random.Random) -> list[bytes]:
    """Configurations; tags that would run code, aliases that would fill the memory."""
    plain = yaml.safe_dump(
        {"method": {"name": "ijepa", "encoder": {"size": "tiny"}}, "data": {"image_size": 32}, "train": {"batch": 4}}
    )
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
    )
    tag = f"data: !!python/object/apply:builtins.open [{CANARY}, w]\n"
    deep = "data: " + "[" * 3000
    return [plain.encode(), plain.encode(), tag.encode(), bomb.encode(), deep.encode()]


def manifests(rng: random.Random, data: Path) -> list[bytes]:
    """Manifests and indices of a real data set: (which file it replaces) NUL (its bytes)."""
    names = ["manifest.json", "train/index.npy", "train/labels.npy", "train/keys.npy"]
    return [f"{name}\0".encode() + (data / name).read_bytes() for name in names if (data / name).is_file()]


def files(kind: str, data: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of one kind: the seeds as they are, then damaged ones up to COUNTS."""
    rng = random.Random(f"{kind} 0")
    seeds: list[bytes] = {
        "image": lambda: images(rng), "tar": lambda: tars(rng), "video": lambda: videos(rng),
        "npy": lambda: arrays(rng), "tensors": lambda: tensors(rng), "yaml": lambda: settings(rng),
        "manifest": lambda: manifests(rng, data),
    }[kind]()  # fmt: skip
    for number, seed in enumerate(seeds):
        yield f"seed-{number}", seed
    for number in range(COUNTS[kind] - len(seeds)):
        seed = rng.choice(seeds)
        if kind == "manifest":
            name, _, rest = seed.partition(b"\0")
            yield f"damaged-{number}", name + b"\0" + mutated(rest, rng, json.dumps({"x": 1}).encode())
        else:
            yield f"damaged-{number}", mutated(seed, rng, rng.choice(seeds))


if __name__ == "__main__":
    for kind in COUNTS:
        folder = Path(sys.argv[1]) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files(kind, Path(sys.argv[2])):
            (folder / name).write_bytes(content)
