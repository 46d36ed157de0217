"""A checkpoint as a folder: written atomically, checked by hash, found again, and thinned out.

A folder ``step-N`` appears by one rename of a finished and synced temporary folder, so a reader never sees half of
one, whenever the writer is killed. COMPLETE still matters: a copy of a run (rsync, a full disk elsewhere) may be
cut off, and such a folder is then named and passed over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from jepa import resources
from jepa.errors import CheckpointError, TrainingError

FORMAT, VERSION = "jepa-checkpoint", 1
FOLDER, MANIFEST, COMPLETE = "checkpoints", "checkpoint.json", "COMPLETE"
MODEL, OPTIM, STATE, CONFIG = "model.safetensors", "optim.safetensors", "state.json", "config.yaml"
_NAME = re.compile(r"step-(\d+)")
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# --- writing ------------------------------------------------------------------------------------------------------


def write(run_dir: Path, step: int, fill: Callable[[Path], None], about: dict[str, Any]) -> Path:
    """Make ``run_dir/checkpoints/step-N`` from the files that `fill` writes into a folder it is given.

    Args:
        about: what the manifest says besides format, step and hashes; plain JSON values.

    Raises:
        TrainingError: disk full or not writable. Nothing half-written is left and earlier checkpoints stay.
    """
    parent = run_dir / FOLDER
    final, temporary = parent / f"step-{step}", parent / f".tmp-step-{step}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(run_dir)
        temporary.mkdir()
        fill(temporary)
        _seal(temporary, {"format": FORMAT, "version": VERSION, "step": step, **about})
        if final.exists():  # a damaged one that the run had to pass over and has now reached again
            final.rename(parent / f".old-step-{step}")
        temporary.rename(final)
        _sync(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = complaint(error)
        if reason is None:
            raise
        kept = ", ".join(f"step-{n}" for n in steps(run_dir)) or "none"
        raise TrainingError(
            f"cannot save checkpoint step-{step} in {parent}: {reason}. Nothing half-written was left there; complete "
            f"checkpoints: {kept}. Make room (train.keep keeps fewer), then go on with --resume"
        ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sweep(run_dir)
    return final


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Sync every file, then write the manifest with their hashes, then COMPLETE, then sync the folder."""
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    text = json.dumps({**manifest, "files": files}, indent=1, allow_nan=False)
    for name, content in ((MANIFEST, text), (COMPLETE, hashlib.sha256(text.encode()).hexdigest())):
        (folder / name).write_text(content + "\n", encoding="utf-8")
        _sync(folder / name)
    _sync(folder)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows has no handle to a folder that can be synced
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complaint(error: Exception) -> str | None:
    """The storage's complaint in words, or None when it is not about storage."""
    if isinstance(error, OSError):
        code = error.errno
    else:  # safetensors wraps the system's error in text
        found = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if not found:
            return None
        code = int(found.group(1) or found.group(2))
    text = os.strerror(code) if code else str(error)
    return f"the disk is full ({text})" if code in _FULL else text


