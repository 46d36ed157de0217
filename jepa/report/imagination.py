"""The sections of a world model: how far its imagination can be trusted, and what planning with it achieves.

Both read result files, RUN/rollouts/*.json and RUN/plans/*.json, and the pictures beside them; runs without have
neither section.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from jepa.report import panels
from jepa.report.charts import Interval, Series, interval_table, line_chart
from jepa.report.markup import Html, count, duration, film, html, image, join, number, percent
from jepa.report.page import Section
from jepa.report.read import Run, is_number

Result = Mapping[str, Any]
# course -> name, colour, dash: floors are dashed
COURSES = {
    "open_loop": ("imagined, open loop", 0, 0),
    "one_step": ("one step at a time", 5, 1),
    "copy": ("last frame standing still", 7, 1),
    "shuffled": ("another episode's actions", 1, 0),
    "zero": ("no action", 3, 0),
    "read_off": ("read off real frames", 2, 2),
}
DISTANCES = {
    "l2": ("Latent error", "Mean Euclidean distance between imagined latents and those of the frames that followed."),
    "cosine": ("Latent error, cosine", "One minus the cosine of imagined and real latents, mean over tokens."),
}
RATIOS = {"copy": ("open loop / last frame", 0), "shuffled": ("another episode's / right actions", 1),
          "zero": ("no / right actions", 3)}  # fmt: skip
SHOWN = 6  # most pictures in a section


def sections(runs: Sequence[Run]) -> list[Section]:
    """The two sections, where there is anything to put into them."""
    found = []
    if any(run.rollouts for run in runs):
        lead = (
            "Held-out episodes are imagined from a few frames with the actions that were really taken, and held "
            "against what followed. An imagination that is no better than the last frame standing still is worth "
            "nothing; one that is as good with wrong actions does not listen to them."
        )
        body = join(_rollout(run, r, len(runs) > 1) for run in runs for r in run.rollouts)
        found.append(Section("imagination", "How far imagination can be trusted", lead, body, "Imagination"))
    if any(run.plans for run in runs):
        lead = (
            "The model plans by imagining many courses of action and taking the best. Success is what the "
            "environment says; doing nothing and acting at random tell what it takes."
        )
        body = join(_plan(run, p, len(runs) > 1) for run in runs for p in run.plans)
        found.append(Section("planning", "What planning achieves", lead, body, "Planning"))
    return found


# --- roll-outs ----------------------------------------------------------------------------------------------------


def _rollout(run: Run, result: Result, named: bool) -> Html:
    charts = [
        line_chart(title, _lines(result["latent"][name]), f"{words} {_band_words()}", zero=True)
        for name, (title, words) in DISTANCES.items()
        if name in result["latent"]
    ]
    if isinstance(result.get("ratios"), dict):
        lines = [_line(name, colour, 0, result["ratios"][key]) for key, (name, colour) in RATIOS.items()
                 if key in result["ratios"]]  # fmt: skip
        words = "Below 1 imagining beats standing still; an error with other actions should be well above 1."
        charts.append(line_chart("Errors against each other", lines, words, level=(1.0, "even"), may_log=True))
    charts += [_state(one) for one in result.get("state") or []]
    charts += _calibration(result.get("uncertainty"))
    return html(
        '{h}<p>{w}</p><div class="grid">{c}</div>{p}', h=_heading(run, result, named), w=_words(result),
        c=join(charts), p=_pictures(run.path / "rollouts", result.get("pictures")),
    )  # fmt: skip


def _heading(run: Run, result: Result, named: bool) -> Html:
    name = f"{result['suite']} · {run.name}" if named else str(result["suite"])
    return html("<h3>{n}</h3>", n=name)


def _words(result: Result) -> str:
    data = result.get("dataset") or {}
    words = (
        f"{count(data.get('windows', 0), 'window')} of {count(data.get('episodes', 0), 'episode')} of split "
        f"{data.get('split', '?')}, {count(result.get('seen', 0), 'frame')} seen, "
        f"{count(result.get('horizon', 0), 'step')} imagined. "
    )
    useful, horizon = result.get("useful_steps", 0), result.get("horizon", 0)
    words += (
        f"Imagination beats the last frame in {'all' if useful == horizon else f'the first {useful} of'} {horizon} "
        "steps, interval and all."
        if useful
        else "From the first step on imagination is not clearly better than the last frame standing still."
    )
    over = (result.get("ratios") or {}).get("shuffled")
    if over:
        words += (
            f" With another episode's actions the error at the last step is {number(over['value'][-1])} times as large."
        )
    return words


def _state(one: Result) -> Html:
    unit = f", {one['unit']}" if one.get("unit") else ""
    words = (
        "Distance between the recorded state and what a linear reader makes of imagined latents. Read off real frames, "
        "the reader itself is off by the dotted line."
    )
    return line_chart(f"{one['name']}{unit}", _lines(one["curves"]), words, zero=True)


def _calibration(found: Result | None) -> list[Html]:
    if not found:
        return []
    bins = found["reliability"]
    line = Series("mean error", [b["uncertainty"] for b in bins], [b["error"] for b in bins])
    words = (
        "Roll-outs in ten groups by how unsure the model was (from left to right) and their mean error. At one "
        f"horizon the ranks of the two correlate by {number(found['all']['value'], 2)} "
        f"[{number(found['all']['low'], 2)}, {number(found['all']['high'], 2)}]."
    )
    title = "Does it know when it is wrong?"
    return [line_chart(title, [line], words, zero=True, axis="uncertainty")]


def _lines(curves: Mapping[str, Result]) -> list[Series]:
    return [_line(name, colour, dash, curves[key]) for key, (name, colour, dash) in COURSES.items() if key in curves]


def _line(name: str, colour: int, dash: int, curve: Result) -> Series:
    steps = list(range(1, len(curve["value"]) + 1))
    return Series(name, steps, curve["value"], colour, dash, low=curve["low"], high=curve["high"])


def _band_words() -> str:
    return "Bands: 95 % intervals by episode."


# --- planning -----------------------------------------------------------------------------------------------------


def _plan(run: Run, result: Result, named: bool) -> Html:
    rows = [r for r in result["rows"] if isinstance(r, dict) and is_number(r.get("value"))]
    if not rows:
        return Html("")
    bars = [
        Interval(
            str(r.get("policy", "")), float(r["value"]), r.get("low"), r.get("high"),
            html("{v}<small>{s} of {n}</small>", v=percent(r["value"], 0), s=r.get("successes"), n=r.get("episodes")),
            "base" if r.get("baseline") else "s0",
        )
        for r in rows
    ]  # fmt: skip
    for p in result.get("published") or []:
        if isinstance(p, dict) and is_number(p.get("value")):
            note = f"{p.get('model', '')} · published: {p.get('source', '')}"
            bars.append(Interval(note, float(p["value"]), text=percent(p["value"], 0), css="s7", mark="mean"))
    table = interval_table("Episodes that end in success", bars, _task(result), share=True)
    shown = _pictures(run.path / "plans", result.get("pictures"))
    cost = join(_cost(r) for r in rows if isinstance(r.get("planning"), dict))
    notes = join(html('<p class="callout">{n}</p>', n=n) for n in result.get("notes") or [])
    return html(
        '{h}<div class="grid two">{t}</div>{c}{n}{p}', h=_heading(run, result, named), t=table, c=cost, n=notes, p=shown
    )


def _task(result: Result) -> str:
    """What had to be done, as a caption."""
    task = result.get("task") if isinstance(result.get("task"), dict) else {}
    assert isinstance(task, dict), "checked above"
    words = f"Budget {number(task['budget'])} steps. " if is_number(task.get("budget")) else ""
    words += "Bars: Wilson's 95 % intervals."
    diamonds = " Diamonds: published, under protocols of their own." if result.get("published") else ""
    task_id = f", task {result['fingerprint']}" if result.get("fingerprint") else ""
    return f"{words}{diamonds} Protocol {result.get('protocol', '?')}{task_id}."


def _cost(row: Mapping[str, Any]) -> Html:
    """What a step of planning takes."""
    names = {
        "seconds_per_plan": "time for a plan", "seconds_per_step": "time for a step",
        "seconds_per_step_p95": "the same, 95th percentile", "imagined_per_step": "steps imagined for a step",
        "calls_per_plan": "model calls for a plan",
    }  # fmt: skip
    cells = [
        html("<tr><th>{k}</th><td>{v}</td></tr>", k=words,
             v=_seconds(row["planning"][key]) if key.startswith("seconds") else number(row["planning"][key]))
        for key, words in names.items()
        if is_number(row["planning"].get(key))
    ]  # fmt: skip
    body = '<div class="panel scroll means"><table class="data"><tbody>{b}</tbody></table></div>'
    return html(body, b=join(cells)) if cells else Html("")


def _seconds(value: float) -> str:
    return f"{number(1000 * value)}\u00a0ms" if value < 1 else duration(value)


# --- pictures -----------------------------------------------------------------------------------------------------


def _pictures(folder: Path, given: Any) -> Html:
    """Strips and films that a result names, as far as they are there."""
    files = given.get("files", []) if isinstance(given, dict) else given if isinstance(given, list) else []
    parts: list[Html] = []
    for one in files:
        names = (
            [one] if isinstance(one, str) else [one.get(k) for k in ("film", "strip")] if isinstance(one, dict) else []
        )
        for name in names:
            shown = _file(folder, name) if len(parts) < SHOWN else None
            if shown:
                parts.append(html('<figure class="sheet own">{i}</figure>', i=shown))
    if not parts:
        return Html("")
    by = given.get("by") if isinstance(given, dict) else None
    words = ""
    if isinstance(by, dict) and by.get("by") == "decoder":
        words = (
            f"Latents are drawn by a small decoder, trained for {count(by.get('steps', 0), 'step')} on "
            f"{count(by.get('bank', 0), 'real frame')} and never used to train the model."
        )
    elif isinstance(by, dict):
        words = f"Latents are shown as the nearest of {count(by.get('bank', 0), 'training frame')}."
    return html('<div class="group">{p}<p class="soft">{w}</p></div>', p=join(parts), w=words)


def _file(folder: Path, name: Any) -> Html | None:
    """A picture or an animation below a folder; None where it is not one of ours."""
    path = folder / str(name)
    if not isinstance(name, str) or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    alt = f"{'film' if path.suffix == '.gif' else 'picture'}: {path.stem.replace('-', ' ')}"
    try:
        with Image.open(path) as opened:
            pictures = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
            stay = int(opened.info.get("duration") or 0)
    except (OSError, UnidentifiedImageError, ValueError):
        return None
    if len(pictures) == 1:
        return image(pictures[0], alt)
    kind = panels.page_format()
    return film(_animated(pictures, kind, stay or panels.MILLISECONDS), kind, pictures[len(pictures) // 2], alt)


def _animated(pictures: Sequence[Image.Image], kind: str, stay: int) -> bytes:
    if kind == "gif":
        return panels.encoded(pictures, kind)
    buffer, (first, *others) = io.BytesIO(), pictures
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=stay, loop=0, quality=70, method=4)
    return buffer.getvalue()
