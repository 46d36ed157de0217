"""The sections made of numbers: verdict and probes. Curves are in curves.py."""

from __future__ import annotations

from collections.abc import Sequence

from jepa.report import blanks, verdict
from jepa.report.charts import COLOURS, Interval, interval_table
from jepa.report.markup import Html, count, duration, html, join, measure, number
from jepa.report.page import Section, missing
from jepa.report.read import Run, is_number
from jepa.report.verdict import Contest, Row


def header(runs: Sequence[Run]) -> Html:
    """Title, verdict and headline tiles."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    return html('<p class="kicker">JEPA training report</p><h1>{t}</h1>{v}', t=title, v=headlines(runs))


def headlines(runs: Sequence[Run]) -> Html:
    """Verdict and headline tiles."""
    if len(runs) > 1:
        items = join(
            html(
                '<li><i class="swatch s{c}"></i><b>{n}</b>: {t} {b}</li>',
                c=i % COLOURS, n=run.name, t=verdict.headline(run), b=_badge(run),
            )
            for i, run in enumerate(runs)
        )  # fmt: skip
        words = html('<ul class="runs">{items}</ul>', items=items)
    else:
        first = next(iter(verdict.headlines(runs[0])), None)
        words = html(
            '<p class="verdict">{t} {p}</p><p>{b}</p>',
            t=verdict.headline(runs[0]), p=_comparison(first) if first else "", b=_badge(runs[0]),
        )  # fmt: skip
    return join([words, _tiles(runs)])


def _comparison(contest: Contest) -> str:
    """One probe in words: 'Linear probe, top-1 accuracy: 24 % [..] against 13 % [..] (random init): above ...'."""
    assert contest.main is not None, "a contest without a row of the run has nothing to say"
    text = f"{verdict.probe_title(contest.probe, contest.metric)}: {verdict.with_interval(contest.main)}"
    best = contest.best_baseline
    if best is None:
        return f"{text}."
    rival = f"{verdict.with_interval(best)} for the best baseline ({best['encoder']})"
    return f"{text} against {rival}: {verdict.OUTCOMES[contest.outcome]}."


def _badge(run: Run) -> Html:
    health = verdict.health(run)
    css, words = {
        "ok": ("good", "healthy"), "warned": ("warn", "warned earlier"), "collapsing": ("bad", "collapsing"),
        "unknown": ("plain", "health not measured"),
    }[health.state]  # fmt: skip
    badge = html('<span class="badge {c}" title="{s}">{w}</span>', c=css, w=words, s=health.sentence)
    found = [c for c in verdict.headlines(run) if c.baselines]
    if not found:
        return badge
    won = sum(c.outcome == "above" for c in found)
    css = "good" if won == len(found) else "warn" if won else "bad"
    words = f"clearly above every baseline in {won} of {count(len(found), 'probe')}"
    return join([badge, html('<span class="badge {c}">{t}</span>', c=css, t=words)])


def _tiles(runs: Sequence[Run]) -> Html:
    tiles: list[tuple[str, str, str, str]] = []  # label, value, note, colour
    run = runs[0]
    groups = [g for g in verdict.same_but_seed(runs) if len(g) == len(runs)]
    for row in verdict.over_seeds(groups[0]) if groups else []:  # one recipe over several seeds: means are the headline
        if not row["baseline"] and (row["suite"], row["probe"]) in {(c.suite, c.probe) for c in verdict.headlines(run)}:
            spread = f"± {measure(row['sd'], row['metric'])} over {count(row['n'], 'seed')}"
            tiles.append((verdict.short_title(row["probe"]), measure(row["mean"], row["metric"]), spread, "plain"))
    for contest in verdict.headlines(run) if len(runs) == 1 else []:
        if contest.main is not None:
            best = contest.best_baseline
            note = f"best baseline {measure(best['value'], contest.metric)} ({best['encoder']})" if best else ""
            css = {"above": "good", "touching": "warn", "not above": "bad", "alone": "plain"}[contest.outcome]
            value = measure(contest.main["value"], contest.metric)
            tiles.append((verdict.short_title(contest.probe), value, note, css))
    if len(runs) == 1:
        health, cost = verdict.health(run), verdict.cost(run)
        if health.rank_last is not None and health.rank_first is not None:
            note = f"{number(health.rank_first)} at the first look"
            tiles.append(("Effective rank", number(health.rank_last), note, "plain"))
        if "seconds" in cost:
            note = f"{number(cost['samples_per_s'])} images/s"
            tiles.append(("Training time", duration(cost["seconds"]), note, "plain"))
    items = join(
        html('<li class="{c}"><span>{a}</span><b>{v}</b><span class="sub">{n}</span></li>', c=c, a=a, v=v, n=n)
        for a, v, n, c in tiles
    )
    return html('<ul class="tiles">{items}</ul>', items=items) if tiles else Html("")


# --- probes -------------------------------------------------------------------------------------------------------


def probes(runs: Sequence[Run]) -> Section:
    """One interval chart for each probe, every run's encoder first, then the baselines."""
    lead = (
        "The encoder is frozen and simple readers are put on its features: if they read the class, the encoder has "
        "found it by itself. A baseline says what the same reader gets without the training."
    )
    every = [(run, contest) for run in runs for contest in verdict.contests(run)]
    if not every:
        body = missing("No probe has been run yet.", f"jepa probe {runs[0].path} --suite eval/NAME.yaml")
        return Section("probes", "What the features know", lead, body, "Probes")
    keys = list(dict.fromkeys((c.suite, c.probe, c.metric) for _, c in every))
    charts = [_probe_chart(runs, [(r, c) for r, c in every if (c.suite, c.probe, c.metric) == key]) for key in keys]
    lacking = [r for r in runs if not verdict.contests(r)]
    notes = [missing(f"{r.name} has no probe result.", f"jepa probe {r.path} --suite eval/NAME.yaml") for r in lacking]
    body = join(
        [
            html('<div class="grid two">{c}</div>', c=join(charts)),
            *notes,
            blanks.charts(runs),
            _means(runs),
            _details(runs),
        ]
    )
    return Section("probes", "What the features know", lead, body, "Probes")


