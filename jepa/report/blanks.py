"""What is known of a state while nothing is seen: errors by the number of frames since the last one that was not blank.

They stand under "missing" in the results of probes on windows with blank frames (`probes.frames.blank`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jepa.report.charts import COLOURS, Series, line_chart
from jepa.report.markup import Html, html, join
from jepa.report.read import Run, is_number

CAPTION = (
    "Mean error of the state that a reader makes of latents, by how many frames ago the newest one was seen; 0: it is "
    "seen. Solid: this run; dashed: baselines. Bands: 95 % intervals by episode."
)


def charts(runs: Sequence[Run]) -> Html:
    """A chart for every suite and reader; nothing where no suite blanked frames."""
    found: dict[tuple[str, str], list[Series]] = {}
    for number, run in enumerate(runs):
        for result in run.probes:
            for (encoder, role, probe), rows in _curves(result).items():
                name = f"{encoder} · {run.name}" if len(runs) > 1 else encoder
                key = (str(result.get("suite", "")), f"{probe} in {rows[0].get('unit', '')}".removesuffix(" in "))
                found.setdefault(key, []).append(Series(
                    name, [r["since"] for r in rows], [r["value"] for r in rows], number % COLOURS,
                    0 if role == "run" else 1, low=[r["low"] for r in rows], high=[r["high"] for r in rows],
                ))  # fmt: skip
    if not found:
        return Html("")
    made = [
        line_chart(f"{probe}, {suite}", lines, CAPTION, zero=True, axis="frames since the last one seen")
        for (suite, probe), lines in found.items()
    ]
    return html('<h3>While frames are missing</h3><div class="grid">{c}</div>', c=join(made))


def _curves(result: Mapping[str, Any]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Rows of a result by encoder, role and probe; whatever is no figure is left out."""
    curves: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    given = result.get("missing")
    for row in given if isinstance(given, list) else []:
        if isinstance(row, dict) and all(is_number(row.get(k)) for k in ("since", "value", "low", "high")):
            key = (str(row.get("encoder", "")), str(row.get("role", "")), str(row.get("probe", "")))
            curves.setdefault(key, []).append(row)
    return curves


__all__ = ["charts"]
