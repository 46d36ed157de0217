"""From checked work to queued jobs: code and configuration are copied, submitit calls sbatch, jobs are written down.

Nothing is left behind when SLURM refuses: it is asked before anything is written, and what was written before it
refused after all is taken away again.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jepa import config, rundir
from jepa.errors import ConfigError
from jepa.slurm import book, queue, snapshot
from jepa.slurm.book import Entry
from jepa.slurm.check import CONFIG, Work
from jepa.slurm.task import SETUP, Task, teardown

_MANY = 10_000  # starts after a time limit, which submitit counts: as many as it takes


@dataclass(frozen=True)
class Submission:
    """Works that go to SLURM as one job, or as one array; checked, not yet submitted."""

    works: tuple[Work, ...]
    root: Path  # absolute; the run folder, or the folder of a sweep's runs
    stamp: str  # names what this submission leaves there

    @property
    def folder(self) -> Path:
        """Of scripts, pickles and logs; one for each submission, because job ids may come again."""
        return self.root / "slurm" / "logs" / self.stamp

    def config(self, work: Work) -> Path:
        """The resolved configuration that the job reads."""
        return work.run_dir / "slurm" / "configs" / f"{self.stamp}.yaml"

    def argv(self, work: Work) -> tuple[str, ...]:
        """Of the job, without `jepa`."""
        return tuple(str(self.config(work)) if word == CONFIG else word for word in work.argv)

    def entry(self, work: Work) -> dict[str, Any]:
        """What jobs.jsonl says about a work, but for its job."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stamp": self.stamp,
            "root": str(self.root),
            "name": self.works[0].name,
            "verb": work.verb,
            "key": work.key,
            "argv": list(self.argv(work)),
            "steps": work.steps,
            "logs": str(self.folder),
            "profile": config.to_dict(work.profile),
        }


def prepare(works: Sequence[Work], root: Path | None = None) -> Submission:
    """A submission of works that differ in nothing but their settings; `root` is the folder of a sweep."""
    assert works, "nothing to submit"
    assert all(work.profile == works[0].profile for work in works), "one array, one request"
    folder = (root or works[0].run_dir).absolute()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    number, own = 1, stamp
    while (folder / "slurm" / "logs" / own).exists():
        number, own = number + 1, f"{stamp}-{number + 1}"
    return Submission(tuple(works), folder, own)


def script(submission: Submission) -> str:
    """The text that sbatch is given. Needs no SLURM and writes nothing."""
    executor = _executor(submission, snapshot.place(submission.root / "slurm" / "code", _methods(submission)))
    if len(submission.works) > 1:
        executor.parameters["map_count"] = len(submission.works)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(submission: Submission) -> list[Entry]:
    """Submit, as one job or as one array.

    Returns:
        What was written to each work's RUN/slurm/jobs.jsonl.

    Raises:
        ConfigError: SLURM refuses, in its own words, or something else runs in a run folder.
    """
    queue.needed()
    with _undone(submission) as keep, rundir.lock(submission.root / "slurm"):
        check_free(submission)
        queue.test(script(submission))
        code = snapshot.take(submission.root / "slurm" / "code", _methods(submission))
        tasks = [_write(submission, work) for work in submission.works]
        jobs = _sbatch(_executor(submission, code), tasks)
        keep()
        return [
            book.add(work.run_dir, submission.entry(work) | {"job": job, "code": code.name})
            for work, job in zip(submission.works, jobs, strict=True)
        ]


def check_free(submission: Submission) -> None:
    """Whether nothing else writes, or will write, what these works write.

    Raises:
        ConfigError: a job does, named by its id, or a process on this machine.
    """
    seen = queue.mine()
    for work in submission.works:
        book.free(work.run_dir, work.key, seen)
        if work.verb == "train" and (work.run_dir / ".lock").is_file():
            with rundir.lock(work.run_dir):  # a process outside of SLURM
                pass


def _write(submission: Submission, work: Work) -> Task:
    """The resolved configuration, and what the job runs."""
    if work.text:
        file = submission.config(work)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(work.text, encoding="utf-8")
    (work.run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    return Task(submission.argv(work), str(work.run_dir), work.profile.max_restarts, work.profile.step_seconds)


def _methods(submission: Submission) -> tuple[str, ...]:
    return tuple(sorted({work.method for work in submission.works}))


# --- submitit -----------------------------------------------------------------------------------------------------


def _executor(submission: Submission, code: Path) -> Any:
    """submitit's, which writes scripts also where there is no SLURM."""
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise ConfigError("jepa submit needs submitit: pip install 'jepa[slurm]'") from None

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2

    work = submission.works[0]
    remark = queue.comment(submission.stamp, submission.root)
    executor = Executor(submission.folder, max_num_timeout=_MANY, python=work.profile.python)
    parameters = work.profile.parameters(work.name, remark, (code,))
    parameters["setup"] = [*SETUP, *parameters["setup"]]
    executor.update_parameters(**parameters, teardown=teardown(executor.folder))
    return executor


def _sbatch(executor: Any, tasks: list[Task]) -> list[str]:
    """Job ids.

    Raises:
        ConfigError: sbatch failed, in SLURM's own words.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    said = io.StringIO()  # submitit prints what it raises as well
    try:
        with _environment(), contextlib.redirect_stderr(said):
            return [str(job.job_id) for job in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(f"SLURM refuses the job: {queue.words(str(error)) or queue.words(said.getvalue())}") from None
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or executor.folder}: {error.strerror or error}") from None


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """sbatch hands the environment down to the job; see `queue.environment`."""
    before = dict(os.environ)
    wanted = queue.environment()
    try:
        for name in before.keys() - wanted.keys():
            del os.environ[name]
        yield
    finally:
        os.environ.update(before)


# --- all or nothing -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _undone(submission: Submission) -> Iterator[Any]:
    """Take away what was written inside, unless the function it gives was called."""
    kept = []
    roots = {submission.root, *(work.run_dir for work in submission.works)}
    code = submission.root / "slurm" / "code"
    before = set(code.iterdir()) if code.is_dir() else set()
    missing = sorted(_missing(roots), key=lambda path: -len(path.parts))
    try:
        yield lambda: kept.append(True)
    finally:
        if not kept:
            shutil.rmtree(submission.folder, ignore_errors=True)
            for path in set(code.iterdir()) - before if code.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True)
            for work in submission.works:
                submission.config(work).unlink(missing_ok=True)
            if submission.root / "slurm" in missing:
                (submission.root / "slurm" / ".lock").unlink(missing_ok=True)
            for path in missing:  # the deepest first; one that something else has filled stays
                with contextlib.suppress(OSError):
                    path.rmdir()


def _missing(roots: set[Path]) -> set[Path]:
    """Folders that the submission will have to make."""
    inner = {root / "slurm" / name for root in roots for name in ("", "code", "configs", "logs")}
    every = {parent for path in inner for parent in (path, *path.parents)}
    return {path for path in every if not path.exists()}


__all__ = ["Submission", "check_free", "prepare", "script", "submit"]