def _probe_chart(runs: Sequence[Run], found: list[tuple[Run, Contest]]) -> Html:
    contest = found[0][1]
    rows = [
        _interval(run, row, f"s{list(runs).index(run) % COLOURS}", len(runs) > 1) for run, c in found for row in c.own
    ]
    means = [m for group in verdict.same_but_seed(runs) for m in verdict.over_seeds(group)]
    for mean in means:
        mine = (mean["suite"], mean["probe"], mean["metric"]) == (contest.suite, contest.probe, contest.metric)
        if mine and not mean["baseline"]:
            text = html("{v}<small>{n} seeds</small>", v=measure(mean["mean"], contest.metric), n=mean["n"])
            rows.append(Interval("mean over seeds", mean["mean"], mean["low"], mean["high"], text, "s7", "mean"))
    told: set[tuple[object, ...]] = set()
    yardsticks: list[Interval] = []
    for run, c in found:
        for row in c.baselines:
            mark = (row["encoder"], row["value"], row.get("low"))
            if mark not in told:  # raw pixels are the same for every run
                told.add(mark)
                alike = sum(r["encoder"] == row["encoder"] and r["value"] != row["value"]
                            for _, other in found for r in other.baselines)  # fmt: skip
                yardsticks.append(_interval(run, row, "base", bool(alike)))
    rows += sorted(yardsticks, key=lambda r: -r.value)
    unit = next((str(r["unit"]) for _, c in found for r in c.own + c.baselines if r.get("unit")), "")
    title = verdict.probe_title(contest.probe, contest.metric) + (f" in {unit}" if unit else "")
    sizes = {int(r["n_test"]) for _, c in found for r in c.own + c.baselines if "n_test" in r}
    caption = "Dot: the value; bar: its 95 % interval. Coloured: this encoder; grey: baselines."
    if any(m["suite"] == contest.suite for m in means):
        caption += " Diamond: mean over seeds, its bar from lowest to highest."
    if sizes:
        caption += f" Measured on {number(max(sizes))} test images."
    chance = next((float(r["chance"]) for _, c in found for r in c.own + c.baselines if r.get("chance")), None)
    level = (
        (chance, f"always naming the commonest class ({measure(chance, contest.metric)})")
        if chance is not None
        else None
    )
    return interval_table(title, rows, caption, share=contest.metric.startswith("top"), level=level)


def _interval(run: Run, row: Row, css: str, named: bool) -> Interval:
    label = f"{row['encoder']} · {run.name}" if named else str(row["encoder"])
    value, _, ends = verdict.with_interval(row).partition(" [")
    text = html("{v}<small>[{e}</small>", v=value, e=ends) if ends else html("{v}", v=value)
    low, high = (verdict.low(row), verdict.high(row)) if ends else (None, None)
    return Interval(label, float(row["value"]), low, high, text, css)


