"""State probes of single frames of episodes: the run's own latents, a random model's and pixels, in one table.

jepa probe runs/tworoom --suite tworoom-state
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint
from jepa.checkpoint import Encoder, io
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.errors import ConfigError
from jepa.methods.base import Method
from jepa.methods.world import WorldModel
from jepa.nn.tokens import Normalise
from jepa.probe.bootstrap import Bootstrap
from jepa.probe.footage import Footage
from jepa.probe.frames import Embed, FramesConfig, Part, Source, Table, gather, of_encoder, of_pixels, of_world
from jepa.probe.suite import SplitsConfig, Suite


def load_method(path: Path) -> tuple[RunConfig, Method]:
    """The method of a checkpoint folder, frozen and in eval mode.

    Raises:
        CheckpointError: damaged, or of another architecture.
    """
    run_config = io.read_config(path)
    method = checkpoint.create(run_config)
    io.load_model(path, method)
    return run_config, method.eval().requires_grad_(False)


def open_splits(splits: SplitsConfig, dataset: str | None, run_config: RunConfig) -> tuple[Footage, Footage, Footage]:
    """Train, validation and test episodes at the model's pace.

    Raises:
        ConfigError: no data set, one without episodes, or a split that is not there.
    """
    where = dataset or run_config.data.path
    if not where:
        raise ConfigError(
            "the run names no data set (data.path is empty) and neither does the suite: give dataset=FOLDER, episodes "
            "built by `jepa data build`"
        )
    manifest = Manifest.open(where)
    train, val, test = (
        Footage.open(manifest, name, run_config.data) for name in (splits.train, splits.val, splits.test)
    )
    return train, val, test


def probe_frames(
    path: Path, settings: Suite, device: torch.device, say: Callable[[str], None], advance: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Rows, sources and data of the result file.

    Raises:
        ConfigError: a suite that does not fit the data set or the model.
        DataError: episodes that cannot be read, a state that never varies, latents that are not finite.
    """
    config = settings.probes.frames
    assert config is not None, "a suite without state variables"
    run_config, method = load_method(path)
    sources = _sources(run_config, method, int(io.read_state(path)["step"]), settings, config, device)
    footage = open_splits(settings.splits, settings.dataset, run_config)
    parts: list[Part] = []
    for split in footage:
        say(f"latents of split {split.name}")
        parts.append(gather(split, sources, config, settings.features.batch, advance))
    b = settings.bootstrap
    boot = Bootstrap(parts[2].clusters, b.resamples, b.confidence, b.seed)
    table = Table(config, (parts[0], parts[1], parts[2]), boot, settings.protocol)
    about = []
    for number, source in enumerate(sources):
        say(f"{source.name}, fitting")
        table.add(source, number)
        width = parts[0].features[number].shape[1]
        about.append({"encoder": source.name, "role": source.role, "width": width, **source.facts})
    missing = {"missing": table.missing} if config.blank else {}
    return {"dataset": _facts(footage, parts, config), "rows": table.rows, **missing, "sources": about}


def _sources(
    run_config: RunConfig, method: Method, step: int, settings: Suite, config: FramesConfig, device: torch.device
) -> list[Source]:
    """The run's own, then random ones of the same kind, then pixels."""
    baselines, world = settings.baselines, isinstance(method, WorldModel)
    name = f"latents (step {step})" if world else f"{method.exported()} (step {step})"
    found = [Source(name, "run", _embed(run_config, method, config, device), {"step": step})]
    for seed in range(run_config.seed, run_config.seed + baselines.random):
        random = checkpoint.random_method(run_config, seed).eval().requires_grad_(False)
        label = "random init" if baselines.random == 1 else f"random init (seed {seed})"
        found.append(Source(label, "random", _embed(run_config, random, config, device), {"seed": seed}))
    if baselines.pixels is not None:
        found.append(Source("pixels", "pixels", of_pixels(config, baselines.pixels.size)))
    return found


def _embed(run_config: RunConfig, method: Method, config: FramesConfig, device: torch.device) -> Embed:
    if isinstance(method, WorldModel):
        normalise = Normalise(run_config.data.mean, run_config.data.std).to(device)
        return of_world(method.to(device), normalise, config, device)
    return of_encoder(Encoder.of(method, run_config).to(device), config, device)


def _facts(footage: tuple[Footage, ...], parts: list[Part], config: FramesConfig) -> dict[str, Any]:
    first = footage[0]
    splits = {
        use: {"split": part.split, "n": len(part.places), "labelled": len(part.places),
              "originals": len({e for e, _ in part.places})}
        for use, part in zip(("train", "val", "test"), parts, strict=True)
    }  # fmt: skip
    return {
        "name": first.manifest.name, "path": str(first.manifest.root), "hash": first.manifest.hash, "classes": 0,
        "targets": list(config.variables), "splits": splits,
    }  # fmt: skip
