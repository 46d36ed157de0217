"""Several runs side by side: what was different, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jepa import config as configuration
from jepa.probe.summary import LOWER_IS_BETTER
from jepa.report import verdict
from jepa.report.charts import COLOURS
from jepa.report.markup import Html, duration, energy, html, join, measure, number, percent
from jepa.report.page import Section
from jepa.report.read import Run
from jepa.report.record import flatten, plain


@dataclass(frozen=True)
class Outcome:
    """A row of figures, one of each run."""

    words: str
    values: list[float | None]
    show: Callable[[float], str]
    better: int = 0  # 1: more is better, -1: less is, 0: neither


def sections(runs: Sequence[Run]) -> list[Section]:
    """One section for several runs, none for a single one."""
    if len(runs) < 2:
        return []
    lead = "What was different between these runs, and what came of it. The best figure of a row is marked."
    return [Section("compare", "Side by side", lead, join([_settings(runs), _outcomes(runs)]), "Compare")]


def _settings(runs: Sequence[Run]) -> Html:
    """Every setting that is not the same in all runs; what most of them have is pale, the others stand out."""
    flat = [flatten(configuration.to_dict(run.config)) for run in runs]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({repr(f.get(k)) for f in flat}) > 1]
    keys = [k for k in keys if k != "name"]
    if not keys:
        return html("<p>The configurations are equal.</p>")
    rows = []
    for key in keys:
        texts = [plain(f.get(key, "—")) for f in flat]
        usual = max(texts, key=texts.count) if len(runs) > 2 and texts.count(max(texts, key=texts.count)) > 1 else None
        cells = join(
            html("<td>{v}</td>", v=text) if text == usual else html("<td><mark>{v}</mark></td>", v=text)
            for text in texts
        )
        rows.append(html("<tr><th>{k}</th>{c}</tr>", k=key, c=cells))
    return _table("What differs", "setting", runs, rows)


def _outcomes(runs: Sequence[Run]) -> Html:
    rows = []
    for outcome in _figures(runs):
        known = [v for v in outcome.values if v is not None]
        if not known:
            continue
        best = (max(known) if outcome.better > 0 else min(known)) if outcome.better and len(known) > 1 else None
        if best is not None and all(v == best for v in known):
            best = None
        cells = join(
            html("<td>{v}</td>", v="—") if v is None
            else html('<td><b class="best">{v}</b></td>' if v == best else "<td>{v}</td>", v=outcome.show(v))
            for v in outcome.values
        )  # fmt: skip
        rows.append(html("<tr><th>{k}</th>{c}</tr>", k=outcome.words, c=cells))
    return _table("What came of it", "figure", runs, rows)


def _figures(runs: Sequence[Run]) -> list[Outcome]:
    costs = [verdict.cost(run) for run in runs]
    found = [
        Outcome("optimiser steps", [c["steps"] for c in costs], number),
        Outcome("loss at the end", [run.last("loss") for run in runs], lambda v: number(v, 4)),
    ]
    for quantity, words, share in (
        ("effective_rank_centred", "effective rank", False),
        ("knn_top1", "online kNN", True),
    ):
        keys = [verdict.health_key(run, quantity) for run in runs]
        values = [run.last(key) if key else None for run, key in zip(runs, keys, strict=True)]
        found.append(Outcome(f"{words} at the last look", values, percent if share else number, 1))
    contests = [{(c.suite, c.probe, c.metric): c for c in verdict.headlines(run)} for run in runs]
    for key in dict.fromkeys(k for mine in contests for k in mine):
        rows = [mine[key].main if key in mine else None for mine in contests]
        values = [float(row["value"]) if row is not None else None for row in rows]
        better = -1 if key[2] in LOWER_IS_BETTER else 1
        found.append(Outcome(verdict.probe_title(key[1], key[2]), values, _measured(key[2]), better))
    for name, words, show in (
        ("device_seconds", "time on devices", duration), ("samples_per_s", "samples per second", number),
        ("flops", "floating-point operations", number),
    ):  # fmt: skip
        better = 1 if name == "samples_per_s" else 0
        found.append(Outcome(words, [c.get(name) for c in costs], show, better))
    found.append(Outcome("energy", [c.get("joules") for c in costs], energy))
    found.append(Outcome("alarms", [float(len(run.alarms())) for run in runs], number))
    return found


def _measured(metric: str) -> Callable[[float], str]:
    return lambda value: measure(value, metric)


def _table(title: str, what: str, runs: Sequence[Run], rows: Sequence[Html]) -> Html:
    head = join(html('<th><i class="swatch s{c}"></i>{n}</th>', c=i % COLOURS, n=r.name) for i, r in enumerate(runs))
    return html(
        '<div class="panel means"><h3>{t}</h3><div class="scroll"><table class="data"><thead><tr><th>{w}</th>{h}</tr>'
        "</thead><tbody>{b}</tbody></table></div></div>", t=title, w=what, h=head, b=join(rows),
    )  # fmt: skip
