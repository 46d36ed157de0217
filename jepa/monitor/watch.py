"""Measures a method on fixed held-out images while it trains.

Shapes: n images, B batch, N tokens, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jepa import keyed
from jepa.config import RunConfig
from jepa.data import Batch, Manifest, Split, centre_batches
from jepa.data.remote import StorageError
from jepa.errors import ConfigError, DataError
from jepa.methods.base import Method
from jepa.methods.world import WorldModel
from jepa.monitor.collapse import collapse_warnings
from jepa.monitor.imagination import HeldOut
from jepa.monitor.measures import effective_rank, knn_votes, mean_cosine, spread, weight_distance
from jepa.nn.tokens import Normalise

Ints = npt.NDArray[np.int64]
_TOKENS = 2048  # tokens in the token rank
_LOSS_IMAGES = 128  # images in the relative loss
_KEEP_BYTES = 1 << 30  # decoded images stay in memory up to this much, beyond it they are read again each time


class Monitor:
    """Measures a method on fixed held-out images and says when it is collapsing.

    Args:
        config: the run; `config.monitor` says how many images, which split, how large the kNN bank is.
        manifest: the run's data.
        device: where the method is.
        autocast: the run's reduced precision, or None for float32.
        run_dir: the run folder. Earlier measurements in its metrics.jsonl are what the collapse warning compares
            with after a resume.

    Raises:
        ConfigError: `data.split` is not in the data set.
    """

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        device: torch.device | str = "cpu",
        *,
        autocast: torch.dtype | None = None,
        run_dir: Path | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.autocast = autocast
        self.run_dir = run_dir
        if config.data.split not in manifest.splits:
            known = ", ".join(sorted(manifest.splits))
            raise ConfigError(f"data.split={config.data.split!r} is not in the data set; it has: {known}")
        train = manifest.splits[config.data.split]
        held_out = manifest.splits.get(config.monitor.split or "", train)
        self.queries, self.bank = _choose(config, train, held_out)
        self.normalise = Normalise(config.data.mean, config.data.std).to(self.device)
        self.episodes = HeldOut(held_out, config.data) if config.data.steps and config.data.clip else None
        self._kept: dict[str, list[Batch]] = {}
        self._history: dict[int, dict[str, float]] | None = None

    @torch.no_grad()  # not inference_mode: a module may keep a table that it builds in here, and train with it later
    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        """Metrics ("health/...") of `method` after `step` steps, and warnings for the user, each a full sentence."""
        metrics: dict[str, float] = {}
        broken: list[str] = []
        self.normalise.to(dtype=next(method.parameters()).dtype)
        with (
            _undisturbed(method, self.device),
            torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None),
        ):
            encoders = method.encoders()
            pooled, tokens, labels = self._encode(encoders, self.queries, keep_tokens=True)
            voters, _, voter_labels = self._encode(encoders, self.bank) if self.bank else ({}, {}, labels)
            ratio = self._loss_ratio(method, step)
            if self.episodes and isinstance(method, WorldModel):
                metrics |= self.episodes.measure(method, self.normalise, self.device)
        for name, features in pooled.items():
            if not bool(torch.isfinite(features).all()):
                broken.append(f"the {name} encoder's features are not finite at step {step}")
                continue
            metrics |= {f"health/{name}/{k}": v for k, v in _measure(features, tokens[name]).items()}
            if name in voters:
                metrics[f"health/{name}/knn_top1"] = self._knn(voters[name], voter_labels, features, labels)
        if step == 0 and any(len(features) < 2 for features in pooled.values()):
            broken.append(
                f"one sample of split {self.queries.split.name!r} can be measured, so nothing is said of collapse: put "
                "more into it, or measure on the training split (monitor.split=null)"
            )
        if ratio is not None:
            metrics["health/loss_ratio"] = ratio
        if {"context", "target"} <= set(encoders):
            distance = weight_distance(encoders["target"], encoders["context"])
            if distance is not None and math.isfinite(distance):
                metrics["health/teacher_distance"] = distance
        return metrics, broken + self._judge(metrics, step)

    def _encode(
        self, encoders: dict[str, nn.Module], subset: _Subset, keep_tokens: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Pooled features (n, D) and a few tokens (t, D) by encoder, and labels (n,), all in float32 on the CPU."""
        pooled: dict[str, list[Tensor]] = {name: [] for name in encoders}
        tokens: dict[str, list[Tensor]] = {name: [] for name in encoders}
        labels = []
        per_image = -(-_TOKENS // len(subset.indices))
        for batch in self._batches(subset):
            images = self.normalise(batch.images.to(self.device))
            labels.append(batch.labels)
            for name, encoder in encoders.items():
                out = encoder(images).float()  # (B, N, D)
                pooled[name].append(out.mean(dim=1).cpu())
                if keep_tokens:
                    at = torch.from_numpy(_token_places(batch.index.numpy(), out.shape[1], per_image))
                    rows = torch.arange(out.shape[0])[:, None]
                    tokens[name].append(out[rows.to(out.device), at.to(out.device)].flatten(0, 1).cpu())
        return (
            {name: torch.cat(parts) for name, parts in pooled.items()},
            {name: torch.cat(parts) for name, parts in tokens.items() if parts},
            torch.cat(labels),
        )

    def _batches(self, subset: _Subset) -> Iterator[Batch]:
        if subset.name in self._kept:
            yield from self._kept[subset.name]
            return
        keep = len(subset.indices) * 3 * math.prod(self.config.data.size) <= _KEEP_BYTES
        size = min(self.config.train.micro_batch or 128, 128)
        seen = []
        for start in range(0, len(subset.indices), size):
            batch = self._read(subset.split, subset.indices[start : start + size])
            if batch is not None:
                seen.append(batch if keep else batch.slice(0, 0))
                yield batch
        if not seen:
            raise DataError(f"none of {len(subset.indices)} samples of split {subset.split.name!r} can be read")
        if keep:
            self._kept[subset.name] = seen

    def _read(self, split: Split, indices: Ints) -> Batch | None:
        """One batch; an unreadable image is left out, as training too goes on without it."""
        data = self.config.data
        try:
            (batch,) = centre_batches(split, data, len(indices), indices)
            return batch
        except StorageError:
            raise  # every other one would fail alike, after as long a wait
        except DataError:
            if len(indices) == 1:
                return None
        half = len(indices) // 2
        parts = [part for piece in (indices[:half], indices[half:]) if (part := self._read(split, piece)) is not None]
        if not parts:
            return None

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        return Batch(joined("images"), joined("labels"), joined("g"), joined("index"))

    def _knn(self, bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
        known = labels >= 0
        classes = int(max(bank_labels.max(), labels.max())) + 1
        found = knn_votes(bank, bank_labels, queries[known], [self.config.monitor.knn_k], classes)[0]
        return float((found == labels[known]).double().mean())

    def _loss_ratio(self, method: Method, step: int) -> float | None:
        """Loss over the loss of predicting the batch mean, on fixed images and masks; None if the method has none."""
        if method.episodes:  # their floor is copying the last frame, see jepa rollout
            return None
        size = self.config.train
        total = size.duration.to_steps(size.batch, len(self.bank.split if self.bank else self.queries.split))
        schedule = {k: torch.tensor(v, device=self.device) for k, v in method.schedule(step, max(total, 1)).items()}
        sampler = method.sampler(self.config.seed)
        loss, baseline, seen = 0.0, 0.0, 0
        for batch in self._batches(self.queries):
            masks = sampler(0, batch.index.numpy()).to(self.device) if sampler else None
            out = method(self.normalise(batch.images.to(self.device)), masks, schedule)
            if "loss_of_mean" not in out.metrics:
                return None
            loss += float(out.loss) * len(batch)
            baseline += float(out.metrics["loss_of_mean"]) * len(batch)
            seen += len(batch)
            if seen >= _LOSS_IMAGES:
                break
        return loss / baseline if baseline > 0 and math.isfinite(loss / baseline) else None

    def _judge(self, metrics: dict[str, float], step: int) -> list[str]:
        if self._history is None:  # read late: on resume the file is cut back to the checkpoint's step first
            self._history = _earlier(self.run_dir)
        past = [self._history[s] for s in sorted(self._history) if s < step]
        self._history[step] = metrics
        return collapse_warnings(past, metrics, step, self.config.health.collapse)


@dataclass(frozen=True)
class _Subset:
    name: str
    split: Split
    indices: Ints  # sorted


def _choose(config: RunConfig, train: Split, held_out: Split) -> tuple[_Subset, _Subset | None]:
    """Held-out images to measure, and labelled train images to vote (None without labels on both sides)."""
    monitor = config.monitor
    places = keyed.generator("monitor", config.seed).permutation(len(held_out))
    queries = _Subset("queries", held_out, np.sort(places[: max(2, monitor.samples)]).astype(np.int64))
    labels = np.asarray(train.labels)
    voters = np.flatnonzero(labels >= 0)
    if held_out is train:
        voters = np.setdiff1d(voters, queries.indices)
    useful = bool((np.asarray(held_out.labels)[queries.indices] >= 0).any()) and len(np.unique(labels[voters])) > 1
    if not useful or not monitor.knn_bank or not monitor.split:
        return queries, None
    drawn = keyed.generator("monitor.bank", config.seed).permutation(voters)[: monitor.knn_bank]
    return queries, _Subset("bank", train, np.sort(drawn).astype(np.int64))


def _token_places(index: Ints, count: int, per_image: int) -> Ints:
    """Which tokens of each image count: (B, per_image), keyed by the image so that it is the same every time."""
    drawn = keyed.uniform("monitor.tokens", 0, index, per_image)
    return np.minimum((drawn * count).astype(np.int64), count - 1)


def _measure(features: Tensor, tokens: Tensor) -> dict[str, float]:
    if len(features) < 2:  # the others tell how samples differ
        return {"token_effective_rank": effective_rank(tokens)}
    width = spread(features)
    return {
        "effective_rank": effective_rank(features),
        "effective_rank_centred": effective_rank(features, centre=True),
        "token_effective_rank": effective_rank(tokens),
        "std_mean": width.mean,
        "std_min": width.min,
        "dead": width.dead,
        "cosine": mean_cosine(features),
    }


@contextmanager
def _undisturbed(method: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode inside; on leaving, every module's mode and torch's random state are as they were."""
    modes = [(module, module.training) for module in method.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        method.eval()
        try:
            yield
        finally:
            for module, mode in modes:  # one by one: a teacher is in eval mode inside a method in train mode
                module.training = mode


def _earlier(run_dir: Path | None) -> dict[int, dict[str, float]]:
    """Measurements in a run folder's metrics.jsonl, by step; a damaged line is skipped."""
    found: dict[int, dict[str, float]] = {}
    path = run_dir / "metrics.jsonl" if run_dir else None
    if path is None or not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        health = {k: v for k, v in values.items() if k.startswith("health/")} if isinstance(values, dict) else {}
        if health and isinstance(values.get("step"), int):
            found[values["step"]] = health
    return found
