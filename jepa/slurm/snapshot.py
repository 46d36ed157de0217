"""A copy of the package as it is now, for a job that starts later: whatever is edited meanwhile, it runs this.

    FOLDER/HASH/jepa/...              the package
    FOLDER/HASH/jepa/_share/KIND/...  the YAML folders, where an installed wheel has them
    FOLDER/HASH/NAME/...              packages of your own that hold the method
    FOLDER/HASH/code.json             commit of the checkout, if it was one

HASH is of the contents, so the same code is copied once, from a checkout and from a wheel alike.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sysconfig
from pathlib import Path

import jepa
from jepa import environment, resources
from jepa.errors import ConfigError

FACTS = "code.json"
_SKIPPED = {"__pycache__", "_share"}  # _share is filled from where the YAML files are read


def take(folder: Path, methods: tuple[str, ...] = ()) -> Path:
    """The snapshot in `folder` of what is imported now; copied if it is not there yet.

    Args:
        methods: method.name of the runs; of those outside of this package the code is copied too, unless installed.

    Returns:
        FOLDER/HASH, which belongs first on the job's PYTHONPATH.

    Raises:
        ConfigError: the folder cannot be written.
    """
    files = _files(methods)
    final = folder / _hash(files)
    if final.is_dir():
        return final
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        for name, source in files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        facts = {"version": jepa.__version__, "git": environment.git()}
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        temporary.rename(final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not final.is_dir():  # nor made by another submission in this moment
            raise ConfigError(f"cannot copy the code to {folder}: {error.strerror or error}") from None
    return final


def place(folder: Path, methods: tuple[str, ...] = ()) -> Path:
    """Where `take` would put it. Writes nothing."""
    return folder / _hash(_files(methods))


def _hash(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, source in sorted(files.items()):
        digest.update(f"{name}\0{source.stat().st_size}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _files(methods: tuple[str, ...]) -> dict[str, Path]:
    """Name in the snapshot -> file."""
    package = Path(jepa.__file__).resolve().parent
    found = _tree(package, "jepa")
    for kind in resources.KINDS:
        folder = resources.folder(kind)
        found |= {f"jepa/_share/{kind}/{path.name}": path for path in folder.glob("*.yaml")}
    for module in sorted({m.partition(":")[0].partition(".")[0] for m in methods if ":" in m}):
        found |= _own(module)
    return found


def _own(module: str) -> dict[str, Path]:
    """A user's module or package; nothing for one that is installed, which stays as it is by itself."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    origin = Path(spec.origin).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}
    if any(origin.is_relative_to(place) for place in installed):
        return {}
    return _tree(origin.parent, module, "*.py") if origin.name == "__init__.py" else {origin.name: origin}


def _tree(root: Path, name: str, pattern: str = "*") -> dict[str, Path]:
    found = {}
    for path in root.rglob(pattern):
        inner = path.relative_to(root)
        if path.is_file() and not _SKIPPED & set(inner.parts):
            found[f"{name}/{inner.as_posix()}"] = path
    return found


__all__ = ["FACTS", "place", "take"]
