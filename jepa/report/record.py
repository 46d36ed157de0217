"""The sections that say how the run was made: configuration, hardware, cost, warnings, commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jepa.report import verdict
from jepa.report.markup import Html, count, duration, energy, html, join, number, percent
from jepa.report.page import Section, missing
from jepa.report.read import Run

_SHOWN_WARNINGS = 12
_ENERGY = (
    '<p class="soft">Measured energy is that of the whole device by its own counter, whatever else ran there. '
    "Estimated energy is power times time: a GPU's rated power, or 10 W for each busy processor core.</p>"
)


def config(runs: Sequence[Run]) -> Section:
    """Each resolved configuration as YAML; of several, what is not in all of them is marked."""
    common = set.intersection(*(set(run.config_text.splitlines()) for run in runs))
    blocks = []
    for run in runs:
        lines = [
            html("<mark>{t}</mark>", t=line) if line not in common else html("{t}", t=line)
            for line in run.config_text.splitlines()
        ]
        blocks.append(html(
            "<details><summary>{n}</summary><pre><code>{t}</code></pre></details>",
            n=f"config.yaml of {run.name}" if len(runs) > 1 else "config.yaml, all values resolved",
            t=join(lines, "\n"),
        ))  # fmt: skip
    lead = "Every setting that was in force; this file alone repeats the run."
    if len(runs) > 1:
        lead += " Lines that are not the same in all of them are marked."
    return Section("config", "Configuration", lead, join(blocks), "Config")


def flatten(values: Any, where: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    if not isinstance(values, dict) or not values:
        return {where: values} if where else {}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{where}.{key}" if where else str(key))
    return out


def plain(value: Any) -> str:
    """A setting as text."""
    if value is None:
        return "—"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def hardware(runs: Sequence[Run]) -> Section:
    """environment.json, side by side."""
    lead = "The machine and the software the figures were made with."
    known = [run for run in runs if run.environment]
    if not known:
        return Section("hardware", "Hardware and versions", lead, missing("No environment.json in the run folder."),
                       "Hardware")  # fmt: skip
    flat = [_environment(run.environment) for run in known]
    head = join([Html("<th></th>"), *(html("<th>{n}</th>", n=r.name) for r in known)])
    rows = join(
        html("<tr><th>{k}</th>{c}</tr>", k=key.replace("_", " ").replace(".", " · "),
             c=join(html("<td>{v}</td>", v=plain(f.get(key))) for f in flat))
        for key in dict.fromkeys(k for f in flat for k in f)
    )  # fmt: skip
    body = html(
        '<div class="panel scroll"><table class="data">{h}<tbody>{r}</tbody></table></div>', r=rows,
        h=html("<thead><tr>{h}</tr></thead>", h=head) if len(known) > 1 else Html(""),
    )  # fmt: skip
    return Section("hardware", "Hardware and versions", lead, body, "Hardware")


def _environment(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of the newest start; of earlier ones only how many there were."""
    earlier = values.get("earlier")
    plain = flatten({k: v for k, v in values.items() if k != "earlier"})
    return plain | ({"resumed": count(len(earlier), "time")} if isinstance(earlier, list) else {})


