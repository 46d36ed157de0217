"""The sections made of curves: training, health, speed."""

from __future__ import annotations

from collections.abc import Sequence

from jepa.report import verdict
from jepa.report.charts import Series, line_chart
from jepa.report.markup import Html, html, join
from jepa.report.page import Section, missing
from jepa.report.read import Run

SIGNS = {"rollback": "↶", "stop": "✗", "warn": "!"}  # before an alarm's name
MOST_ALARMS = 12  # drawn in a chart

# last part of a monitor's key -> heading, caption, shown as a share
HEALTH = {
    "effective_rank_centred": (
        "Effective rank of what differs",
        "In how many directions the features of different images really vary. A fall towards 1 is collapse: "
        "every image gets the same embedding.",
        False,
    ),
    "std_mean": (
        "Spread of features",
        "Standard deviation from image to image, averaged over dimensions. Zero would mean that features say nothing.",
        False,
    ),
    "loss_ratio": (
        "Loss against guessing the mean",
        "The loss divided by that of always answering the average embedding: below 1 the prediction is of use.",
        False,
    ),
    "knn_top1": (
        "Online nearest-neighbour accuracy",
        "How often the most similar labelled images agree with an image's class, measured while training runs.",
        True,
    ),
}
MORE_HEALTH = {
    "effective_rank": ("Effective rank with the mean", "The same with the average image left in, which often "
                       "dominates: lower, and slower to move.", False),
    "token_effective_rank": ("Effective rank of tokens", "In how many directions single patches differ.", False),
    "std_min": ("Least spread of any dimension", "Zero: at least one feature does not vary at all.", False),
    "dead": ("Dead dimensions", "Share of features that are the same for every image.", True),
    "cosine": ("Cosine between images", "How alike the features of two different images are: at 1 all are the same.",
               False),
    "teacher_distance": ("Distance of the teacher", "How far the target encoder's weights lie behind the context "
                         "encoder's, relative to their length.", False),
}  # fmt: skip
CURVES = {
    "loss": ("Loss", "Distance between predicted and real embeddings of the hidden blocks. It is only a proxy: the "
             "target moves with the encoder, so a lower loss need not mean better features."),
    "lr": ("Learning rate", "The size of each update: a warm-up, then a slow fall."),
    "wd": ("Weight decay", "How strongly weights are pulled towards zero."),
    "momentum": ("Teacher momentum", "The share of its old self that the target encoder keeps at each step; nearer "
                 "to 1 means a slower teacher."),
    "grad_norm": ("Gradient norm", "The length of the update before clipping; sudden spikes announce trouble."),
    "guarded": ("Steps skipped", "Steps that the loss guard has left out so far, because their loss jumped."),
}  # fmt: skip


def curves(runs: Sequence[Run]) -> Section:
    """Loss and everything that was scheduled."""
    lead = "What the optimiser did, step by step. Move over a chart to read its values."
    if not any(run.curve("loss")[1] for run in runs):
        body = missing("No training step has been logged yet.", f"jepa train {runs[0].path / 'config.yaml'} --resume")
        return Section("curves", "Training curves", lead, body, "Curves")
    charts = [
        line_chart(title, _curve(runs, key), caption, may_log=key in ("loss", "grad_norm"), marks=_marks(runs))
        for key, (title, caption) in CURVES.items()
        if any(run.curve(key)[1] for run in runs)
    ]
    return Section("curves", "Training curves", lead, html('<div class="grid">{c}</div>', c=join(charts)), "Curves")


def _marks(runs: Sequence[Run]) -> list[tuple[float, str]]:
    """Where phases begin, each once however many runs have it, and where alarms sounded."""
    phases = dict.fromkeys(mark for run in runs for mark in run.phases())
    alarms = [(step, f"{SIGNS.get(act, '!')} {name}") for run in runs for step, name, act in run.alarms()]
    return [*phases, *list(dict.fromkeys(alarms))[:MOST_ALARMS]]


