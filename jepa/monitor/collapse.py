"""When a run's health numbers mean collapse, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jepa.config import CollapseAlarm

ADVICE = (
    "What helps: a slower teacher (momentum nearer to 1), a lower learning rate or a longer warm-up, larger target "
    "blocks. A collapsed encoder seldom recovers: start again, or from a checkpoint before the fall with --init-from."
)


def collapse_warnings(
    past: Sequence[Mapping[str, float]], now: Mapping[str, float], step: int, settings: CollapseAlarm | None = None
) -> list[str]:
    """Warnings for the newest measurement, given the earlier ones in order.

    The teacher (or the only encoder) is judged, never the student of a teacher: a student's rank halves in a healthy
    start while the teacher's does not. An encoder is collapsing when one of these holds twice in a row (the numbers
    are those of `settings`):

    * few directions: the effective rank of its tokens is below 0.4 of its highest value so far;
    * one point: two images have a mean cosine above 0.99 while the std over images is below 0.4 of its highest value.

    Both compare with the run's own past, because a random ViT already maps images close together (cosine 0.9 and
    more). Twice in a row, because one dip often heals. On small I-JEPA runs made to collapse (momentum 0.99, learning
    rate 2e-3 to 3e-3) the warning came within 150 steps, healthy ones (momentum 0.998) never fell below 0.9.
    """
    settings = settings or CollapseAlarm()
    name = judged(now)
    if name is None or not past or settings.act == "ignore":
        return []
    found = signs(name, highest(name, past), now, settings)
    for back in range(1, settings.looks):
        again = past[:-back] and signs(name, highest(name, past[:-back]), past[-back], settings)
        found = {kind: text for kind, text in found.items() if again and kind in again}
    return [f"step {step}: {text} {ADVICE}" for text in found.values()]


def judged(now: Mapping[str, float]) -> str | None:
    """The encoder whose numbers decide: the teacher, or the only one."""
    names = {k.split("/")[1] for k in now if k.count("/") == 2}
    return "target" if "target" in names else "context" if "context" in names else next(iter(sorted(names)), None)


def highest(name: str, looks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The highest values so far of what an encoder is compared with."""
    return {
        q: max((look.get(f"health/{name}/{q}", 0.0) for look in looks), default=0.0)
        for q in ("token_effective_rank", "std_mean")
    }


def signs(name: str, best: Mapping[str, float], now: Mapping[str, float], settings: CollapseAlarm) -> dict[str, str]:
    """Signs of collapse at one measurement, by kind; `best`: what `highest` says of those before."""
    found = {}
    rank, spread, cosine = (now.get(f"health/{name}/{q}") for q in ("token_effective_rank", "std_mean", "cosine"))
    if rank is not None and rank < settings.rank * best["token_effective_rank"]:
        found["directions"] = (
            f"the {name} encoder is collapsing onto few directions: the effective rank of its tokens is {rank:.1f}, "
            f"it was {best['token_effective_rank']:.1f}."
        )
    narrow = spread is not None and spread < settings.rank * best["std_mean"]
    if cosine is not None and cosine > settings.cosine and narrow:
        found["point"] = (
            f"the {name} encoder is collapsing to one point: two images have a mean cosine of {cosine:.4f}, and their "
            f"spread is {spread:.3g}, it was {best['std_mean']:.3g}."
        )
    return found
