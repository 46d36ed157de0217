"""The import order of DESIGN: a file imports only from entries above it, and from inside functions hardly ever."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.hygiene.tree import PACKAGE, modules

# Top to bottom. A file may import from its own entry and from those above it, never from one below.
TRAINING = (
    "environment",
    "interrupt",
    "world",
    "rundir",
    "progress",
    "watchdog",
    "restarts",
    "attempts",
    "record",
    "guard",
    "sharding",
    "prepare",
    "launch",
    "saver",
    "health",
)
ORDER = (
    *(
        "errors",
        "verbosity",
        "keyed",
        "jsonl",
        "resources",
        "strict",
        "config",
        "suites",
        "phases",
        "data",
        "masks",
        "nn",
        "losses",
        "ema",
    ),
    *("methods", "optim", "checkpoint", "export", "monitor", "energy", "cost", "probe", "rollout", "plan", *TRAINING),
    *("options", "extract", "train", "slurm", "watch", "report", "bench"),
    *(
        "doctor",
        "demo",
        "terminal",
        "cli_bench",
        "cli_data",
        "cli_export",
        "cli_plan",
        "cli_rollout",
        "cli_slurm",
        "cli_watch",
        "cli",
    ),
    "__main__",
)

# Who may import inside functions, and what. "*" is anything: the command line stays light that way.
INSIDE_FUNCTIONS: dict[str, set[str]] = {
    "cli.py": {"*"},
    "cli_bench.py": {"*"},
    "cli_data.py": {"*"},
    "cli_export.py": {"*"},
    "cli_plan.py": {"*"},
    "cli_rollout.py": {"*"},
    "cli_slurm.py": {"*"},
    "cli_watch.py": {"*"},
    "options.py": {"jepa.config"},  # likewise
    "__init__.py": {"jepa.export.load"},  # jepa.load_encoder, looked up on first use
    "data/encode.py": {"jepa.data.video"},  # needs PyAV, which images do without
    "data/sources/digits.py": {"sklearn.datasets"},  # half a second for the embedded data set alone
    "doctor.py": {"torch", "PIL", "jepa.data"},  # looks at installations in which these do not import
    "terminal.py": {"rich.console", "jepa.doctor"},  # a tenth of a second that `jepa --help` does without
    "methods/base.py": {"jepa.methods"},  # the package it lists
}
OPTIONAL = {
    "timm",
    "transformers",
    "av",
    "torchcodec",
    "decord",
    "pyarrow",
    "huggingface_hub",
    "datasets",
    "fsspec",
    "aiohttp",
    "gymnasium",
    "gymnasium_robotics",
    "ale_py",
    "h5py",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "stable_worldmodel",
    "submitit",
    "pynvml",
}  # extras: any file may import them where they are used
PLATFORM = {"fcntl", "resource"}  # modules that only some operating systems have


def imports(tree: ast.Module) -> list[tuple[int, str, bool]]:
    """(line, dotted module, inside a function) of every import; `from jepa import x` counts as `jepa.x`."""
    found: list[tuple[int, str, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: write the whole name, not a relative import"
                if child.module == "jepa":
                    found.extend((child.lineno, f"jepa.{alias.name}", inside) for alias in child.names)
                else:
                    found.append((child.lineno, str(child.module), inside))
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, False)
    return found


def entry_of(path: str) -> str:
    """`data/order.py` -> data, `optim.py` -> optim."""
    return path.split("/")[0].removesuffix(".py")


def violations(package: Path) -> list[str]:
    """One line for every import that breaks a rule."""
    problems: list[str] = []
    for path, source in modules(package):
        own = entry_of(path)
        if own != "__init__" and own not in ORDER:
            problems.append(f"{path}: {own!r} has no place in ORDER")
            continue
        for line, module, inside in imports(ast.parse(source)):
            top, *rest = module.split(".")
            below = rest[0] if top == "jepa" and rest and rest[0] in ORDER else None
            if below and own != "__init__" and ORDER.index(below) > ORDER.index(own):
                problems.append(f"{path}:{line}: {own} imports {below}, which is below it")
            if inside and not _allowed_inside(path, module):
                problems.append(f"{path}:{line}: imports {module} inside a function")
    return problems


def _allowed_inside(path: str, module: str) -> bool:
    allowed = INSIDE_FUNCTIONS.get(path, set()) | OPTIONAL | PLATFORM
    return "*" in allowed or any(module == a or module.startswith(f"{a}.") for a in allowed)


def test_every_file_keeps_the_order() -> None:
    assert violations(PACKAGE) == []


def test_the_check_sees_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.py").write_text("from jepa import train\nfrom jepa.config import load\n")
    (tmp_path / "config.py").write_text("from jepa.data.order import Order\nimport jepa.errors\n")
    (tmp_path / "masks.py").write_text("def f():\n    import torch\n    import timm\n")
    (tmp_path / "helpers.py").write_text("")
    assert sorted(violations(tmp_path)) == [
        "config.py:1: config imports data, which is below it",
        "data/a.py:1: data imports train, which is below it",
        "helpers.py: 'helpers' has no place in ORDER",
        "masks.py:2: imports torch inside a function",
    ]
