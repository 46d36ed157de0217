"""`jepa data`: build a data set from a recipe, look at one, check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jepa.errors import FOUND
from jepa.options import Json, Overrides, complete, settings_of
from jepa.terminal import print_json

data_app = typer.Typer(help="Build a data set from a recipe, look at one, or check one.", no_args_is_help=True)
_SHOWN = 20  # lines of findings that are printed


@data_app.command("build")
def build(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe: a YAML file or a shipped one (digits).", autocompletion=complete("datasets")),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the data set to.")],
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(help="Processes that encode images or look through tars; 0: this one.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn what a recipe names into shards and a manifest. Run again after an interruption to go on."""
    from jepa.data.build import build as run
    from jepa.data.facts import facts

    manifest = run(recipe, out, overrides=overrides, workers=workers)
    if as_json:
        return print_json(facts(manifest))
    for name, split in manifest.splits.items():
        typer.echo(f"{name}: {len(split)} {manifest.media}s in {len(split.shard_sizes)} shards")
    for note in manifest.notes:
        typer.echo(f"note: {note}")
    if manifest.bad_count:
        first = manifest.bad[0]
        typer.echo(f"left out {manifest.bad_count} {manifest.media}s, such as {first['source']}: {first['reason']}")
    typer.echo(f"{out} is ready; look at it with `jepa data show {out}`")


@data_app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="A folder made by `jepa data build`.")],
    picture: Annotated[Path | None, typer.Option(help="PNG file of the contact sheet; default: in the folder.")] = None,
    as_json: Json = False,
) -> None:
    """Print counts and sizes of a data set and write a contact sheet."""
    from jepa.data.show import show as run

    found = run(folder, picture)
    print_json(found.values) if as_json else typer.echo(found.text)


@data_app.command("check")
def check(
    place: Annotated[
        Path,
        typer.Argument(help="A built data set; a folder of images, videos or archives; a list of videos; a recipe."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: PLACE/check or NAME-check.")
    ] = None,
    clean: Annotated[Path | None, typer.Option(help="Write the list of usable samples here too.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 4 when anything is found that a clean list leaves out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at every sample, in processes that may be killed, and at all of them together.

    Broken, slow, too short, of varying rate, lying, odd; the same twice, within a split or across splits; classes and
    sizes. Settings of the check: workers, limit, decode, min_frames, min_seconds, clip, min_side, max_aspect, near,
    keep. Other KEY=VALUE change the recipe.
    """
    from dataclasses import fields

    from jepa.data import storage
    from jepa.data.check.run import PAGE
    from jepa.data.check.run import check as run
    from jepa.data.video.scan import ScanConfig
    from jepa.report.datacheck import write

    names = {field.name for field in fields(ScanConfig)}
    own = [given for given in overrides or [] if given.partition("=")[0].partition(".")[0] in names]
    found = run(place, settings_of(ScanConfig, own), out, [o for o in overrides or [] if o not in own], show=True)
    page = write(found)
    if clean is not None:
        with storage.written_to(clean.parent, then="--clean names the list"):
            clean.parent.mkdir(parents=True, exist_ok=True)
            storage.write_atomic(clean, (found.folder / "clean.txt").read_bytes())
    print_json(found.values) if as_json else _print(found, page, clean or found.folder / "clean.txt")
    assert page.name == PAGE
    if (strict and found.bad) or not found.usable:
        raise typer.Exit(FOUND)


def _print(found: Any, page: Path, clean: Path) -> None:
    """What was found, for people."""
    import json

    from jepa.report.datacheck import headline, lines

    with (found.folder / "findings.jsonl").open(encoding="utf-8") as file:
        shown = [json.loads(line) for _, line in zip(range(_SHOWN), file, strict=False)]
    for row in shown:
        typer.echo(f"{row['status']}: {row['path']}: {'; '.join(row['findings'].values())}")
    if len(shown) == _SHOWN:
        typer.echo(f"... all of them are in {found.folder / 'findings.jsonl'}")
    typer.echo(headline(found))
    for line in lines(found):
        typer.echo(f"  {line}")
    typer.echo(f"{page} and {found.folder / 'contact-sheet.png'} show it")
    typer.echo(f"{found.usable} usable samples listed in {clean}: jepa data build ... clean={clean}")