def _curve(runs: Sequence[Run], key: str) -> list[Series]:
    """A curve of every run; with a single run, the loss beside that of always guessing the batch's mean."""
    x, y = runs[0].curve("loss_of_mean")
    beside = [Series("guessing the mean", x, y, 7, 1)] if key == "loss" and len(runs) == 1 and y else []
    left = [
        Series(f"attempt {number}, abandoned", x, y, 1 + number, 2)
        for number, x, y in (runs[0].left_behind(key) if len(runs) == 1 and key in ("loss", "grad_norm") else [])
    ]
    return [*_series(runs, key, key.replace("_", " ") if beside or left else ""), *beside, *left]


def _series(runs: Sequence[Run], key: str, name: str = "", dash: int = 0, index: int | None = None) -> list[Series]:
    out = []
    for i, run in enumerate(runs):
        x, y = run.curve(key)
        label = " · ".join(p for p in (name, run.name if len(runs) > 1 or not name else "") if p)
        out.append(Series(label, x, y, i if index is None else index, dash, run.name, name))
    return out


def health(runs: Sequence[Run]) -> Section:
    """Is the encoder alive? One chart for each quantity of the monitor, context and target together."""
    lead: str | Html = " ".join(
        (f"{run.name}: " if len(runs) > 1 else "") + verdict.health(run).sentence for run in runs
    )
    keys = list(dict.fromkeys(k for run in runs for k in run.metrics() if k.startswith("health/")))
    if not keys:
        body = missing("No health numbers were recorded; set monitor.every (for example monitor.every={steps: 100}).")
        return Section("health", "Health", lead, body)

    marks = _marks(runs)

    def charts(quantities: dict[str, tuple[str, str, bool]]) -> Html:
        found = []
        for quantity, (title, caption, share) in quantities.items():
            mine = [k for k in keys if k.rpartition("/")[2] == quantity]
            if mine:
                found.append(line_chart(title, _together(runs, mine), caption, share=share, zero=True, marks=marks))
        return html('<div class="grid">{c}</div>', c=join(found)) if found else Html("")

    others = [k for k in dict.fromkeys(k.rpartition("/")[2] for k in keys) if k not in HEALTH | MORE_HEALTH]
    more = charts(MORE_HEALTH | {k: (k.replace("_", " "), "", False) for k in others})
    rest = html("<details><summary>More health numbers</summary>{m}</details>", m=more) if more else Html("")
    body = join([charts(HEALTH), rest])
    return Section("health", "Health", lead, body)


def _together(runs: Sequence[Run], keys: Sequence[str]) -> list[Series]:
    """Several keys in one chart. One run: a colour for each key; several: colours for runs, dashes for keys."""
    ordered = sorted(keys, key=lambda k: ("target" not in k, k))
    out: list[Series] = []
    for i, key in enumerate(ordered):
        parts = key.split("/")  # health/target/std_mean, or health/loss_ratio
        words = parts[1] if len(parts) > 2 else ""
        out += _series(runs, key, words, 0 if len(runs) == 1 else min(i, 2), i if len(runs) == 1 else None)
    return out


def speed(runs: Sequence[Run]) -> Section:
    """Throughput and the share of time spent waiting for data."""
    lead = "How fast training went, and whether the processor had to wait for images to be read."
    if not any(run.curve("images_per_s")[1] for run in runs):
        body = missing("No throughput has been logged yet; it appears with the first lines of metrics.jsonl.")
        return Section("speed", "Speed", lead, body)
    charts = [
        line_chart(
            "Images per second", _series(runs, "images_per_s"), "Images trained on in each second.", zero=True,
            marks=_marks(runs),
        ),
        line_chart(
            "Share of time waiting for data", _series(runs, "data_wait"),
            "Near 0 % the processor is always busy; a large share calls for more data.workers.", share=True, zero=True,
            marks=_marks(runs),
        ),
    ]  # fmt: skip
    return Section("speed", "Speed", lead, html('<div class="grid">{c}</div>', c=join(charts)))