def cost(runs: Sequence[Run]) -> Section:
    """Seconds, samples, rate, FLOPs, energy; of probes and plans too."""
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "seconds": ("time in training steps", duration), "device_seconds": ("the same, over all devices", duration),
        "steps": ("optimiser steps", number),
        "samples": ("images trained on", number), "samples_per_s": ("images per second", number),
        "data_wait_share": ("share waiting for data", percent), "flops": ("floating-point operations", number),
        "restarts": ("started again", number), "lost_steps": ("steps done twice because of that", number),
        "joules": ("energy", energy), "peak_memory_gib": ("most memory held at once", lambda v: f"{number(v)} GiB"),
    }  # fmt: skip
    costs = [verdict.cost(run) for run in runs]
    rows = []
    for key, (words, show) in shown.items():
        if any(key in c for c in costs):
            notes = [_source(verdict.energy_source(run)) if key == "joules" else "" for run in runs]
            values = [show(c[key]) + note if key in c else "—" for c, note in zip(costs, notes, strict=True)]
            rows.append(_row(words, values))
    probing = [sum(float(p.get("seconds") or 0) for p in run.probes) for run in runs]
    if any(probing):
        rows.append(_row("time in probes", [duration(s) if s else "—" for s in probing]))
    for kind in ("probes", "plans"):
        for suite in dict.fromkeys(str(r["suite"]) for run in runs for r in getattr(run, kind) if r.get("cost")):
            words = f"probe {suite}" if kind == "probes" else f"plan {suite}, an episode"
            rows.append(_row(words, [_measured(getattr(run, kind), suite) for run in runs]))
    head = join([Html("<th></th>"), *(html("<th>{n}</th>", n=r.name) for r in runs)])
    body = html(
        '<div class="panel scroll"><table class="data">{h}<tbody>{r}</tbody></table></div>', r=join(rows),
        h=html("<thead><tr>{h}</tr></thead>", h=head) if len(runs) > 1 else Html(""),
    )  # fmt: skip
    body = join([body, *(_starts(run, len(runs) > 1) for run in runs if len(run.starts) > 1)])
    body = join([body, Html(_ENERGY)]) if any("joules" in c for c in costs) else body
    return Section("cost", "Cost", "What it took to get here.", body)


def _row(words: str, values: Sequence[str]) -> Html:
    return html("<tr><th>{k}</th>{c}</tr>", k=words, c=join(html("<td>{v}</td>", v=v) for v in values))


def _source(source: str) -> str:
    """What is said behind a figure of energy."""
    return {"": "", "nvml": " (measured, GPU)", "rapl": " (measured, processor)"}.get(source, f" ({source})")


def _measured(results: Sequence[dict[str, Any]], suite: str) -> str:
    """Cost of a probe, or of one planned episode."""
    found: dict[str, Any] = next((r["cost"] for r in results if r["suite"] == suite and r.get("cost")), {})
    parts = [duration(found["device_seconds"])] if "device_seconds" in found else []
    parts += [f"{energy(found['joules'])}{_source(str(found.get('energy_source', '')))}"] if "joules" in found else []
    parts += [f"{number(found['model_steps'])} steps of the model"] if found.get("model_steps") else []
    parts += [f"{number(found['flops'])} operations in them"] if found.get("flops") else []
    parts += [f"{number(found['flops_per_sample'])} operations a sample"] if found.get("flops_per_sample") else []
    return ", ".join(parts) or "—"


def _starts(run: Run, named: bool) -> Html:
    """Every start of a run that was started again, as a table."""
    rows = join(
        html("<tr>{c}</tr>", c=join(html("<td>{v}</td>", v=v) for v in (
            str(s.get("attempt", "")), str(s.get("time", "")).replace("T", " ").removesuffix("+00:00"),
            str(s.get("reason", "")), number(s.get("step", 0)), number(s.get("lost", 0)), number(s.get("world", 1)),
            ", ".join(map(str, s.get("nodes", []))),
        )))
        for s in run.starts
    )  # fmt: skip
    return html(
        "<details><summary>Every start{n}</summary>"
        '<div class="scroll"><table class="data"><thead><tr><th>start</th><th>time (UTC)</th><th>because of</th>'
        "<th>from step</th><th>steps lost</th><th>processes</th><th>nodes</th></tr></thead><tbody>{r}</tbody></table>"
        "</div></details>", n=f" of {run.name}" if named else "", r=rows,
    )  # fmt: skip


def warnings(runs: Sequence[Run]) -> Section:
    """The monitor's warnings, quarantined samples, and what this report could not read."""
    parts: list[Html] = []
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        found = run.warnings()
        for step, text in found[:_SHOWN_WARNINGS]:
            parts.append(html('<div class="callout">{p}step {s}: {t}</div>', p=prefix, s=number(step), t=text))
        if len(found) > _SHOWN_WARNINGS:
            more = len(found) - _SHOWN_WARNINGS
            parts.append(html("<p>{p}and {n} (metrics.jsonl).</p>", p=prefix, n=count(more, "more warning")))
        if run.quarantine:
            parts.append(_quarantine(run, prefix))
        parts += [html('<div class="callout">{p}{t}</div>', p=prefix, t=note) for note in run.notes]
    if not parts:
        parts.append(Html("<p>No warnings, and every image could be read.</p>"))
    lead = "Anything that went wrong on the way."
    return Section("warnings", "Warnings and bad samples", lead, join(parts), "Warnings")


