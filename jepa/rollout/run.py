"""One evaluation of one world model's imagination on held-out episodes, and its result file.

jepa rollout runs/tworoom --suite tworoom-rollout
jepa rollout runs/tworoom windows.horizon=20 pictures.decoder_steps=2000
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jepa
from jepa import checkpoint, config
from jepa.checkpoint import folder
from jepa.config import RunConfig
from jepa.data import storage
from jepa.errors import ConfigError
from jepa.methods.world import WorldModel
from jepa.nn.tokens import Normalise
from jepa.probe.bootstrap import Bootstrap
from jepa.probe.episodes import Place, Recordings, some, spread_places
from jepa.probe.footage import Footage
from jepa.probe.frames import Part, Reader, Source, gather, of_world
from jepa.probe.frozen import load_method, open_splits
from jepa.probe.run import pick_device, progress_bar
from jepa.rollout import pictures
from jepa.rollout.measure import figures, measure
from jepa.rollout.suite import RolloutSuite, load_suite


def rollout(
    run: Path | str,
    suite: str | Path | None = None,
    overrides: list[str] | None = None,
    *,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Roll out a run's newest checkpoint, or one checkpoint, and write RUN/rollouts/SUITE.json.

    Args:
        run: a run folder of a world model, or RUN/checkpoints/step-N.
        suite: a YAML file or the name of a shipped suite; None: the defaults. `overrides` are ``key.subkey=value``.
        device: where the model runs: "auto", "cpu", "cuda", "mps".
        progress: show a progress bar on stderr.

    Returns:
        What the file holds. Curves are {"value", "low", "high"} with a number for each step: "latent" by distance (l2,
        cosine) and course (open_loop, one_step, copy, shuffled, zero), "state" by variable the same in its "unit" and
        with the course read_off, "ratios" of the open loop to the last frame ("copy") and of other actions to the
        right ones ("shuffled", "zero"); "uncertainty" with Spearman's correlation and the reliability curve, or null;
        "useful_steps"; "pictures".

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: a method that does not imagine, a horizon it was not made for, a suite that does not fit.
        DataError: episodes that cannot be read, or none that is long enough.
    """
    begin = time.perf_counter()
    settings = load_suite(suite, overrides)
    path = checkpoint.resolve(run, files=(folder.MODEL, folder.CONFIG))
    run_dir = path.parent.parent if path.parent.name == folder.FOLDER else path
    out = run_dir / "rollouts" / f"{settings.name}.json"
    storage.check_writable(out)
    place = pick_device(device)
    run_config, model, normalise = open_world(path, place)
    _check_horizon(model, settings)
    if settings.splits.test == run_config.data.split:
        raise ConfigError(
            f"splits.test={settings.splits.test!r} is what the model was trained on: imagination is judged on episodes "
            "that were held out"
        )
    train, val, test = open_splits(settings.splits, settings.dataset, run_config)
    places = _places(test, settings)
    boot = _bootstrap(settings, places)
    with progress_bar(progress) as bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of models that imagine by drawing
        bar.total(len(places))
        reader = _reader(model, normalise, train, val, settings, place, bar.say)
        bar.say("rolling out")
        errors = measure(model, normalise, test, places, settings, reader, place, bar.advance)
        drawn, about = [], None
        if settings.pictures:
            bar.say("drawing")
            draw, about = pictures.drawer(
                model, normalise, train, settings.pictures, settings.windows.seen, settings.windows.batch, place
            )
            made = pictures.roll_outs(model, normalise, test, places, settings, draw, place)
            drawn = pictures.save(made, run_dir / "rollouts" / settings.name)
    result = {
        "protocol": settings.protocol,
        "suite": settings.name,
        "run": str(run_dir),
        "checkpoint": path.name,
        "method": run_config.method.get("name"),
        "seed": run_config.seed,
        "dataset": _facts(settings, test, places),
        **figures(errors, settings, boot, reader),
        "pictures": {"by": about, "files": drawn} if settings.pictures else None,
        "settings": config.to_dict(settings),
        "device": place.type,
        "versions": {"jepa": jepa.__version__, "torch": torch.__version__},
        "seconds": round(time.perf_counter() - begin, 2),
    }
    storage.write_json(out, result)
    return result


def open_world(path: Path, device: torch.device) -> tuple[RunConfig, WorldModel, Normalise]:
    """The world model of a checkpoint folder, frozen and in eval mode, and how its frames are normalised.

    Raises:
        CheckpointError: damaged, or of another architecture.
        ConfigError: a method that is no world model.
    """
    run_config, model = load_method(path)
    if not isinstance(model, WorldModel):
        raise ConfigError(
            f"{path} is of the method {run_config.method.get('name')!r}, which imagines nothing. `jepa rollout` needs "
            "a world model, trained on episodes; an encoder is looked at with `jepa probe`"
        )
    return run_config, model.to(device), Normalise(run_config.data.mean, run_config.data.std).to(device)


def _check_horizon(model: WorldModel, suite: RolloutSuite) -> None:
    if model.reach is not None and suite.windows.horizon > model.reach:
        raise ConfigError(
            f"windows.horizon={suite.windows.horizon}: this model was made to imagine at most {model.reach} steps. "
            f"Give windows.horizon={model.reach} or less, or train it for more"
        )


def _places(test: Recordings, suite: RolloutSuite) -> list[Place]:
    windows = suite.windows
    chosen = some(len(test.lengths), windows.episodes, 0)
    lengths = [test.lengths[i] for i in chosen]
    found = [(chosen[e], f) for e, f in spread_places(lengths, windows.per_episode, windows.seen, windows.horizon)]
    if len({e for e, _ in found}) < 2:
        raise ConfigError(
            f"a roll-out of {windows.seen} frames seen and {windows.horizon} steps needs two episodes of "
            f"{windows.seen + windows.horizon} frames at the model's pace; of {len(lengths)} in split {test.name!r} "
            f"the longest has {max(lengths, default=0)}. Lower windows.horizon or windows.seen"
        )
    return found


def _bootstrap(suite: RolloutSuite, places: list[Place]) -> Bootstrap:
    b = suite.bootstrap
    return Bootstrap(np.array([e for e, _ in places]), b.resamples, b.confidence, b.seed)


def _reader(
    model: WorldModel, normalise: Normalise, train: Recordings, val: Recordings, suite: RolloutSuite,
    device: torch.device, say: Any,
) -> Reader | None:  # fmt: skip
    """A linear reader of the state, fitted to latents of real frames."""
    if suite.state is None:
        return None
    say("fitting the state reader")
    source = Source("latents", "run", of_world(model, normalise, suite.state, device))
    parts: list[Part] = [gather(split, [source], suite.state, suite.windows.batch) for split in (train, val)]
    return Reader.fit(parts[0], parts[1], suite.state)


def _facts(suite: RolloutSuite, test: Footage, places: list[Place]) -> dict[str, Any]:
    used = {e for e, _ in places}
    asked = len(some(len(test.lengths), suite.windows.episodes, 0))
    return {
        "name": test.manifest.name, "path": str(test.manifest.root), "hash": test.manifest.hash, "split": test.name,
        "windows": len(places), "episodes": len(used), "too_short": asked - len(used),
    }  # fmt: skip
