"""One evaluation of one run: features of the frozen encoder and of the baselines, probes, intervals, a result file.

    jepa probe runs/demo --suite digits

Every encoder goes through the same probes on the same samples; settings are chosen on the validation split for each
encoder by itself, so that a baseline gets the settings that suit it best. Nothing is random but what a seed fixes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import jepa
from jepa import checkpoint, config, cost, energy, verbosity
from jepa.checkpoint import Encoder, folder, layers
from jepa.config import RunConfig
from jepa.data import storage
from jepa.errors import ConfigError
from jepa.probe import anticipation, frozen, stored
from jepa.probe.anticipation import Actions
from jepa.probe.baselines import arithmetic, other_run, reordered
from jepa.probe.dataset import ProbeData
from jepa.probe.features import Embed, Extractor, Levels, Source, Wants, pixels
from jepa.probe.featureset import FeatureSet
from jepa.probe.rows import Table
from jepa.probe.suite import Suite, load_suite
from jepa.probe.timm_encoder import timm_source

_FILES = (folder.MODEL, folder.CONFIG)  # checked by hash before probing


def probe(
    run: Path | str,
    suite: str | Path,
    overrides: list[str] | None = None,
    *,
    device: str = "auto",
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Probe a run's newest checkpoint, one checkpoint, or extracted features, and write the result.

    Args:
        run: a run folder, RUN/checkpoints/step-N, or a folder made by `jepa extract`.
        suite: a YAML file or the name of a shipped suite; `overrides` are ``key.subkey=value`` over it.
        device: where encoders run: "auto", "cpu", "cuda", "mps".
        out: result file; default RUN/probes/SUITE.json.
        progress: show a progress bar on stderr.

    Returns:
        What the file holds: {"protocol", "suite", "run", "checkpoint", "dataset", "rows": [...], "seconds", ...}. A
        row has "encoder", "baseline", "probe", "metric", "value", "low", "high", "chosen", "n_test", "n_clusters"; a
        baseline's also "gap": the paired difference of the run's encoder and it, with its own interval.

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: a suite that does not fit (no labels for a probe that needs them, splits that are not there, ...).
        DataError: data that cannot be read or probed, features that are not finite.
    """
    start = time.perf_counter()
    settings = load_suite(suite, overrides)
    kept = stored.opened(run)
    path = checkpoint.resolve(run, files=_FILES) if kept is None else kept.root
    run_dir = path.parent.parent if path.parent.name == folder.FOLDER else path
    run_config = checkpoint.read_config(path) if kept is None else kept.about.run_config()
    out = out or run_dir / "probes" / f"{settings.name}.json"
    storage.check_writable(out)
    place = pick_device(device)
    meter = energy.Meter(place)
    if settings.probes.frames:
        if kept is not None:
            raise ConfigError(f"probes.frames runs the model itself, and {run} holds features: give the run")
        with progress_bar(progress) as bar:
            found = frozen.probe_frames(path, settings, place, bar.say, bar.advance)
    else:
        found = _probe(path, run_dir, run_config, settings, kept, place, progress)
    flops = cost.encode_flops(run_config)  # of the run's encoder; what the readers take is not counted
    result = {
        "protocol": settings.protocol,
        "suite": settings.name,
        "run": str(run_dir),
        "checkpoint": path.name if kept is None else f"step-{kept.about.step}",
        "seed": run_config.seed,
        **found,
        "published": config.to_dict(settings.published),
        "settings": config.to_dict(settings),
        "device": place.type,
        "versions": {"jepa": jepa.__version__, "torch": torch.__version__},
        "seconds": round(time.perf_counter() - start, 2),
        "cost": meter.cost() | ({"flops_per_sample": flops} if flops is not None else {}),
    }
    storage.write_json(out, result)
    return result


