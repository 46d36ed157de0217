"""Which decoding library is used: the first that really works here, or the one asked for.

A library counts as working when it imports and gives the frames of a small video made on the spot: torchcodec imports
without the FFmpeg it needs, and a library for another torch fails in many ways.
"""

from __future__ import annotations

import importlib
import io
from functools import cache
from typing import cast

import numpy as np

from jepa.data.video.backend import NAMES, Backend, Unsuited
from jepa.data.video.probe import probe
from jepa.data.video.source import reason
from jepa.errors import ConfigError, JepaError

_INSTALL = {
    "torchcodec": "pip install torchcodec, and FFmpeg 4 to 9 on the system (Debian, Ubuntu: apt-get install ffmpeg)",
    "decord": "pip install decord (Linux on x86 only)",
    "pyav": "pip install av",
}
_SIZE, _COUNT = (64, 96), 8  # height and width, frames


@cache
def choose(name: str = "auto") -> Backend:
    """A decoding library that works here; asked once per process.

    Args:
        name: one of backend.NAMES, or "auto" for the first of them that works.

    Raises:
        ConfigError: no such library, it does not work here, or none does.
    """
    if name != "auto" and name not in NAMES:
        raise ConfigError(f"decoder {name!r}: allowed are auto, {', '.join(NAMES)}")
    for candidate in NAMES if name == "auto" else (name,):
        if not failure(candidate):
            return load(candidate)
    if name != "auto":
        working = [n for n in NAMES if n != name and not failure(n)]
        others = f"Working here: {', '.join(working)}. " if working else ""
        raise ConfigError(f"decoder {name!r} does not work here: {failure(name)}. {others}Install it: {_INSTALL[name]}")
    found = "; ".join(f"{n}: {failure(n)}" for n in NAMES)
    raise ConfigError(f"no video decoder works here ({found}). Install them: pip install 'jepa[video]'")


def load(name: str) -> Backend:
    """The library itself, without trying it out.

    Raises:
        Exception: whatever its import raises.
    """
    return cast(Backend, importlib.import_module(f"jepa.data.video.with_{name}"))


@cache
def failure(name: str) -> str:
    """Why a library cannot be used here; empty if it can."""
    try:
        backend = load(name)
        data = _trial()
        facts = probe(data)
        wanted = np.array([1, 5], dtype=np.int64)
        found = backend.frames(data, facts, wanted).numpy()
        height, width = _SIZE
        if found.shape != (len(wanted), height, width, 3):
            raise Unsuited(f"it makes frames of shape {found.shape} where {(len(wanted), height, width, 3)} is right")
        if np.abs(found[..., 1].astype(int) - [[[_shade(i)]] for i in wanted]).mean() > 12:
            raise Unsuited("it makes other pictures than the video has")
    except JepaError as error:
        return str(error)
    except Exception as error:  # libraries fail to load in every way there is
        return f"{type(error).__name__}: {reason(error)}"
    return ""


def versions() -> dict[str, dict[str, str]]:
    """The libraries that work here, with their versions and those of the FFmpeg in them."""
    return {name: load(name).versions() for name in NAMES if not failure(name)}


def describe(backend: Backend) -> dict[str, str]:
    """What a run records about its decoder, so that it is the same when the run goes on."""
    return {"decoder": backend.name, **backend.versions()}


def _shade(index: int) -> int:
    return 40 + 20 * index


@cache
def _trial() -> bytes:
    """A small video of grey frames, each lighter than the one before."""
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream), f"{codec} is no video codec"
        stream.height, stream.width, stream.pix_fmt = *_SIZE, "yuv420p"
        for index in range(_COUNT):
            frame = av.VideoFrame.from_ndarray(np.full((*_SIZE, 3), _shade(index), dtype=np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()
