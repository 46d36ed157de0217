"""`jepa data check`: look at every sample in parallel, then at all of them together.

    findings.jsonl      a line for every sample of which something is to be said, as soon as it is known
    clean.txt           the names of the others, for the key `clean` of a recipe
    check.json          counts, duplicates, leaks between splits, classes, sizes
    contact-sheet.png   samples of every finding beside ordinary ones

Memory is bounded: some 130 bytes for each sample, whatever its size (see `columns`), and 600 more while hashes are
compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data import progress, storage
from jepa.data.check import sheet, together
from jepa.data.check.columns import Columns
from jepa.data.check.raw import Made, find, unchangeable
from jepa.data.checkup import Stored
from jepa.data.manifest import FILE, Manifest
from jepa.data.video.scan import STATUSES, ScanConfig, results, verdict
from jepa.errors import DataError

SHOWN = 1000  # lines of a list in check.json
PAGE = "check.html"


@dataclass(frozen=True)
class Result:
    """What was found."""

    folder: Path  # that it was written to
    title: str
    values: dict[str, Any]  # check.json

    @property
    def usable(self) -> int:
        """Samples in the clean list."""
        return int(self.values["clean"])

    @property
    def bad(self) -> dict[str, int]:
        """What should not be there, with how often it is; what merely looks alike is not among it."""
        found = {name: n for name, n in self.values["findings"].items() if n and name not in self.values["kept"]}
        leaks = {
            f"{kind} between {leak['splits'][0]} and {leak['splits'][1]}": int(leak[kind])
            for leak in self.values["leaks"]
            for kind in ("same", "originals")
            if leak[kind]
        }
        return found | leaks


def check(
    place: Path,
    config: ScanConfig | None = None,
    out: Path | None = None,
    changes: Sequence[str] = (),
    show: bool = False,
) -> Result:
    """Check a built data set, or samples that are to become one.

    Args:
        place: the data set's folder; a folder of images, videos or archives; an archive; a list of videos; a recipe.
        out: folder for what is found. Default: `check` in the data set's folder, else NAME-check here.
        changes: KEY=VALUE for a recipe.
        show: a progress bar, if there is a terminal.

    Raises:
        DataError: nothing to check, a shard is missing, truncated or replaced, or the folder cannot be written to.
        ConfigError: something is wrong in the recipe, or a decoder is not installed.
        TrainingError: worker processes do not start.
    """
    wanted = config or ScanConfig()
    job: Stored | Made
    if (place / FILE).is_file() or (place / ".build").is_dir():
        if changes:
            raise unchangeable(place, changes)
        found = Manifest.open(place)
        job = Stored(found, wanted)
        known = together.Known(
            list(found.splits), np.repeat(np.arange(len(job.splits)), [len(s) for s in job.splits]), found.classes,
            np.concatenate([np.asarray(s.originals) for s in job.splits]),
        )  # fmt: skip
        title, what, folder = found.name, f"{found.media}s", out or place / "check"
        tasks: Sequence[Any] = range(len(job))
    else:
        job = Made(find(place, changes), wanted)
        known = together.Known([name or "all" for name in job.splits], job.split, job.classes, None)
        title, what, folder, tasks = place.name or str(place), "samples", out or Path(f"{place.stem}-check"), job.tasks
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _checked(job, tasks, known, wanted, folder, title, what, show)
    except OSError as error:
        raise DataError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}. Make room, or name another folder "
            "with --out"
        ) from None


def _checked(
    job: Stored | Made,
    tasks: Sequence[Any],
    known: together.Known,
    config: ScanConfig,
    folder: Path,
    title: str,
    what: str,
    show: bool,
) -> Result:
    columns = Columns(len(tasks))
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress.bar(what, len(tasks), 0, show, doing="checking"))
        lines = stack.enter_context((folder / "findings.jsonl").open("w", encoding="utf-8"))
        for number, result in results(job, tasks, config):
            found = verdict(job.place(number), result, config)
            columns.put(number, found)
            if found.findings:
                name = columns.name(number)
                row = {"number": number, "split": known.of(number), "name": name, **found.plain()}
                lines.write(json.dumps(row) + "\n")
            advance(1)
    seen = together.look(columns, known, config.near)
    keep = _clean(columns, seen, config)
    values = _values(columns, known, seen, keep, config, what) | {"title": title}
    names = (columns.name(i) for i in np.flatnonzero(keep).tolist())
    _write(folder / "clean.txt", "".join(f"{name}\n" for name in dict.fromkeys(names) if "\n" not in name))
    rows = sheet.rows(columns, seen, known)
    storage.write_atomic(folder / "contact-sheet.png", sheet.png(sheet.draw(rows, job.picture, columns, known)))
    _write(folder / "check.json", json.dumps(values, indent=1) + "\n")
    return Result(folder, title, values)


def _clean(columns: Columns, seen: together.Seen, config: ScanConfig) -> npt.NDArray[np.bool_]:
    """Samples with no finding but those that are kept."""
    kept = [i for i, name in enumerate(STATUSES) if name == "ok" or name in config.keep]
    good = np.isin(columns.status, kept)
    if "variable" not in config.keep:
        good &= ~columns.variable
    if "duplicate" not in config.keep:
        good &= ~seen.spare
    if "near" not in config.keep:
        good &= ~seen.near_spare
    return good


def _values(
    columns: Columns,
    known: together.Known,
    seen: together.Seen,
    keep: npt.NDArray[np.bool_],
    config: ScanConfig,
    what: str,
) -> dict[str, Any]:
    findings: dict[str, int] = {name: int((columns.status == i).sum()) for i, name in enumerate(STATUSES) if i}
    findings["variable"] = int(columns.variable.sum())
    findings |= {"duplicate": int(seen.spare.sum()), "near": int(seen.near_spare.sum())}
    return {
        "what": what,
        "samples": len(columns),
        "ok": int((columns.status <= STATUSES.index("variable")).sum()),
        "clean": int(keep.sum()),
        "kept": list(config.keep),
        "findings": findings,
        "splits": {name: int((known.split == i).sum()) for i, name in enumerate(known.splits)},
        "leaks": seen.leaks,
        "contradictions": seen.contradictions,
        "duplicates": [
            [{"split": known.of(i), "name": columns.name(i)} for i in group] for group in seen.groups[:SHOWN]
        ],
        "near": [
            [{"split": known.of(i), "name": columns.name(i)} for i in group] for group in seen.near_groups[:SHOWN]
        ],
        "classes": together.balance(columns, known),
        "sizes": together.sizes(columns),
        "config": asdict(config),
    }


def _write(path: Path, text: str) -> None:
    storage.write_atomic(path, text.encode("utf-8", "surrogateescape"))


__all__ = ["PAGE", "Result", "check"]
