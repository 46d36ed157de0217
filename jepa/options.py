"""Options that verbs share, and those of verbs that have many: their types and what `--help` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jepa import resources, verbosity
from jepa.errors import ConfigError

if TYPE_CHECKING:
    from jepa.config import Duration, RunConfig

T = TypeVar("T")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file, as section.key=value."),
]


def complete(kind: str) -> Callable[[str], list[str]]:
    """For the shell's completion: names of shipped files of a kind that begin like this, and paths that do."""

    def found(incomplete: str) -> list[str]:
        names = [name for name in resources.names(kind) if name.startswith(incomplete)]
        above, slash, begun = incomplete.rpartition("/")
        folder = Path(above + slash or ".")
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        paths = [p for p in inside if p.name.startswith(begun) and (begun or not p.name.startswith("."))]
        return [*names, *(f"{above}{slash}{p.name}{'/' if p.is_dir() else ''}" for p in paths)]

    return found


def _json_alone(context: typer.Context, wanted: bool) -> bool:
    """Standard output is for the document; everything else goes to standard error."""
    if wanted and not context.resilient_parsing:
        verbosity.keep_stdout()
        context.call_on_close(verbosity.give_stdout_back)
    return wanted


Json = Annotated[
    bool, typer.Option("--json", callback=_json_alone, help="Print one JSON document (docs/json.md) instead of text.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the fastest here.")]

# `jepa extract`
Which = Annotated[str | None, typer.Option(help="Encoder: target or context. Default: the one the method exports.")]
Tokens = Annotated[
    bool, typer.Option("--tokens/--pooled", help="Keep the N tokens too, or only their mean (N times smaller).")
]
Layers = Annotated[
    str, typer.Option(metavar="N,N", help="These layers too, besides the output; -1 is the last: --layers=-4,-3,-2,-1")
]
Splits = Annotated[str, typer.Option(metavar="NAME,NAME", help="Splits of the data set. Default: all.")]
Dtype = Annotated[str, typer.Option(help="Of the numbers written: fp32, fp16 or bf16.")]
Precision = Annotated[str, typer.Option(help="Of the encoder's arithmetic: fp32 or bf16.")]
Frames = Annotated[int | None, typer.Option(help="Videos: frames of a clip. Default: as in the run, like its spacing.")]
Fps = Annotated[float | None, typer.Option(help="Videos: frames of a clip a second.")]
Stride = Annotated[int | None, typer.Option(help="Videos: every so many-th frame.")]
Span = Annotated[float | None, typer.Option("--duration", help="Videos: seconds that a clip's frames are spread over.")]
Short = Annotated[str | None, typer.Option(help="Videos shorter than a clip: pad, loop or skip. Default: the run's.")]
Clips = Annotated[int, typer.Option(help="Videos: clips of each, spread over it.")]
Views = Annotated[
    list[str] | None,
    typer.Option(metavar="N or SPLIT=N", help="Videos: views of a clip along the longer side; repeatable. Default: 1."),
]
Batch = Annotated[int, typer.Option(help="Samples at a time.")]
Workers = Annotated[int, typer.Option(help="Decoding processes.")]
ShardSamples = Annotated[int, typer.Option(help="Most samples in a shard.")]
ShardBytes = Annotated[int, typer.Option(help="Most bytes of features in a shard.")]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard-of", metavar="I/N", help="This command's share, from 0: 0/4 to 3/4. Default: as RANK says."),
]


def settings_of(cls: type[T], overrides: list[str] | None) -> T:
    """A dataclass of settings from KEY=VALUE.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    from jepa import config

    return config.build(cls, config.override({}, overrides or []))


def run_settings(
    name: str, overrides: list[str], out: Path | None, debug: bool, trackers: list[str]
) -> tuple[RunConfig, Path]:
    """What `jepa train` trains, and the run folder.

    Raises:
        ConfigError: no such configuration, an unknown key, a wrong value.
    """
    from jepa import config

    run_folder = Path(name) if (Path(name) / "config.yaml").is_file() else None
    if trackers:
        overrides = [f"train.trackers={json.dumps(['tensorboard', *trackers])}", *overrides]
    settings = config.load(run_folder / "config.yaml" if run_folder else name, overrides, ["debug"] if debug else None)
    return settings, out or run_folder or Path("runs") / (f"{settings.name}-debug" if debug else settings.name)


def check_data_given(settings: RunConfig, name: str) -> None:
    """The mistake that everybody makes first.

    Raises:
        ConfigError: no data set; says how to come by one.
    """
    if not settings.data.path:
        raise ConfigError(
            "data.path is empty: give the folder of a data set. Build one first, for example "
            f"`jepa data build digits --out data/digits`, then `jepa train {name} data.path=data/digits`"
        )


def duration(text: str) -> Duration:
    """What --extend is given: epochs=50.

    Raises:
        ConfigError: anything else.
    """
    from jepa import config

    return config.build(config.Duration, config.override({}, [text]), "--extend")


def extract_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `jepa extract`, by name, as `jepa.extract.ExtractConfig` takes them.

    Raises:
        ConfigError: --layers that are no numbers.
    """
    same = (
        *("which", "tokens", "dtype", "precision", "frames", "fps", "stride", "duration", "short", "clips", "batch"),
        *("workers", "shard_samples", "shard_bytes"),
    )
    return {name: given[name] for name in same} | {
        "layers": numbers(given["layers"], "--layers"),
        "splits": [name for name in given["splits"].split(",") if name],
        "views": given["views"] or [],
    }


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between them.

    Raises:
        ConfigError: anything else.
    """
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"{option} {text!r}: give whole numbers with commas, e.g. {option}=0,-1") from None


def share(text: str | None) -> tuple[int, int] | None:
    """I/N, from 0.

    Raises:
        ConfigError: anything else.
    """
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        last = max(int(parts) - 1, 0) if parts.isdigit() else "N-1"
        raise ConfigError(f"--shard-of {text!r}: give I/N with I from 0 to {last}, e.g. 0/4 for the first of four")
    return int(part), int(parts)
