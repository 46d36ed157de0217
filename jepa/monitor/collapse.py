"""When a run's health numbers mean collapse, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

_FALLEN = 0.4  # share of the highest value so far
_ALIKE = 0.99  # mean cosine of two images
_ADVICE = (
    "What helps: a slower teacher (momentum nearer to 1), a lower learning rate or a longer warm-up, larger target "
    "blocks. A collapsed encoder seldom recovers: start again, or from a checkpoint before the fall with --init-from."
)


def collapse_warnings(past: Sequence[dict[str, float]], now: dict[str, float], step: int) -> list[str]:
    """Warnings for the newest measurement, given the earlier ones in order.

    The teacher (or the only encoder) is judged, never the student of a teacher: a student's rank halves in a healthy
    start while the teacher's does not. An encoder is collapsing when one of these holds twice in a row:

    * few directions: the effective rank of its tokens is below 0.4 of its highest value so far;
    * one point: two images have a mean cosine above 0.99 while the std over images is below 0.4 of its highest value.

    Both compare with the run's own past, because a random ViT already maps images close together (cosine 0.9 and
    more). Twice in a row, because one dip often heals. On small I-JEPA runs made to collapse (momentum 0.99, learning
    rate 2e-3 to 3e-3) the warning came within 150 steps, healthy ones (momentum 0.998) never fell below 0.9.
    """
    names = {k.split("/")[1] for k in now if k.count("/") == 2}
    name = "target" if "target" in names else "context" if "context" in names else next(iter(sorted(names)), None)
    if name is None or not past:
        return []
    signs = _signs(name, past, now)
    again = _signs(name, past[:-1], past[-1])
    return [f"step {step}: {text} {_ADVICE}" for kind, text in signs.items() if kind in again]


def _signs(name: str, past: Sequence[dict[str, float]], now: dict[str, float]) -> dict[str, str]:
    """Signs of collapse at one measurement, by kind."""

    def highest(quantity: str) -> float:
        return max((p.get(f"health/{name}/{quantity}", 0.0) for p in past), default=0.0)

    signs = {}
    rank, spread_now, cosine = (now.get(f"health/{name}/{q}") for q in ("token_effective_rank", "std_mean", "cosine"))
    best = highest("token_effective_rank")
    if rank is not None and rank < _FALLEN * best:
        signs["directions"] = (
            f"the {name} encoder is collapsing onto few directions: the effective rank of its tokens is {rank:.1f}, "
            f"it was {best:.1f}."
        )
    widest = highest("std_mean")
    if cosine is not None and spread_now is not None and cosine > _ALIKE and spread_now < _FALLEN * widest:
        signs["point"] = (
            f"the {name} encoder is collapsing to one point: two images have a mean cosine of {cosine:.4f}, and their "
            f"spread is {spread_now:.3g}, it was {widest:.3g}."
        )
    return signs