def _quarantine(run: Run, prefix: str) -> Html:
    reasons = Counter(str(q.get("reason", q.get("error", "unreadable"))) for q in run.quarantine)
    rows = join(html("<tr><td>{r}</td><td>{n}</td></tr>", r=r, n=n) for r, n in reasons.most_common(_SHOWN_WARNINGS))
    return html(
        '<div class="callout">{p}{n} could not be read and were replaced by other samples (quarantine.jsonl).</div>'
        '<div class="scroll"><table class="data"><thead><tr><th>reason</th><th>times</th></tr></thead>'
        "<tbody>{r}</tbody></table></div>", p=prefix, n=count(len(run.quarantine), "sample"), r=rows,
    )  # fmt: skip


def reproduce(runs: Sequence[Run]) -> Section:
    """The commands that made the run, its probes and this page."""
    blocks = []
    for run in runs:
        path = shlex.quote(str(run.path))
        again = shlex.quote(f"{run.path}-again")
        lines = [f"jepa train {path}/config.yaml --out {again}"]
        if run.environment.get("command"):
            lines.insert(0, "# " + " ".join(f"{run.name} was started with: {run.environment['command']}".split()))
        lines += [f"jepa probe {again} --suite {shlex.quote(str(p['suite']))}" for p in run.probes]
        blocks.append(join(lines, "\n"))
    own = " ".join(shlex.quote(str(run.path)) for run in runs)
    blocks.append(join([f"jepa report {own}"]))
    body = html("<pre><code>{t}</code></pre>", t=Html("\n".join(blocks)))
    lead = "On a CPU with the same number of processes these commands give the same losses bit for bit."
    return Section("reproduce", "Do it again", lead, body, "Reproduce")


def about() -> Html:
    """What JEPA is, in one picture, for somebody who meets it for the first time."""
    return Html(
        '<details class="about"><summary>What is being trained here?</summary>'
        "<p>Parts of an image are hidden. A <b>context encoder</b> sees only what is left; a <b>predictor</b> has to "
        "tell what the hidden parts look like <em>as a second encoder would describe them</em>, not as pixels. That "
        "second one, the <b>target encoder</b>, sees the whole image and is a slowly moving average of the first. No "
        "labels are used. Afterwards the target encoder is frozen and tested: this page shows with what result.</p>"
        '<div class="scroll"><svg viewBox="0 0 760 190" role="img" aria-label="The visible part of an image goes '
        "through the context encoder and the predictor; the whole image goes through the target encoder; the loss "
        'compares both descriptions of the hidden blocks.">'
        '<rect x="8" y="20" width="120" height="44" rx="7"/><text x="68" y="47">visible part</text>'
        '<rect x="8" y="128" width="120" height="44" rx="7"/><text x="68" y="155">whole image</text>'
        '<rect x="186" y="20" width="140" height="44" rx="7"/><text x="256" y="47">context encoder</text>'
        '<rect x="384" y="20" width="120" height="44" rx="7"/><text x="444" y="47">predictor</text>'
        '<rect x="186" y="128" width="140" height="44" rx="7"/><text x="256" y="155">target encoder</text>'
        '<rect x="600" y="74" width="150" height="44" rx="7"/><text x="675" y="101">loss: how far apart?</text>'
        '<path d="M128 42H180M326 42H378M504 42H675V68M128 150H180M326 150H675V124M256 64V122" />'
        '<path class="head" d="M178 38l8 4-8 4zM376 38l8 4-8 4zM671 66l4 8 4-8zM178 146l8 4-8 4zM671 126l4-8 4 8z'
        'M252 120l4 8 4-8z"/>'
        '<text class="note" x="316" y="98">slow average</text>'
        '<text class="note" x="590" y="34">predicted embeddings</text>'
        '<text class="note" x="500" y="168">embeddings of the hidden blocks</text></svg></div></details>'
    )
