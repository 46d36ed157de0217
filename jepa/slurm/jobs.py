"""Looking after jobs: what each is doing, its logs, ending it, starting it anew.

What SLURM says comes first; where it has forgotten a job and keeps no accounts, the run's own files speak.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jepa.errors import ConfigError
from jepa.slurm import book, ends, queue
from jepa.slurm.book import Entry
from jepa.slurm.queue import Seen

GONE = "GONE"  # SLURM does not know it any more, and there are no accounts
_COLOURS = {"RUNNING": "green", "COMPLETED": "cyan", "PENDING": "yellow", "GONE": "bright_black"}
_TAIL = 1 << 16  # bytes looked at from the end of a file
_POLL, _ASK = 0.5, 5.0  # seconds between looks at a log that is followed, and between questions to SLURM
_DEEP = 6  # folders below a given one that runs are looked for in


@dataclass(frozen=True)
class Row:
    """A job as it is now."""

    run: str
    job: str
    verb: str
    state: str
    submitted: str
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None
    restarts: int = 0
    node: str = ""
    reason: str = ""  # why it waits
    last: str = ""  # line of its logs
    log: str = ""

    @property
    def live(self) -> bool:
        return self.state in queue.LIVE


# --- which ----------------------------------------------------------------------------------------------------------


def find(folders: Sequence[Path]) -> list[Path]:
    """Run folders with jobs, in and below some folders. Links, code and checkpoints are not gone into."""
    found: list[Path] = []
    waiting = [(folder, 0) for folder in folders]
    while waiting:
        folder, depth = waiting.pop()
        if (folder / book.FILE).is_file():
            found.append(folder.absolute())
        try:
            inner = [Path(e.path) for e in os.scandir(folder) if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        if depth < _DEEP:
            waiting += [(path, depth + 1) for path in inner if path.name not in ("slurm", "checkpoints", "code")]
    return sorted(set(found))


def rows(folders: Sequence[Path] | None = None, every: bool = False) -> list[Row]:
    """Jobs of the runs in `folders`, the newest first.

    Args:
        folders: None: those in ./runs, and of all my jobs that SLURM has, wherever their folders are.
        every: also jobs whose run has a newer one of the same kind.

    Raises:
        ConfigError: a folder does not exist, or SLURM does not answer.
    """
    for folder in folders or ():
        if not folder.is_dir():
            raise ConfigError(f"no such folder: {folder}. Give one with runs in it")
    seen = queue.mine()
    if folders is None:
        queued = {root for s in seen.values() if (root := queue.root_of(s.comment)) is not None}
        folders = [Path("runs"), *sorted(queued)]
    entries = [entry for run in find(folders) for entry in (book.read(run) if every else newest(book.read(run)))]
    found = states(entries, seen)
    made = [_row(entry, found[id(entry)]) for entry in sorted(entries, key=lambda e: e.time, reverse=True)]
    return made


def newest(entries: Sequence[Entry]) -> list[Entry]:
    """The last job of each kind: training, the probe by some suite, ..."""
    return list({entry.key: entry for entry in entries}.values())


def states(entries: Sequence[Entry], seen: Mapping[str, Seen]) -> dict[int, Seen]:
    """What is known of each entry's job, by the entry's identity."""
    found = {id(entry): entry.seen(seen) for entry in entries}
    old = [entry for entry in entries if found[id(entry)] is None]
    last = {entry.job: entry for entry in sorted(old, key=lambda e: e.time)}  # of several that had one id
    kept = queue.ended((e.job, str(e.values.get("name", "")), e.time) for e in last.values())
    out = {}
    for entry in entries:
        known = found[id(entry)] or (kept.get(entry.job) if last.get(entry.job) is entry else None)
        out[id(entry)] = known or Seen("COMPLETED" if _complete(entry) else GONE)
    return out


def _complete(entry: Entry) -> bool:
    """Whether a run's own files say that it is at its end."""
    steps = entry.values.get("steps")
    return steps is not None and (_progress(entry.run_dir).get("step") or -1) >= steps


def _row(entry: Entry, seen: Seen) -> Row:
    verb = str(entry.values.get("verb"))
    training = verb == "train"
    now = _progress(entry.run_dir) if training else {}
    step, total = now.get("step"), entry.values.get("steps")
    pace, eta = now.get("step_seconds"), None
    if seen.state == "RUNNING" and pace and total and step is not None:
        eta = max(0.0, (total - step) * pace)
    return Row(
        run=_short(entry.run_dir),
        job=entry.job,
        verb=verb if verb in ("train", "extract", "data build") else entry.key,  # others: with the suite
        state=seen.state,
        submitted=str(entry.values["time"]),
        step=step,
        total=total,
        loss=now.get("loss"),
        eta_seconds=eta,
        restarts=restarts(entry.run_dir) if training else 0,
        node=seen.node,
        reason=seen.reason,
        last=last_line(entry),
        log=str(entry.log(errors=True)),
    )


