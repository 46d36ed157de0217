"""Coverage-guided fuzzing (atheris, libFuzzer) of the readers of manifests, tars, settings, checkpoints and arrays.

    make fuzz                                 every target, a minute each
    make fuzz TARGET=tar SECONDS=600          one, longer

Bytes that a reader takes, or refuses with an error of ours that says something, are fine; any other exception, a crash,
a hang or memory beyond the limit ends it, and the bytes that did it are left in build/fuzz. What was found to reach new
lines is kept there too, so the next time goes on from it.

Files of JSON are not fuzzed as bytes, of which nearly all are refused by the parser: the bytes say which of the values
of a real file is replaced by which other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import atheris

# Only what is imported first in here is watched for new lines; torch would bring tarfile and yaml along.
with atheris.instrument_imports(include=["jepa", "tarfile", "yaml"], enable_loader_override=False):
    import tarfile  # noqa: F401

    import yaml  # noqa: F401

    from jepa import checkpoint, config
    from jepa.checkpoint import folder as sealed
    from jepa.config import RunConfig
    from jepa.data.arrays import ArrayConfig, from_npy
    from jepa.data.build import build
    from jepa.data.manifest import Manifest
    from jepa.data.tarindex import Tar
    from jepa.errors import JepaError
    from jepa.train import train

import torch

from tests import tiny
from tests.hostile import corpus
from tests.hostile.trees import places, replaced

Target = Callable[[bytes], None]
KEPT = Path("build/fuzz")
HANG, MEMORY, LONGEST = 60, 4096, 1 << 16  # seconds and MiB that end it; bytes of an input
_OF_DATA = ("manifest.json", "train/index.npy", "train/labels.npy", "train/keys.npy")
_OF_CHECKPOINT = ("state.json", "checkpoint.json", "config.yaml", "model.safetensors")
_VALUES = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**70, -0.5, 1e308, float("nan"), float("inf"), "", "train", "..",
    "/etc", "\x00", "\ud800", "é" * 300, [], {}, [None], [[]], {"": None}, {"bytes": 1}, [0, 1], [2**63, -1],
)  # fmt: skip


def edited(real: bytes, data: bytes) -> bytes:
    """The file of JSON with one to three of its values, chosen by `data`, replaced, doubled or taken out."""
    tree, choose = json.loads(real), atheris.FuzzedDataProvider(data)
    for _ in range(choose.ConsumeIntInRange(1, 3)):
        ways = list(places(tree))
        way = ways[choose.ConsumeIntInRange(0, len(ways) - 1)]
        what = choose.ConsumeIntInRange(0, len(_VALUES) + 3)
        other: Any = None
        if what < len(_VALUES):
            other = _VALUES[what]
        elif what == len(_VALUES):
            other = choose.ConsumeInt(8)
        elif what == len(_VALUES) + 1:
            other = choose.ConsumeUnicode(12)
        elif what == len(_VALUES) + 2:  # the value of another place
            other = found(tree, ways[choose.ConsumeIntInRange(0, len(ways) - 1)])
        elif way:  # the key or the item is gone
            above = found(tree, way[:-1])
            left = {k: v for k, v in above.items() if k != way[-1]} if isinstance(above, dict) else above[:-1]
            way, other = way[:-1], left
        tree = replaced(tree, way, other)
    return json.dumps(tree, indent=1).encode()


def found(tree: Any, way: tuple[Any, ...]) -> Any:
    """The value at the end of a way."""
    for key in way:
        tree = tree[key]
    return tree


def manifest(place: Path) -> tuple[Target, list[bytes]]:
    """A file of a data set, which its first byte chooses; then everything is opened and the first samples are read."""
    folder = place / "data"
    real = {name: (folder / name).read_bytes() for name in _OF_DATA}

    def read(data: bytes) -> None:
        name = _OF_DATA[data[0] % len(_OF_DATA)] if data else _OF_DATA[0]
        (folder / name).write_bytes(edited(real[name], data[1:]) if name.endswith(".json") else data[1:])
        try:
            for split in Manifest.open(folder).splits.values():
                split.check()
                for i in range(min(2, len(split))):
                    split.read(i)
        finally:
            (folder / name).write_bytes(real[name])

    return read, _seeds(real)


def _seeds(real: dict[str, bytes]) -> list[bytes]:
    """The number of each file with its content, or with choices for `edited`."""
    return [bytes([i]) + (bytes(32) if name.endswith(".json") else real[name]) for i, name in enumerate(real)]


def tar(place: Path) -> tuple[Target, list[bytes]]:
    """A webdataset tar that somebody else wrote: its samples are found and their files read."""
    file = place / "fuzzed.tar"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = Tar(file)
        try:
            for group in found.groups():
                for where in group.files.values():
                    found.read(where)
        finally:
            found.close()

    return read, [content for _, content in corpus.files("tar", place / "data")][:6]


def settings(place: Path) -> tuple[Target, list[bytes]]:
    """A settings file."""
    file = place / "fuzzed.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        config.load(file)

    written = [config.to_yaml(config.build(RunConfig, tiny.VALUES)).encode()]
    return read, written + [path.read_bytes() for path in sorted(Path("configs").glob("*.yaml"))]


def of_checkpoint(place: Path) -> tuple[Target, list[bytes]]:
    """A file of a checkpoint, which the first byte chooses, sealed again so that its hash does not give it away."""
    step = checkpoint.latest(place / "run")
    real = {name: (step / name).read_bytes() for name in _OF_CHECKPOINT}
    whole = {path: path.read_bytes() for path in (step / sealed.MANIFEST, step / sealed.COMPLETE)}
    about = {key: value for key, value in json.loads(real[sealed.MANIFEST]).items() if key != "files"}

    def read(data: bytes) -> None:
        name = _OF_CHECKPOINT[data[0] % len(_OF_CHECKPOINT)] if data else _OF_CHECKPOINT[0]
        if name != sealed.MANIFEST:
            for path in whole:
                path.unlink()
        content = edited(real[name], data[1:]) if name.endswith(".json") else data[1:]
        (step / name).write_bytes(content)
        try:
            if name != sealed.MANIFEST:
                sealed._seal(step, about)
            else:
                (step / sealed.COMPLETE).write_text(hashlib.sha256(content.rstrip(b"\n")).hexdigest())
            for use in (checkpoint.describe, checkpoint.load_encoder):
                try:
                    use(step)
                except JepaError as error:
                    spoken(error)
        finally:
            for path, content in whole.items():
                path.write_bytes(content)
            (step / name).write_bytes(real[name])

    return read, _seeds(real)


def arrays(place: Path) -> tuple[Target, list[bytes]]:
    """An array of an episode."""

    def read(data: bytes) -> None:
        from_npy(data, "action", ArrayConfig(size=2, dtype="float32"), 12)

    return read, [content for _, content in corpus.files("npy", place / "data")][:4]


TARGETS: dict[str, Callable[[Path], tuple[Target, list[bytes]]]] = {
    "manifest": manifest, "tar": tar, "settings": settings, "checkpoint": of_checkpoint, "arrays": arrays,
}  # fmt: skip


def spoken(error: JepaError) -> None:
    """An error that tells nothing is a fault too."""
    assert len(str(error)) > 10, repr(error)


def prepare(place: Path) -> None:
    """A small data set and a run of two steps, where they are not there yet."""
    if not (place / "data").exists():
        small = ["source.size=20", "source.digit=[10, 14]", "source.clutter=1", "shards.max_samples=16"]
        counts = "source.samples={train: 64, val: 16, test: 16}"
        build("digits", place / "data", overrides=["name=tiny", *small, counts], progress=False)
    if not (place / "run").exists():
        short = ["train.duration={steps: 2}", "optim.warmup.steps=1"]
        train(tiny.run_config(place / "data", *short), place / "run", quiet=True)


def words(seeds: list[bytes]) -> Iterator[str]:
    """Keys and values of the seeds, as lines of libFuzzer's dictionary."""
    found = {word for seed in seeds for word in seed.replace(b'"', b" ").replace(b":", b" ").split()}
    for word in sorted(word for word in found if 2 < len(word) < 24 and word.isascii() and word.isalnum()):
        yield f'"{word.decode()}"'
    yield from ('"-1"', '"1e400"', '"null"', '"NaN"', '"{}"', '"[]"', '"\\x93NUMPY"', '"18446744073709551616"')