def sweep(run_dir: Path) -> None:
    """Remove what a killed writer left: unfinished and replaced folders."""
    for path in (run_dir / FOLDER).glob(".*-step-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(run_dir: Path, keep: int, keep_every: int | None = None, keep_at: Collection[int] = ()) -> list[int]:
    """Delete complete checkpoints but the `keep` newest, multiples of `keep_every` steps, and the steps `keep_at`.

    `keep` 0 keeps all. Returns the steps deleted.
    """
    if keep <= 0:
        return []
    gone = [n for n in steps(run_dir)[:-keep] if (not keep_every or n % keep_every) and n not in keep_at]
    for n in gone:
        remove(run_dir / FOLDER / f"step-{n}")
    return gone


def remove(path: Path) -> None:
    """Delete a checkpoint folder; the rename first: a reader sees all of it or nothing."""
    trash = path.with_name(f".gone-{path.name}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


# --- reading ------------------------------------------------------------------------------------------------------


def steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints marked complete, rising."""
    found = ((_NAME.fullmatch(p.name), p) for p in (run_dir / FOLDER).glob("step-*"))
    return sorted(int(m.group(1)) for m, p in found if m and (p / COMPLETE).is_file())


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: missing, not ours, or of a version this program does not read.
    """
    file = path / MANIFEST
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a usable checkpoint: cannot read {MANIFEST} ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{file} does not describe a {FORMAT} (format: {FORMAT!r} is missing)")
    if values.get("version") != VERSION:
        made = values.get("versions")
        by = f", jepa {made['jepa']}" if isinstance(made, dict) and "jepa" in made else ""
        raise CheckpointError(
            f"{path} has format version {values.get('version')!r}, this program reads {VERSION}. "
            f"Use the program version that wrote it{by}"
        )
    files = values.get("files")
    if not isinstance(files, dict) or MODEL not in files or not all(_listed(*entry) for entry in files.items()):
        raise CheckpointError(
            f"{file} does not list {MODEL} and its other files, each with bytes and sha256. It was changed; give "
            "another checkpoint"
        )
    return values


def _listed(name: str, of: Any) -> bool:
    """Whether a manifest's entry for a file is one: a plain name beside it, a size and a hash."""
    plain = _PLAIN.fullmatch(name) is not None and isinstance(of, dict)
    return plain and isinstance(of.get("bytes"), int) and isinstance(of.get("sha256"), str)


def problem(path: Path, files: Iterable[str] | None = None) -> str | None:
    """Why a checkpoint folder cannot be used, or None.

    Args:
        files: names to check by hash; None checks every file. Sizes are checked for all of them.

    Raises:
        CheckpointError: the checkpoint is of another format version, which going back to an older one would hide.
    """
    try:
        mark = (path / COMPLETE).read_text(encoding="utf-8").strip()
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        return f"incomplete: no {Path(error.filename).name}"
    except (OSError, UnicodeDecodeError) as error:
        return f"unreadable ({error})"
    if hashlib.sha256(text.rstrip(b"\n")).hexdigest() != mark:
        return f"{MANIFEST} is damaged (its hash differs from {COMPLETE})"
    values = manifest(path)
    for name, want in values["files"].items():
        try:
            size = (path / name).stat().st_size
            if size != want["bytes"]:
                return f"{name} has {size} bytes instead of {want['bytes']}"
            if (files is None or name in files) and _hash(path / name) != want["sha256"]:
                return f"{name} is damaged (hash differs)"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return None


def find(run_dir: Path, files: Iterable[str] | None = None) -> tuple[Path, list[str]]:
    """The newest usable checkpoint of a run, and a sentence for each newer one that had to be passed over.

    Raises:
        CheckpointError: there is none.
    """
    numbers = [(int(m.group(1)), p) for p in (run_dir / FOLDER).glob("step-*") if (m := _NAME.fullmatch(p.name))]
    passed: list[str] = []
    for _, path in sorted(numbers, reverse=True):
        wrong = problem(path, files)
        if wrong is None:
            return path, passed
        passed.append(f"checkpoint {path} was passed over: {wrong}")
    if passed:
        raise CheckpointError(f"{run_dir} has no usable checkpoint: {'; '.join(passed)}. Restore one from a copy")
    raise CheckpointError(
        f"{run_dir} holds no checkpoint (looked for {FOLDER}/step-N). Give the folder of a run made by `jepa train`, "
        "or one of its checkpoints"
    )


def latest(run_dir: Path | str) -> Path:
    """The newest complete and undamaged checkpoint of a run; damaged newer ones are named in a warning.

    Raises:
        CheckpointError: there is none.
    """
    path, passed = find(Path(run_dir))
    _warn(passed)
    return path


def resolve(path: Path | str, files: Iterable[str] | None = None) -> Path:
    """The checkpoint folder meant by a run folder or a checkpoint folder, checked (see `problem`).

    Raises:
        CheckpointError: no such path, a file (pickles are refused), nothing usable in it, or damaged.
    """
    path = Path(path)
    if path.is_file() or (not path.exists() and path.suffix in _PICKLED):
        raise CheckpointError(_refusal(path))
    if not path.is_dir():
        raise CheckpointError(
            f"no such run or checkpoint: {resources.shown(path)}. Give a run folder or RUN/checkpoints/step-N"
        )
    if (path / MANIFEST).is_file() or (path / COMPLETE).is_file() or _NAME.fullmatch(path.name):
        wrong = problem(path, files)
        if wrong is not None:
            raise CheckpointError(f"checkpoint {path} cannot be used: {wrong}. Give another step of this run")
        return path
    found, passed = find(path, files)
    _warn(passed)
    return found


def _refusal(path: Path) -> str:
    if path.suffix in _PICKLED:
        return (
            f"{path} is refused: {path.suffix} files hold pickles, and loading a pickle runs code. "
            "Convert it once with `jepa import --from ijepa` and give the run folder that this makes"
        )
    return f"{path} is a file. Give a run folder or a checkpoint folder (RUN/checkpoints/step-N)"


def _warn(passed: list[str]) -> None:
    for sentence in passed:
        warnings.warn(f"{sentence}; an older one is used", stacklevel=3)
