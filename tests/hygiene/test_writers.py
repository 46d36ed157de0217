"""Whoever writes a file directly, and why that cannot leave half of one that is taken for whole."""

from __future__ import annotations

import ast

from tests.hygiene.tree import PACKAGE, modules

WRITERS = {"write_text", "write_bytes", "save_file", "savez", "open_memmap"}
WITH_A_FILE = {"torch.save", "np.save", "np.savez", "shutil.copyfile"}

IN_A_FOLDER = "inside a folder that is renamed when it is whole"
RENAMED = "under a temporary name, synced, renamed"
LINES = "appends lines; one that was cut off is dropped when they are read"
MEMORY = "into memory"
BENCH = "a benchmark's own temporary folder"

# Everything else goes through jepa.data.storage.write_atomic.
DIRECT = {
    "bench/disturb.py": BENCH,
    "bench/films.py": BENCH,
    "bench/grow.py": BENCH,
    "bench/interrupt.py": BENCH,
    "bench/memory.py": "a switch of the kernel",
    "bench/photos.py": BENCH,
    "bench/small.py": BENCH,
    "checkpoint/folder.py": IN_A_FOLDER,
    "checkpoint/io.py": IN_A_FOLDER,
    "data/arrays.py": MEMORY,
    "data/assemble.py": MEMORY,
    "data/check/run.py": "findings.jsonl is for people; what is read again, clean.txt, is written last and whole",
    "data/journal.py": LINES,
    "data/quarantine.py": LINES,
    "data/remote.py": RENAMED,
    "data/shards.py": RENAMED,
    "data/storage.py": RENAMED,
    "data/video/choose.py": MEMORY,
    "data/video/cut.py": MEMORY,
    "data/video/write.py": MEMORY,
    "demo.py": "a summary for people",
    "export/official.py": IN_A_FOLDER,
    "export/to_safetensors.py": IN_A_FOLDER,
    "export/to_timm.py": IN_A_FOLDER,
    "export/to_torch.py": IN_A_FOLDER,
    "export/to_transformers.py": IN_A_FOLDER,
    "export/write.py": IN_A_FOLDER,
    "extract/work.py": "a lock, and arrays into memory",
    "plan/journal.py": LINES,
    "probe/features.py": RENAMED,
    "probe/tokens.py": RENAMED,
    "restarts.py": LINES,
    "rollout/pictures.py": "pictures, drawn before the result that names them",
    "rundir.py": LINES,
    "slurm/ends.py": "a record that cannot be read counts as none",
    "slurm/snapshot.py": IN_A_FOLDER,
    "slurm/submit.py": "the resolved configuration, before anything is queued",
    "slurm/task.py": "a crash file for people",
    "watchdog.py": "stacks for people",
}


def test_who_writes_directly() -> None:
    found = {name for name, source in modules(PACKAGE) if any(map(_writes, ast.walk(ast.parse(source))))}
    assert found == set(DIRECT), f"new: {sorted(found - set(DIRECT))}; gone: {sorted(set(DIRECT) - found)}"


def _writes(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    if name == "open":
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
        return any(mode.strip("b+t") in ("w", "a", "x") for mode in modes)
    return name in WRITERS or (isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in WITH_A_FILE)
