"""Attentive probe: a small transformer reads the frozen tokens; a grid of learning rates and weight decays at once.

The mean over tokens forgets where things are; learned queries that attend to the tokens do not, so V-JEPA's figures
are read this way. One probe is `jepa.nn.pooling.AttentiveClassifier`: depth 1 is a cross-attention block, deeper ones
have self-attention blocks before it. Training follows V-JEPA 2's public evaluation code: AdamW on all parameters, no
warm-up, a cosine down to 0, 20 epochs, batches of 256, 5 learning rates x 4 weight decays (the defaults here). Two
things differ: the head is chosen on the validation split where that code reports the best head of the test split, and
tokens are those of unaugmented samples, since they are computed once.

All heads of the grid are trained in one pass over the data (fit.py, heads.py) from one keyed start on keyed batches.
Classes are trained with cross-entropy, continuous targets with the squared error of the standardised target.

A sample may come as several views (clips.py): training takes each as a sample of its own, predictions are averaged.

Shapes: n samples, V views, N tokens, D width, G heads of the grid, C classes, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import Duration
from jepa.errors import ConfigError, DataError
from jepa.probe.clips import average_probabilities
from jepa.probe.fit import Ints, Params, Recipe, Room, Stack, cut, fit
from jepa.probe.heads import HeadShape, forward, heads_for, parameters
from jepa.probe.ridge import r2_score
from jepa.probe.tokens import Tokens

Say = Callable[[str], None]


@dataclass(frozen=True)
class AttentiveConfig:
    """Size of the probe, its grid and its training."""

    depth: int = 1  # transformer blocks, the last of them cross-attention; V-JEPA 2: 4
    heads: int | None = None  # attention heads; null: of width 64. V-JEPA 2: 16
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)  # learning rates, each with each weight decay
    weight_decay: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)  # of AdamW, on all parameters
    duration: Duration = field(default_factory=lambda: Duration(epochs=20))  # length of training
    warmup: Duration = field(default_factory=lambda: Duration(epochs=0))  # from start_lr to lr, then a cosine to 0
    start_lr: float = 0.0  # learning rate the warm-up starts from
    batch: int = 256  # samples in a step
    classify: bool = True  # whether the class is probed
    targets: tuple[str, ...] = ()  # continuous targets to probe; empty: none
    precision: Literal["fp32", "bf16"] = "fp32"  # of the probe's matrix products
    memory_gib: float = 2.0  # kept for a backward pass; samples and heads are worked on in parts that fit
    seed: int = 0  # of the start and of the order of samples

    def __post_init__(self) -> None:
        if not self.lr or not all(0 < v < float("inf") for v in self.lr):
            raise ConfigError(f"lr: got {list(self.lr)}, allowed: numbers above 0, at least one")
        if not self.weight_decay or not all(0 <= v < float("inf") for v in self.weight_decay):
            raise ConfigError(f"weight_decay: got {list(self.weight_decay)}, allowed: numbers >= 0, at least one")
        heads = 1 if self.heads is None else self.heads
        if min(self.depth, self.batch, heads) < 1 or not self.mlp_ratio > 0:
            raise ConfigError(
                f"depth={self.depth}, heads={self.heads}, mlp_ratio={self.mlp_ratio}, batch={self.batch}: allowed: "
                "depth, heads and batch from 1, mlp_ratio above 0"
            )
        if self.start_lr < 0 or not self.memory_gib > 0:
            raise ConfigError(
                f"start_lr={self.start_lr}, memory_gib={self.memory_gib}: allowed: start_lr >= 0, memory_gib > 0"
            )
        if not self.classify and not self.targets:
            raise ConfigError("classify=false and no targets: nothing to probe. Name targets, or leave the probe out")

    def grid(self) -> list[tuple[float, float]]:
        """(lr, weight_decay) of each head."""
        return [(lr, decay) for lr in self.lr for decay in self.weight_decay]

    def recipe(self, count: int) -> Recipe:
        """Training on `count` samples.

        Raises:
            ConfigError: a warm-up longer than the training.
        """
        batch = min(self.batch, count)
        steps, warmup = (d.to_steps(batch, count) for d in (self.duration, self.warmup))
        if steps < 1 or warmup > steps:
            raise ConfigError(
                f"attentive: {steps} steps with a warm-up of {warmup}; allowed: 1 step or more, and no longer warm-up"
            )
        return Recipe(self.grid(), steps, batch, warmup, self.start_lr, self.seed)


@dataclass(frozen=True)
class Grid:
    """Trained heads."""

    shape: HeadShape
    stack: Stack
    room: Room
    precision: str

    def answers(self, tokens: Tokens, head: int | None = None) -> Iterator[Tensor]:
        """Outputs (g, b, V, C) float32 on the CPU, for parts of the samples in order; of one head or of all."""
        params = self.stack.params() if head is None else self.stack.only(head)
        device, dtype = _where(params)
        parts = cut(np.arange(len(tokens)), self.room.samples)
        for x in tokens.walk(parts):
            with torch.no_grad(), _lower(device, self.precision):
                out = forward(self.shape, params, x.flatten(0, 1).to(device, dtype))
            yield out.float().cpu().view(len(out), len(x), x.shape[1], -1)


def train_grid(
    tokens: Tokens,
    answers: Tensor,
    outputs: int | tuple[int, ...],
    config: AttentiveConfig,
    device: torch.device | str = "cpu",
    say: Say | None = None,
    dtype: torch.dtype = torch.float32,
) -> Grid:
    """Train every head of the grid.

    Args:
        tokens: (n, V, N, D).
        answers: class numbers (n,) int64, or standardised targets (n, T); class numbers (n, Q) of several questions
            that a query each is given to, -1 where there is no answer.
        outputs: C or T; the classes of each question.
        say: told the progress.

    Raises:
        ConfigError: heads that do not divide the width, a warm-up longer than the training.
    """
    place = torch.device(device)
    _, views, count, width = tokens.shape
    shape = HeadShape(width, config.heads or heads_for(width), config.depth, outputs, config.mlp_ratio)
    recipe = config.recipe(len(tokens))
    stack = Stack(parameters(shape.module(config.seed)), len(recipe.grid), place, dtype)
    bytes_each = 2 if config.precision == "bf16" else dtype.itemsize
    room = shape.room(count * views, config.memory_gib, len(recipe.grid), bytes_each, place)

    def loss(params: Params, x: Tensor, places: Ints) -> Tensor:
        with _lower(place, config.precision):
            out = forward(shape, params, x.flatten(0, 1).to(place, dtype))  # (g, b V, C)
        wanted = answers[torch.from_numpy(places)].repeat_interleave(views, dim=0).to(place)
        return _losses(out.to(dtype), wanted, outputs) / views

    fit(stack, recipe, len(tokens), tokens.walk, loss, room, say)
    return Grid(shape, stack, room, config.precision)


def _losses(out: Tensor, wanted: Tensor, outputs: int | tuple[int, ...]) -> Tensor:
    """Summed losses (g,) of outputs (g, m, C) for classes (m,), targets (m, C) or classes of several questions (m, Q).

    The losses of several questions are added up, as in V-JEPA 2's evaluation code.
    """
    if not isinstance(outputs, int):
        parts = zip(torch.split(out, list(outputs), dim=2), wanted.unbind(1), strict=True)
        return torch.stack([_losses(part, labels, part.shape[2]) for part, labels in parts]).sum(dim=0)
    if wanted.is_floating_point():
        return (out - wanted.to(out.dtype)).square().mean(dim=2).sum(dim=1)
    labels = wanted.expand(len(out), -1)
    return (
        F.cross_entropy(out.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-1)
        .view(labels.shape)
        .sum(dim=1)
    )


def _lower(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _where(params: Params) -> tuple[torch.device, torch.dtype]:
    first = next(iter(params.values()))
    return first.device, first.dtype


# --- the class ----------------------------------------------------------------------------------------------------


def score(grid: Grid, tokens: Tokens, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean negative log probability of each head: (G,), (G,) float64. A head that diverged has -1."""
    right, loss = (torch.zeros(grid.stack.count, dtype=torch.float64) for _ in range(2))
    done = 0
    for out in grid.answers(tokens):
        wanted = labels[done : done + out.shape[1]]
        for head, logits in enumerate(out):
            chances = average_probabilities(logits)
            right[head] += (chances.argmax(dim=1) == wanted).sum()
            loss[head] -= chances.gather(1, wanted.view(-1, 1)).clamp(min=1e-300).log().sum()
        done += out.shape[1]
    right, loss = right / len(labels), loss / len(labels)
    return torch.where(torch.isfinite(loss), right, torch.full_like(right, -1.0)), loss.nan_to_num(float("inf"))