def fuzz(name: str, place: Path, kept: Path, limits: list[str]) -> None:
    """One target; does not come back: libFuzzer ends the process."""
    read, seeds = TARGETS[name](place)
    (kept / name).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (kept / name / f"seed-{number}").write_bytes(seed)
    (place / "words").write_text("\n".join(words(seeds)) + "\n")

    def once(data: bytes) -> None:
        try:
            read(data)
        except JepaError as error:
            spoken(error)

    options = [
        f"-dict={place / 'words'}",
        f"-artifact_prefix={kept}/{name}-",
        f"-timeout={HANG}",
        f"-rss_limit_mb={MEMORY}",
        f"-max_len={LONGEST}",
        "-print_final_stats=1",
        *limits,
    ]
    atheris.Setup([sys.argv[0], *options, str(kept / name)], once)
    atheris.Fuzz()


def main() -> int:
    """Every target in a process of its own; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default: all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--runs", type=int, default=-1, help="end after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="0: another each time")
    parser.add_argument("--kept", type=Path, default=KEPT, help=f"what was found ({KEPT})")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
    limits = [f"-max_total_time={given.seconds}", f"-runs={given.runs}", f"-seed={given.seed}"]
    torch.set_num_threads(1)  # none of OpenMP's threads may be there when a process is forked
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in given.targets or TARGETS:
            print(f"--- {name}", flush=True)
            process = get_context("fork").Process(target=fuzz, args=(name, Path(folder), given.kept, limits))
            process.start()
            process.join()
            if process.exitcode:
                failed.append(name)
    print(f"found something: {', '.join(failed)}; see {given.kept}" if failed else "nothing found")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