def _means(runs: Sequence[Run]) -> Html:
    """Probes down, encoders across: mean ± standard deviation over seeds, and the range below it."""
    parts = []
    for group in verdict.same_but_seed(runs):
        rows = verdict.over_seeds(group)
        encoders = list(dict.fromkeys(r["encoder"] for r in rows))
        body = []
        for suite, probe, metric in dict.fromkeys((r["suite"], r["probe"], r["metric"]) for r in rows):
            mine = {r["encoder"]: r for r in rows if (r["suite"], r["probe"], r["metric"]) == (suite, probe, metric)}
            cells = join(_mean(mine[e], metric) if e in mine else Html("<td></td>") for e in encoders)
            body.append(html("<tr><th>{t}</th>{c}</tr>", t=verdict.probe_title(probe, metric), c=cells))
        if body:
            parts.append(html(
                '<div class="panel means"><h3>Mean over {n} seeds ({s})</h3><div class="scroll"><table class="data">'
                "<thead><tr><th>probe</th>{h}</tr></thead><tbody>{b}</tbody></table></div></div>", n=len(group),
                s=", ".join(str(r.config.seed) for r in group), h=join(html("<th>{e}</th>", e=e) for e in encoders),
                b=join(body),
            ))  # fmt: skip
    return join(parts)


def _mean(row: Row, metric: str) -> Html:
    return html(
        "<td><b>{m}</b> ± {s}<br><span class=\"soft\">{a} to {b}</span></td>", m=measure(row["mean"], metric),
        s=measure(row["sd"], metric), a=measure(row["low"], metric), b=measure(row["high"], metric),
    )  # fmt: skip


def _details(runs: Sequence[Run]) -> Html:
    """Every row with the settings chosen on the validation split and the paired lead over each baseline."""
    several, rows = len(runs) > 1, []
    for run in runs:
        for row in (row for result in run.probes for row in result["rows"]):
            gap = row.get("gap")
            lead = verdict.with_interval({**gap, "metric": row.get("metric")}) if verdict.is_interval(gap) else ""
            rows.append(html(
                "<tr><th>{e}</th>{r}<td>{p}</td><td>{v}</td><td>{g}</td><td>{c}</td><td>{n}</td></tr>",
                e=row["encoder"], r=html("<td>{n}</td>", n=run.name) if several else Html(""), p=row["probe"],
                v=verdict.with_interval(row), g=lead, c=_settings(row.get("chosen")), n=_tested(row),
            ))  # fmt: skip
    results = [p for run in runs for p in run.probes]
    facts = {f"suite {p.get('suite')}, protocol {p.get('protocol')}, {p.get('checkpoint')}" for p in results}
    return html(
        "<details><summary>All probe figures</summary><p class=\"soft\">{f}. Reader settings were chosen on the "
        "validation split, figures come from the test split, intervals (95 %) from resampling whole originals. The "
        "lead is that of this run's encoder over the baseline on the same samples, with an interval of its own.</p>"
        '<div class="scroll"><table class="data"><thead><tr><th>encoder</th>{r}<th>probe</th><th>value</th>'
        "<th>lead over it</th><th>chosen</th><th>tested on</th></tr></thead><tbody>{b}</tbody></table></div>{p}"
        "</details>",
        f="; ".join(sorted(facts)), b=join(rows), r=Html("<th>run</th>") if several else Html(""),
        p=_published(results),
    )  # fmt: skip


def _settings(chosen: object) -> str:
    if not isinstance(chosen, dict):
        return ""
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items())


def _published(results: Sequence[Row]) -> Html:
    """Figures from the literature that a suite names."""
    found = [p for r in results for p in r.get("published") or [] if isinstance(p, dict) and is_number(p.get("value"))]
    rows = dict.fromkeys(
        html(
            "<tr><th>{e}</th><td>{p}</td><td>{v}</td><td>{s}</td><td>{n}</td></tr>", e=p.get("encoder", ""),
            p=p.get("probe", ""), v=measure(p["value"], str(p.get("metric", ""))), s=p.get("source", ""),
            n=p.get("note", ""),
        )
        for p in found
    )  # fmt: skip
    if not rows:
        return Html("")
    return html(
        '<h3>Published figures</h3><div class="scroll"><table class="data"><thead><tr><th>encoder</th><th>probe</th>'
        "<th>value</th><th>source</th><th>note</th></tr></thead><tbody>{r}</tbody></table></div>", r=join(rows),
    )  # fmt: skip


def _tested(row: Row) -> str:
    if "n_test" not in row:
        return ""
    tail = f" from {count(row['n_clusters'], 'original')}" if row.get("n_clusters") else ""
    return count(row["n_test"], "image") + tail
