"""The page of `jepa data check`: one HTML file that needs nothing else, and the same in words for the terminal."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jepa.data import storage
from jepa.data.check.run import PAGE, SHOWN, Result
from jepa.errors import DataError
from jepa.report.markup import Html, count, duration, html, join, number, percent
from jepa.report.page import Section, missing, render

_ROWS = 100  # of a table on the page
_CLASSES = 60
_SAID = {
    "broken": "do not decode",
    "slow": "took longer than the limit, and were stopped",
    "lying": "have a header that claims another length than there is",
    "short": "have too few frames or seconds",
    "odd": "are black, one colour, without motion, or of an odd size or shape; of episodes: numbers not finite, or "
    "actions that never change",
    "variable": "have frames that are not shown equally long; times are exact all the same",
    "duplicate": "are equal, byte by byte, to one that is kept",
    "near": "look like one that is kept: smaller, compressed anew, or much the same picture. A guess: look at them",
}


def headline(found: Result) -> str:
    """One sentence: how many, and how many are usable."""
    values = found.values
    return (
        f"{values['samples']} {values['what']}: {found.usable} usable, "
        + (", ".join(f"{n} {name}" for name, n in values["findings"].items() if n) or "nothing found")
    )  # fmt: skip


def lines(found: Result) -> list[str]:
    """What is known of all of them together, a line each."""
    values, out = found.values, []
    for leak in values["leaks"]:
        a, b = leak["splits"]
        if leak["same"] or leak["near"] or leak["originals"]:
            out.append(
                f"{a} and {b} share {count(leak['same'], 'picture')}, {leak['near']} that look alike, and samples of "
                f"{count(leak['originals'], 'original')}"
            )
        else:
            out.append(f"{a} and {b} share nothing")
    if values["contradictions"]:
        out.append(f"{count(values['contradictions'], 'picture')} with more than one label")
    classes = values["classes"]
    if classes["count"]:
        ratio = classes["largest_over_smallest"]
        uneven = "" if ratio is None else f", the largest {ratio:.3g} times the smallest"
        none = f", {len(classes['empty'])} without a sample" if classes["empty"] else ""
        out.append(f"{classes['count']} classes{uneven}{none}")
    sizes = values["sizes"]
    if "height" in sizes:
        out.append(
            "height x width in pixels: "
            + " to ".join(f"{sizes['height'][q]:.0f}x{sizes['width'][q]:.0f}" for q in ("min", "median", "max"))
            + " (least, median, most)"
        )
    if "seconds" in sizes:
        seconds = sizes["seconds"]
        out.append(f"{seconds['min']:.2f} to {seconds['max']:.2f} s, {sizes['hours']:.2f} hours in all")
    return out


def write(found: Result) -> Path:
    """Write the page beside the other files of a check.

    Raises:
        DataError: it cannot be written.
    """
    values = found.values
    verdict = "bad" if found.bad else "good"
    header = html(
        '<p class="kicker">Data check</p><h1>{title}</h1><p class="verdict">{verdict}</p>'
        '<ul class="tiles">{tiles}</ul>',
        title=found.title, verdict=f"{headline(found)}.",
        tiles=join([
            _tile(values["samples"], values["what"], "plain"),
            _tile(found.usable, "in the clean list", verdict),
            *(_tile(n, name, "plain" if name in values["kept"] else "bad")
              for name, n in values["findings"].items() if n),
        ]),
    )  # fmt: skip
    sections = [_sheet(found), _findings(found), _leaks(values), _twins(values), _classes(values), _sizes(values)]
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    footer = html("Made by <code>jepa data check</code> on {made}. Everything is in this one file.", made=made)
    page = render(f"{found.title} · data check", header, sections, footer)
    try:
        storage.write_atomic(found.folder / PAGE, page.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(
            f"cannot write {found.folder / PAGE}: {error.strerror or error}. Make room, or name another folder with "
            "--out"
        ) from None
    return found.folder / PAGE


def _tile(value: int, what: str, css: str) -> Html:
    return html('<li class="{css}"><b>{v}</b><span>{w}</span></li>', css=css, v=number(value), w=what)


def _sheet(found: Result) -> Section:
    data = base64.b64encode((found.folder / "contact-sheet.png").read_bytes()).decode("ascii")
    picture = html(
        '<div class="sheet own scroll"><img alt="Samples of every finding" src="data:image/png;base64,{data}"></div>',
        data=data,
    )
    lead = "Some samples of every finding, pairs side by side, then ordinary ones. Red frames are what is found bad."
    return Section("sheet", "Contact sheet", lead, picture)


def _findings(found: Result) -> Section:
    values = found.values
    rows = [
        [name, number(n), _SAID[name] + ("" if name not in values["kept"] else " (kept in the clean list)")]
        for name, n in values["findings"].items()
        if n
    ]
    with (found.folder / "findings.jsonl").open(encoding="utf-8") as file:
        listed = [json.loads(line) for _, line in zip(range(_ROWS), file, strict=False)]
    each = [[r["split"], r["name"], r["status"], "; ".join(r["findings"].values())] for r in listed]
    total = sum(1 for _ in (found.folder / "findings.jsonl").open("rb"))
    more = f"The first {_ROWS} of {total}; all are in findings.jsonl." if total > _ROWS else ""
    body = join([
        _table(["finding", "samples", "what it means: they"], rows) if rows else missing("Nothing was found."),
        _folded(f"Every one of them ({total})", _table(["split", "name", "", "why"], each), more) if each else "",
    ])  # fmt: skip
    return Section("findings", "Findings", "What is to be said of single samples.", body)


def _leaks(values: dict[str, Any]) -> Section:
    rows = [
        [" and ".join(leak["splits"]), number(leak["same"]), number(leak["near"]), number(leak["originals"])]
        for leak in values["leaks"]
    ]
    lead = (
        "A picture that is trained on and tested on makes the test too good. Of pictures that several splits share, a "
        "clean list keeps the one in test, then val, and leaves train out."
    )
    body = (
        _table(["splits", "the same picture", "look alike", "of one original"], rows, numbers=True)
        if rows
        else missing("There is one split only; `jepa data build` cuts val and test out of it.")
    )
    return Section("leaks", "Leaks between splits", lead, body)


def _twins(values: dict[str, Any]) -> Section:
    parts = []
    for key, title in (("duplicates", "Equal, byte by byte"), ("near", "Look alike")):
        groups = values[key]
        rows = [[number(len(g)), ", ".join(f"{m['split']}: {m['name']}" for m in g[:6])] for g in groups[:_ROWS]]
        more = f"The first {_ROWS}; check.json lists {min(len(groups), SHOWN)}." if len(groups) > _ROWS else ""
        if rows:
            parts.append(_folded(f"{title}: {count(len(groups), 'group')}", _table(["samples", "which"], rows), more))
    said = values["contradictions"]
    if said:
        parts.append(html('<p class="callout bad">{n} labels that contradict each other.</p>',
                          n=f"{count(said, 'picture')} with"))  # fmt: skip
    lead = "The first of every group is the one a clean list keeps."
    return Section("twins", "Duplicates", lead, join(parts) if parts else missing("No picture is there twice."))


def _classes(values: dict[str, Any]) -> Section:
    found = values["classes"]
    splits = list(found["samples"])
    names = list(dict.fromkeys(name for split in splits for name in found["samples"][split]))
    totals = {split: sum(found["samples"][split].values()) or 1 for split in splits}
    names.sort(key=lambda name: -sum(found["samples"][s].get(name, 0) for s in splits))
    rows = [
        [name, *(f"{found['samples'][s].get(name, 0)} ({percent(found['samples'][s].get(name, 0) / totals[s])})"
                 for s in splits)]
        for name in names[:_CLASSES]
    ]  # fmt: skip
    notes = []
    if len(names) > _CLASSES:
        notes.append(f"The {_CLASSES} largest of {len(names)}; all are in check.json.")
    if found["empty"]:
        notes.append(f"Without a sample: {', '.join(found['empty'][:20])}.")
    if found["largest_over_smallest"]:
        notes.append(
            f"The largest class has {number(found['largest_over_smallest'])} times the samples of the smallest."
        )
    body = join([_table(["class", *splits], rows, numbers=True), html('<p class="soft">{n}</p>', n=" ".join(notes))])
    return Section("classes", "Classes", "How many samples each class has, and its share of the split.", body)


def _sizes(values: dict[str, Any]) -> Section:
    sizes = values["sizes"]
    units = {"height": "height, pixels", "width": "width, pixels", "bytes": "bytes", "frames": "frames",
             "seconds": "seconds"}  # fmt: skip
    quantiles = {"min": "least", "p5": "5 %", "median": "median", "p95": "95 %", "max": "most"}
    rows = [[said, *(number(sizes[name][q]) for q in quantiles)] for name, said in units.items() if name in sizes]
    whole = f"{number(sizes['total_bytes'] / 1e6)} MB in all"
    whole += f", {duration(3600 * sizes['hours'])} of video" if "hours" in sizes else ""
    body = _table(["", *quantiles.values()], rows, numbers=True) if rows else missing("Nothing decodes.")
    return Section("sizes", "Sizes", f"{whole}.", body)


def _folded(title: str, body: Html, more: str = "") -> Html:
    note = html('<p class="soft">{m}</p>', m=more) if more else Html("")
    return html("<details><summary>{t}</summary>{b}{n}</details>", t=title, b=body, n=note)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: bool = False) -> Html:
    cells = join(
        html("<tr><th>{first}</th>{rest}</tr>", first=row[0], rest=join(html("<td>{c}</td>", c=c) for c in row[1:]))
        for row in rows
    )
    return html(
        '<div class="scroll"><table class="data{css}"><thead><tr>{head}</tr></thead>'
        "<tbody>{rows}</tbody></table></div>",
        css=" num" if numbers else "", head=join(html("<th>{h}</th>", h=h) for h in head), rows=cells,
    )  # fmt: skip


__all__ = ["headline", "lines", "write"]