def _short(path: Path) -> str:
    """As the user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# --- the run's own files ----------------------------------------------------------------------------------------------


def _progress(run_dir: Path) -> dict[str, Any]:
    """Step, loss and seconds of a step in the last lines of metrics.jsonl that have them."""
    found: dict[str, Any] = {}
    for line in reversed(_end(run_dir / "metrics.jsonl")):
        try:
            values = json.loads(line)
        except ValueError:  # cut off, at the start of what was read or at its end
            continue
        for name in ("step", "loss", "step_seconds"):
            if found.get(name) is None and isinstance(values.get(name), int | float):
                found[name] = values[name]
        if len(found) == 3:
            break
    return found


def restarts(run_dir: Path) -> int:
    """Times that the run was started again, by SLURM or by hand."""
    try:
        return max(0, len((run_dir / "restarts.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()) - 1)
    except OSError:
        return 0


def last_line(entry: Entry) -> str:
    """Of the log that was written to last; progress lines are on standard error."""
    best, when = "", -1.0
    for errors in (False, True):
        path = entry.log(errors=errors)
        lines = [line.strip() for line in _end(path) if line.strip() and not line.startswith("submitit INFO")]
        try:
            changed = path.stat().st_mtime
        except OSError:
            continue
        if lines and changed >= when:
            best, when = lines[-1], changed
    return best


def _end(path: Path) -> list[str]:
    """Lines at the end of a file; none of a file that is not there."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _TAIL))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


# --- for people -------------------------------------------------------------------------------------------------------


def table(found: Sequence[Row]) -> Table:
    """The rows as a table."""
    made = Table(box=None, pad_edge=False, header_style="bold", expand=True)  # the last line gets what others leave
    right = {"justify": "right", "no_wrap": True}
    rest = {"overflow": "ellipsis", "no_wrap": True, "ratio": 1, "min_width": 24}
    for name, how in (
        ("run", {"overflow": "fold"}), ("job", {"no_wrap": True}), ("verb", {"no_wrap": True}),
        ("state", {"no_wrap": True}), ("step", right), ("loss", right), ("ETA", right), ("restarts", right),
        ("node", {"no_wrap": True}), ("last line", rest),
    ):  # fmt: skip
        made.add_column(name, **how)
    for row in found:
        steps = "" if row.step is None and row.total is None else f"{row.step or 0}/{row.total or '?'}"
        eta = "" if row.eta_seconds is None else str(timedelta(seconds=round(row.eta_seconds)))
        why = f"({row.reason})" if row.state == "PENDING" and row.reason else ""
        made.add_row(
            Text(row.run), row.job, row.verb, Text(row.state, style=_COLOURS.get(row.state, "" if row.live else "red")),
            steps, "" if row.loss is None else f"{row.loss:.4f}", eta, str(row.restarts or ""), row.node,
            Text(f"{why} {row.last}".strip()),
        )  # fmt: skip
    return made