def attentive_probe(
    train: tuple[Tokens, Tensor],
    val: tuple[Tokens, Tensor],
    test: Tokens,
    classes: int,
    config: AttentiveConfig,
    device: torch.device | str = "cpu",
    name: str = "tokens",
    say: Say | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Train the grid, choose on the validation split, predict the test split.

    Args:
        train, val: tokens and labels (n,) int64.
        name: of the encoder, for errors.

    Returns:
        Class probabilities (n_test, C) float64 on the CPU, the mean over views; and what was chosen.

    Raises:
        ConfigError: settings that do not fit the tokens.
        DataError: every head diverged.
    """
    grid = train_grid(*train, classes, config, device, say)
    accuracy, loss = score(grid, *val)
    best = int(np.lexsort((loss.numpy(), -accuracy.numpy()))[0])
    if accuracy[best] < 0:
        raise diverged(name, config)
    found = torch.cat([average_probabilities(out[0]) for out in grid.answers(test, best)])
    return found, chosen(grid, config, len(train[0]), best, float(accuracy[best]))


# --- continuous targets -------------------------------------------------------------------------------------------


def attentive_regression(
    train: tuple[Tokens, Tensor],
    val: tuple[Tokens, Tensor],
    test: Tokens,
    config: AttentiveConfig,
    device: torch.device | str = "cpu",
    name: str = "tokens",
    say: Say | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The same for continuous targets (n, T); for each target the head with the best validation R² is taken.

    Returns:
        Predictions (n_test, T) float64 on the CPU, the mean over views; and for each target what was chosen.
    """
    targets = train[1].double()
    mean, std = targets.mean(dim=0), targets.std(dim=0, correction=0)
    assert bool((std > 0).all()), f"targets that do not vary: {std.tolist()}"
    grid = train_grid(train[0], ((targets - mean) / std).float(), targets.shape[1], config, device, say)

    def predict(tokens: Tokens, head: int | None = None) -> Tensor:  # (g, n, T)
        return torch.cat([out.double().mean(dim=2) for out in grid.answers(tokens, head)], dim=1) * std + mean

    scores = torch.stack([r2_score(val[1].double(), one) for one in predict(val[0])])  # (G, T)
    scores = scores.nan_to_num(-float("inf"))
    best = scores.argmax(dim=0)
    if bool((scores.max(dim=0).values == -float("inf")).any()):
        raise diverged(name, config)
    fits = {head: predict(test, head)[0] for head in sorted(set(best.tolist()))}
    found = torch.stack([fits[head][:, t] for t, head in enumerate(best.tolist())], dim=1)
    return found, [
        chosen(grid, config, len(train[0]), head, float(scores[head, t])) for t, head in enumerate(best.tolist())
    ]


def chosen(grid: Grid, config: AttentiveConfig, count: int, head: int, value: float) -> dict[str, Any]:
    """For the result file: a head's settings, its figure on the validation split, and the ends of the grid it is at."""
    lr, decay = config.grid()[head]
    edges = [
        f"{key} {side}"
        for key, values, one in (("lr", config.lr, lr), ("weight_decay", config.weight_decay, decay))
        for side, end in (("low", min(values)), ("high", max(values)))
        if len(values) > 1 and one == end
    ]
    out: dict[str, Any] = {"lr": lr, "weight_decay": decay, "val": value, "steps": config.recipe(count).steps}
    return out | ({"at_edge": ", ".join(edges)} if edges else {})


def diverged(name: str, config: AttentiveConfig) -> DataError:
    """The error when no head can be chosen."""
    return DataError(
        f"{name}: every head of the attentive probe diverged (learning rates {list(config.lr)}). Give lower ones with "
        "probes.attentive.lr=[...]"
    )