def _probe(
    path: Path, run_dir: Path, run_config: RunConfig, settings: Suite, kept: FeatureSet | None, place: torch.device,
    progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """Every probe of samples: data, rows and sources of the result file."""
    data = ProbeData.open(settings, run_config.data.path if kept is None else stored.dataset(kept, settings))
    asked = settings.probes.anticipation
    if asked and kept is not None:
        raise ConfigError(f"probes.anticipation runs the predictor too, and {path} holds features: give the run itself")
    actions = Actions.of(data, asked) if asked else None
    data = actions.data if actions else data
    with progress_bar(progress) as bar:
        wants = _wants(settings)
        sources = (
            anticipation.sources(path, run_config, settings) if asked else _sources(path, run_config, settings, kept)
        )
        sources += stored.baselines(settings, wants, data.manifest)
        bar.total(len(sources) * sum(len(part.index) for part in data.parts))
        extract = Extractor(
            data.manifest, settings.features, place, run_config.data.interpolation, run_dir / "probes" / "cache",
            bar.advance, actions.ends if actions else None,
        )  # fmt: skip
        # probes need float64, which MPS has not
        table = Table(settings, data, torch.device("cuda" if place.type == "cuda" else "cpu"), bar.say, actions)
        for source in sources:
            bar.say(source.name)
            found = extract.everything(source, data.wanted(), wants)
            try:
                table.add(source, found)
            finally:
                found.close()
    return {
        "dataset": data.facts() | ({"anticipation": actions.facts()} if actions else {}),
        **({"state": table.state.facts(settings.probes.state)} if table.state and settings.probes.state else {}),
        "rows": table.rows,
        "sources": table.sources,
    }


def pick_device(wanted: str) -> torch.device:
    """The device of that name; "auto" is the fastest here.

    Raises:
        ConfigError: there is no such device here.
    """
    if wanted == "auto":
        forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")  # as in training
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cpu" if forced else wanted)
    try:
        found = torch.device(wanted)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {wanted!r} cannot be used: {error}. Use auto, cpu, cuda or mps") from None
    return found


# --- what is compared ---------------------------------------------------------------------------------------------


def _wants(settings: Suite) -> Wants:
    return Wants(settings.probes.pooled, settings.probes.layers(), settings.probes.tokens)


def _sources(path: Path, run_config: RunConfig, settings: Suite, kept: FeatureSet | None) -> list[Source]:
    """The run's encoders, then the baselines. Whatever can be refused is refused here, before anything is computed."""
    if kept is not None:
        encoders: list[Encoder] = []
        found = [stored.source(kept, settings, _wants(settings))]
    else:
        weights = folder.manifest(path)["files"][folder.MODEL]["sha256"]
        names: tuple[str | None, ...] = settings.features.encoders or (None,)
        encoders = [checkpoint.load_encoder(path, which=name) for name in names]
        for encoder in encoders:
            layers.resolve(encoder, (*settings.probes.layers(), *settings.features.tokens.layers))
        found = [_own(encoder, weights) for encoder in encoders]
        found += [reordered(found[0], how) for how in settings.baselines.frames]
    count = settings.baselines.random
    if count and kept is not None:
        encoders = [checkpoint.random_encoder(run_config, run_config.seed, kept.about.which)]  # of the same kind
    for seed in range(run_config.seed, run_config.seed + count):
        found.append(_random(seed, encoders[0], "random init" if count == 1 else f"random init (seed {seed})"))
    if settings.baselines.pixels is not None:
        height, width = found[0].image_size[-2:]
        found.append(pixels((height, width), settings.baselines.pixels.size))
    found += [other_run(run, settings.features.clips is not None) for run in settings.baselines.runs]
    return found + [timm_source(model) for model in settings.baselines.timm]


def _own(encoder: Encoder, weights: str) -> Source:
    def build(device: torch.device) -> Embed:
        return encoder.to(device).pool

    def inner(device: torch.device, wanted: tuple[int, ...]) -> Levels:
        return layers.levels(encoder.to(device), wanted)

    identity = {"weights": weights, "which": encoder.which, "config": arithmetic(encoder)}
    facts = {"step": encoder.step, "width": encoder.width}
    name = f"{encoder.which} (step {encoder.step})"
    return Source(name, "run", encoder.image_size, identity, build, facts, inner, layers.grid(encoder))


def _random(seed: int, like: Encoder, name: str) -> Source:
    def build(device: torch.device) -> Embed:
        return checkpoint.random_encoder(like.config, seed, like.which).to(device).pool

    def inner(device: torch.device, wanted: tuple[int, ...]) -> Levels:
        return layers.levels(checkpoint.random_encoder(like.config, seed, like.which).to(device), wanted)

    identity = {"random": seed, "which": like.which, "config": arithmetic(like)}
    facts = {"seed": seed, "width": like.width}
    return Source(name, "random", like.image_size, identity, build, facts, inner, layers.grid(like))


# --- around it ----------------------------------------------------------------------------------------------------


class Bar:
    """A progress bar over all images of all encoders."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, progress.add_task("features", total=None)

    def total(self, images: int) -> None:
        """How many there are."""
        self._progress.update(self._task, total=images)

    def say(self, what: str) -> None:
        """What is being done."""
        self._progress.update(self._task, description=what)

    def advance(self, images: int) -> None:
        """So many more are done."""
        self._progress.advance(self._task, images)


@contextmanager
def progress_bar(shown: bool) -> Iterator[Bar]:
    """A bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), disable=not shown or verbosity.quiet(), transient=True
    ) as progress:
        yield Bar(progress)