def as_json(found: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows for programs."""
    return [dataclasses.asdict(row) for row in found]


# --- one run's jobs ---------------------------------------------------------------------------------------------------


def of_run(run: Path, job: str | None = None) -> Entry:
    """The newest job of a run, or the one with an id.

    Raises:
        ConfigError: there is none.
    """
    entries = book.read(run)
    if not entries:
        below = find([run]) if run.is_dir() else []
        if below:
            raise ConfigError(f"{run} holds {len(below)} runs with jobs: give one, such as {_short(below[0])}")
        raise ConfigError(f"{run} has no jobs: nothing was submitted there. See all with `jepa jobs`")
    chosen = [entry for entry in entries if job in (None, entry.job)]
    if not chosen:
        raise ConfigError(f"{run} has no job {job}. It has: {', '.join(entry.job for entry in entries)}")
    return chosen[-1]


def follow(
    entry: Entry, out: Callable[[str], None], task: int = 0, errors: bool = False, lines: int = 40, go_on: bool = False
) -> None:
    """Give the end of a job's logs to `out`, and with `go_on` what is added until the job ends.

    The rank that failed first comes first: what the others say of it, and of each other, only follows from that.

    Raises:
        ConfigError: there are no logs, and there will be none.
    """
    paths = [entry.log(task, kind) for kind in ((True,) if errors else (False, True))]
    there = any(path.is_file() for path in paths)
    # logs are files: only where there are none, or for more of them, is SLURM asked
    seen = entry.seen(queue.mine()) if (go_on or not there) and queue.available() else None
    if not there and not (go_on and seen is not None and seen.live):
        others = sorted(int(p.name.split("_")[-2]) for p in paths[0].parent.glob(f"{entry.job}_*_log.err"))
        known = f" There are logs of processes {', '.join(map(str, others))}." if others else ""
        waits = f" It is {seen.state.lower()}{f' ({seen.reason})' if seen.reason else ''}." if seen else ""
        raise ConfigError(f"job {entry.job} has no log of process {task} yet: {paths[0]}.{waits}{known}")
    out(failure(entry, lines))
    places = dict.fromkeys(paths, 0)
    for path in paths:
        if path.is_file():
            for line in _end(path)[-lines:]:
                out(line + "\n")
            places[path] = path.stat().st_size
    asked = time.monotonic()
    while go_on:
        news = [_news(path, places) for path in paths]
        for text in filter(None, news):
            out(text)
        if not any(news) and time.monotonic() - asked > _ASK:
            asked, seen = time.monotonic(), entry.seen(queue.mine())
            if seen is None or not seen.live:
                for path in paths:  # what came while SLURM was asked
                    out(_news(path, places))
                out(f"job {entry.job}: {seen.state if seen is not None else 'ended'}\n")
                return
        time.sleep(_POLL)


def failure(entry: Entry, lines: int = 40) -> str:
    """What the first rank to fail of the newest start of a job had to say; empty when none did."""
    found = [p for p in ends.failures(entry.run_dir) if p.stat().st_mtime >= entry.time.timestamp()]
    if not found:
        return ""
    rank = found[0].stem.rpartition("-rank")[2]
    text = found[0].read_text(encoding="utf-8", errors="replace").splitlines()
    head, rest = text[:1], text[1:]
    left = f"... {len(rest) - lines} lines above, in {_short(found[0])}\n" if len(rest) > lines else ""
    others = f" (and {len(found) - 1} more after it)" if len(found) > 1 else ""
    return (
        f"rank {rank} failed{others}: {''.join(head)}\n{left}" + "".join(f"{line}\n" for line in rest[-lines:]) + "\n"
    )


def _news(path: Path, places: dict[Path, int]) -> str:
    """What was added to a file since it was last looked at."""
    try:
        with path.open("rb") as stream:
            stream.seek(places[path])
            found = stream.read()
    except OSError:
        return ""
    places[path] += len(found)
    return found.decode("utf-8", "replace")


def cancel(run: Path, job: str | None = None) -> list[str]:
    """Cancel the live jobs of a run, or of all runs below a folder. Training saves before it ends.

    Returns:
        Ids.

    Raises:
        ConfigError: there is no live one, or SLURM refuses.
    """
    entries = _live(run, job, "cancel")
    queue.call("scancel", *[entry.job for entry, _ in entries])
    return [entry.job for entry, _ in entries]


def requeue(run: Path, job: str | None = None) -> dict[str, str]:
    """Let running jobs, or one that failed minutes ago, go on from their last checkpoint; waiting ones start at once.

    Returns:
        A sentence for each job, by its id.

    Raises:
        ConfigError: there is no live one, or SLURM refuses.
    """
    told = {}
    for entry, seen in _live(run, job, "requeue"):
        if seen.state == "PENDING":
            # nodes refuse what SLURM has signed before, or in the very second in which, they have ended the last start
            queue.call("scontrol", "update", f"JobId={entry.job}", "StartTime=now+2")
            told[entry.job] = f"job {entry.job} was waiting already; it starts as soon as there is room"
        else:
            queue.call("scontrol", "requeue", entry.job)
            stops = "stops and " if seen.live else ""
            told[entry.job] = f"job {entry.job} {stops}goes on from its last checkpoint when SLURM starts it again"
    return told


def _live(run: Path, job: str | None, what: str) -> list[tuple[Entry, Seen]]:
    runs = find([run]) if job is None and run.is_dir() and not (run / book.FILE).is_file() else [run]
    entries = [of_run(run, job)] if job is not None or not runs else [e for r in runs for e in book.read(r)]
    entries = entries or [of_run(run)]  # which says that there is none, before SLURM is asked
    seen = queue.mine()
    found = [(e, s) for e in entries if (s := e.seen(seen)) is not None and s.live]
    if what == "requeue" and not found:  # SLURM starts an ended job again while it remembers it
        ended = entries[-1].seen(seen)
        found = [(entries[-1], ended)] if ended is not None and ended.state != "COMPLETED" else []
    if not found:
        last = entries[-1]
        state = states([last], seen)[id(last)].state
        again = f"jepa submit train {_short(last.run_dir)} --resume --cluster NAME"
        hint = f". Submit it again: {again}" if what == "requeue" and last.key == "train" else ""
        raise ConfigError(f"nothing to {what} in {run}: its last job, {last.job}, is {state}{hint}")
    return found


__all__ = ["Row", "as_json", "cancel", "find", "follow", "last_line", "of_run", "requeue", "restarts", "rows", "table"]
