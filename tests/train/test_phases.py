"""Phases of a run: sizes, batches and rates change on the way, and everything else goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import jepa
from jepa import checkpoint, config, phases, prepare
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.monitor import Monitor
from jepa.report import build_report, summary
from jepa.train import train
from tests.tiny import run_config
from tests.train import runs, worker
from tests.train.worker import Job

# Most of an epoch at 20 px, then larger pictures in smaller batches under a rate of its own, then larger still.
LARGER = (
    "phases.larger={duration: {steps: 4}, data: {image_size: 28}, train: {batch: 4}, optim: {shape: linear, lr: 0.001}}"
)
LARGEST = "phases.largest={duration: {samples: 12}, data: {image_size: 32, crop_scale: [0.8, 1.0]}, train: {batch: 4}}"
PHASED = ("train.duration={steps: 6}", "train.checkpoint_every={steps: 4}", "train.keep=1", LARGER, LARGEST)
G = [*(8 * k for k in range(1, 7)), *(48 + 4 * k for k in range(1, 8))]  # samples seen after each step


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run through all phases."""
    out = tmp_path_factory.mktemp("phases") / "run"
    train(run_config(tiny_data, *PHASED), out, trace=True, monitor=Monitor, quiet=True)
    return out


def test_samples_go_on_and_sizes_change(whole: Path) -> None:
    rows, seen = runs.lines(whole), runs.trace(whole)
    assert [r["step"] for r in rows] == list(range(1, 14)) and [r["g"] for r in rows] == G
    assert [r["phase"] for r in rows] == ["main"] * 6 + ["larger"] * 4 + ["largest"] * 3
    assert [r["g"] for r in seen] == list(range(76)), "nothing is lost or repeated at a boundary"
    assert sorted(r["index"] for r in seen[:64]) == list(range(64)), "an epoch ends in the middle of a phase"
    assert [r["step"] for r in seen] == [k for k in range(6) for _ in range(8)] + [
        k for k in range(6, 13) for _ in "0123"
    ]


def test_every_checkpoint_is_of_the_size_it_was_trained_at(whole: Path) -> None:
    assert checkpoint.steps(whole) == [6, 10, 13], "phases' ends are kept for good, and the newest"
    for step, side, name in ((6, 20, "main"), (10, 28, "larger"), (13, 32, "largest")):
        at = whole / "checkpoints" / f"step-{step}"
        encoder = jepa.load_encoder(at)
        assert encoder.image_size == (side, side)
        assert encoder(torch.zeros(1, 3, side, side)).shape == (1, (side // 4) ** 2, 32)
        state, used = checkpoint.read_state(at), checkpoint.read_config(at)
        assert state["phase"] == name and state["g"] == G[step - 1] and used.phases == {}
    assert list(checkpoint.read_config(whole).phases) == ["larger", "largest"]


def test_positions_are_interpolated_and_the_rest_is_kept(tiny_data: Path, whole: Path, tmp_path: Path) -> None:
    """A phase at rate 0 leaves all weights alone; only the tables are of another grid."""
    still = "optim: {lr: 0.0, final_lr: 0.0}, method: {ema: [1, 1]}"
    larger = f"phases.larger={{duration: {{steps: 1}}, data: {{image_size: 28}}, {still}}}"
    train(run_config(tiny_data, *PHASED[:3], larger), tmp_path / "run", quiet=True)
    before, after = (runs.tensors(tmp_path / "run", step) for step in (6, 7))
    tables = {"encoder.pos_embed", "target.pos_embed", "predictor.predictor_pos_embed"}
    weights = [n for n in before if not n.startswith(("exp_avg", "step.")) and n not in tables]
    runs.assert_bit_equal({n: before[n] for n in weights}, {n: after[n] for n in weights})
    for name in tables:
        table = before[name].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.interpolate(table, size=(7, 7), mode="bilinear").flatten(2).transpose(1, 2)
        torch.testing.assert_close(after[name], wanted)
    assert {n for n in before if n.startswith("exp_avg.")} == {n for n in after if n.startswith("exp_avg.")}
    assert after["step.encoder.norm.weight"] == 7, "the optimiser goes on counting"


def test_rates_begin_anew_only_where_a_phase_says_so(whole: Path) -> None:
    rows = runs.lines(whole)
    main, own = rows[:6], rows[6:]
    assert main[-1]["lr"] == pytest.approx(1e-6), "the main part's cosine ends with it"
    peak, final = 1e-3, 1e-6
    for k, row in enumerate(own):  # no warm-up; the third phase has no optim section, so the line spans both
        assert row["lr"] == pytest.approx(peak + (k + 1) / 7 * (final - peak))
    assert [row["wd"] for row in own] == pytest.approx([0.4] * 7), "goes on where it ended"
    momenta = [row["momentum"] for row in rows]  # no phase has a method section: one schedule over the whole run
    assert momenta == pytest.approx([0.996 + k / 13 * 0.004 for k in range(13)])


def test_one_cosine_over_growing_pictures(tiny_data: Path, tmp_path: Path) -> None:
    """Progressive resolution: without an optim section rates are those of one long run."""
    growing = ("train.duration={steps: 4}", "phases.large={duration: {steps: 4}, data: {image_size: 24}}")
    train(run_config(tiny_data, *growing), tmp_path / "growing", quiet=True)
    train(run_config(tiny_data, "train.duration={steps: 8}"), tmp_path / "one", quiet=True)
    rates = [[(r["lr"], r["wd"], r["momentum"]) for r in runs.lines(tmp_path / name)] for name in ("growing", "one")]
    assert rates[0] == rates[1]
    assert runs.lines(tmp_path / "growing")[:4] == [{**r, "phase": "main"} for r in runs.lines(tmp_path / "one")[:4]]


def test_operations_are_counted_by_phase(whole: Path, tiny_data: Path) -> None:
    plan = prepare.validate(run_config(tiny_data, *PHASED))
    costs = [stage.step_flops for stage in plan.stages]
    assert [row["flops"] for row in runs.lines(whole)] == pytest.approx(
        [sum(costs[(k >= 6) + (k >= 10)] for k in range(done)) for done in range(1, 14)]
    )
    assert costs[0] != costs[1] != costs[2]


def test_health_is_measured_at_the_phases_size(whole: Path) -> None:
    health = runs.lines(whole, "health/target/std_mean")
    assert [row["step"] for row in health] == [0, 4, 6, 8, 10, 12, 13], "and at the end of every phase"
    assert [row.get("phase") for row in health] == ["main"] * 3 + ["larger"] * 2 + ["largest"] * 2


def test_the_report_marks_the_boundaries_and_counts_samples(whole: Path, tmp_path: Path) -> None:
    page = build_report([whole], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(">larger</text>") == page.count(">largest</text>") > 5
    assert summary(whole)["samples"] == 76


@pytest.mark.slow
def test_compiled_parts_are_traced_once_more(tiny_data: Path, whole: Path, tmp_path: Path) -> None:
    """Real tracing; code generation is left out, it takes minutes."""
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("aot_eager")
    try:
        train(run_config(tiny_data, *PHASED, "train.compile=true"), tmp_path / "run", quiet=True)
    finally:
        torch.compiler.set_default_backend(before)
    for ours, theirs in zip(runs.lines(tmp_path / "run"), runs.lines(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


# --- killed and resumed -----------------------------------------------------------------------------------------------

KILLS = [
    ("before-optimizer", 5),  # the main part's last step
    ("in-weights", 6),  # while the boundary's checkpoint is written
    ("before-prune", 6),
    ("before-step", 6),  # exactly at the boundary
    ("mid-step", 6),  # the first step of the second phase
    ("mid-step", 8),
    ("after-line", 10),  # at the next boundary, before its checkpoint
    ("before-step", 10),
    ("before-rename", 13),
]


def test_killed_at_every_boundary(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number, point in enumerate(KILLS):
        code = worker.run(Job(tiny_data, out, PHASED, resume=number > 0, kill=point))
        assert code == -9, f"{point}: the process ended with {code} instead of being killed there"
    assert worker.run(Job(tiny_data, out, PHASED, resume=True)) == 0
    assert runs.lines(out) == runs.lines(whole) and runs.trace(out) == runs.trace(whole)
    for step in (6, 10, 13):
        runs.assert_bit_equal(runs.tensors(out, step), runs.tensors(whole, step))


def test_other_numbers_of_ranks(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Two processes, one over the first boundary, two again: same samples, crops and masks."""
    out = tmp_path / "run"
    for number, (world, stop) in enumerate([(2, 5), (1, 7)]):
        jobs = worker.ranks(Job(tiny_data, out, PHASED, resume=number > 0, kill=("before-step", stop)), world)
        assert -9 in worker.run_group(jobs)
    assert worker.run_group(worker.ranks(Job(tiny_data, out, PHASED, resume=True), 2)) == [0, 0]
    assert runs.trace(out) == runs.trace(whole)
    for ours, theirs in zip(runs.lines(out), runs.lines(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
        assert (ours["step"], ours["g"], ours["phase"], ours["lr"]) == (
            theirs["step"], theirs["g"], theirs["phase"], theirs["lr"],
        )  # fmt: skip


# --- longer, later, without -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def back_to(run: Path, step: int) -> None:
    """As if the run had been stopped there."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def test_a_phase_that_has_not_begun_may_be_added(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Decide on the cool-down when the main part is over: bit-equal to having planned it."""
    out, sections = tmp_path / "run", "phases.larger.method={}"
    later = (*PHASED[:3], LARGER, sections)
    train(run_config(tiny_data, *later), tmp_path / "planned", quiet=True)
    train(run_config(tiny_data, *PHASED[:3]), out, quiet=True)
    train(run_config(tiny_data, *later), out, resume=True, quiet=True)
    runs.assert_bit_equal(runs.tensors(out, 10), runs.tensors(tmp_path / "planned", 10))
    assert [r["loss"] for r in runs.lines(out)] == [r["loss"] for r in runs.lines(tmp_path / "planned")]
    with pytest.raises(ConfigError, match=r"6 steps done would have had another momentum\..*optim .* and method"):
        train(run_config(tiny_data, *PHASED[:3]), tmp_path / "third", quiet=True)
        train(run_config(tiny_data, *PHASED[:3], LARGER), tmp_path / "third", resume=True, quiet=True)


def test_a_phase_that_has_begun_stays(copy: Path, tiny_data: Path) -> None:
    changed = run_config(tiny_data, *PHASED, "phases.larger.data.image_size=24")
    with pytest.raises(ConfigError, match=r"phases\.larger\.data\.image_size was 28, now 24"):
        train(changed, copy, resume=True, quiet=True)
    with pytest.raises(ConfigError, match=r"stay the first ones, in this order: larger, largest"):
        train(run_config(tiny_data, *PHASED[:3], LARGEST, LARGER), copy, resume=True, quiet=True)
    back_to(copy, 10)  # the last phase has not begun, but the rates of the one before are laid out over it
    with pytest.raises(ConfigError, match="10 steps done would have had another lr, momentum"):
        train(run_config(tiny_data, *PHASED, "phases.largest=null"), copy, resume=True, quiet=True)


def test_extend_makes_the_part_longer_that_the_run_is_in(copy: Path, whole: Path, tiny_data: Path) -> None:
    result = train(run_config(tiny_data, *PHASED), copy, extend=config.Duration(steps=5), quiet=True)
    assert (result.step, result.total_steps) == (15, 15)
    rows = runs.lines(copy)
    assert rows[:13] == runs.lines(whole) and [r["phase"] for r in rows[13:]] == ["largest"] * 2
    assert rows[14]["lr"] == pytest.approx(1e-6) and [r["g"] for r in rows[13:]] == [80, 84]
    assert checkpoint.read_config(copy).phases["largest"].duration.steps == 5  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"new total length of phase 'largest', 2 steps, but the run already has 5"):
        train(checkpoint.read_config(copy), copy, extend=config.Duration(steps=2), quiet=True)


def test_extend_before_the_first_boundary_moves_what_follows(copy: Path, tiny_data: Path) -> None:
    back_to(copy, 6)
    train(run_config(tiny_data, *PHASED), copy, extend=config.Duration(steps=8), trace=True, quiet=True)
    rows = runs.lines(copy)
    assert [r["phase"] for r in rows] == ["main"] * 8 + ["larger"] * 4 + ["largest"] * 3
    assert [r["g"] for r in runs.trace(copy)] == list(range(64 + 28))


def test_one_part_alone(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Without its phases a run is its main part; without a main part it is its phases, from other weights."""
    train(run_config(tiny_data, *PHASED, "phases.larger=null", "phases.largest=null"), tmp_path / "main", quiet=True)
    assert [r["step"] for r in runs.lines(tmp_path / "main")] == list(range(1, 7))
    alone = run_config(tiny_data, *PHASED, "train.duration={steps: 0}", "phases.largest=null")
    train(alone, tmp_path / "later", init_from=whole / "checkpoints" / "step-6", quiet=True)
    rows = runs.lines(tmp_path / "later")
    assert len(rows) == 4 and rows[0]["g"] == 4
    assert checkpoint.read_config(tmp_path / "later" / "checkpoints" / "step-4").data.image_size == (28, 28)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("{}", r"phases\.next: missing required key.*duration"),
        ("{duration: {steps: 2}, data: {image_size: 21}}", r"phases\.next: image height 21 is not a multiple"),
        ("{duration: {steps: 2}, data: {image_size: 4}}", r"phases\.next: .*mask"),
        (
            "{duration: {steps: 2}, data: {path: elsewhere}}",
            r"phases\.next\.data\.path: this stays the same.*image_size",
        ),
        (
            "{duration: {steps: 2}, data: {image_sise: 24}}",
            r"phases\.next\.data\.image_sise.*Did you mean 'image_size'",
        ),
        ("{duration: {steps: 2}, data: {image_size: big}}", r"phases\.next: data\.image_size: expected a list of 2"),
        ("{duration: {steps: 2}, train: {precision: bf16}}", r"phases\.next\.train\.precision: this stays the same"),
        ("{duration: {steps: 2}, optim: {lr: -1}}", r"phases\.next: out of range: optim\.lr=-1"),
        ("{duration: {steps: 2}, optim: {warmup: {steps: 9}}}", r"phases\.next: optim\.warmup is 9 steps"),
        ("{duration: {steps: 2}, mix: {other: {batch: 2}}}", r"unknown key 'phases\.next\.mix\.other'"),
        ("{duration: {steps: 2}, method: {encoder: {depth: 2}}}", r"phases\.next: method\.encoder: this stays.*ema"),
        ("{duration: {steps: 2}, method: {name: vjepa}}", r"phases\.next"),
        ("{duration: {steps: 2}, train: {micro_batch: 0}}", r"phases\.next: .*micro_batch"),
        ("{duration: {steps: 2}, data: {clip: {frames: 4, fps: 4}}}", r"phases\.next: .*holds images"),
    ],
)
def test_every_phase_is_checked_before_anything_starts(phase: str, words: str, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(run_config(tiny_data, f"phases.next={phase}"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_main_part_keeps_its_name(tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"phases\.main: this name is the main part's"):
        run_config(tiny_data, "phases.main={duration: {steps: 2}}")


# --- a cool-down of clips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rope", "sincos"])
def test_longer_and_larger_clips(kind: str, movies: Path, tmp_path: Path) -> None:
    """V-JEPA's cool-down: more frames, larger ones, a falling rate; resumed in the middle of it bit for bit."""
    settings = run_config(
        movies, "data.image_size=24", "data.clip={frames: 4, fps: 4}", "train.duration={steps: 2}", "train.batch=4",
        "train.checkpoint_every={steps: 1}", "train.keep=0", f"method.position.kind={kind}", "optim.warmup={steps: 1}",
        "method.encoder={patch: 8, width: 32, depth: 1, heads: 1}", "method.predictor={width: 32, depth: 1, heads: 1}",
        "phases.cooldown={duration: {steps: 3}, data: {image_size: 32, clip: {frames: 8}}, train: {micro_batch: 2}, "
        "optim: {shape: linear, lr: 0.0005}}", method="vjepa",
    )  # fmt: skip
    train(settings, tmp_path / "run", monitor=Monitor, quiet=True)
    copied = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    back_to(copied, 3)
    train(settings, copied, resume=True, quiet=True)
    runs.assert_bit_equal(runs.tensors(tmp_path / "run", 5), runs.tensors(copied, 5))
    encoder = jepa.load_encoder(copied)
    assert encoder.size == (8, 32, 32) and encoder.config.data.clip == config.ClipConfig(frames=8, fps=4.0)
    assert encoder(torch.zeros(1, 3, 8, 32, 32)).shape[1] == 4 * 4 * 4


# --- pure functions ---------------------------------------------------------------------------------------------------


def made(**sections: Any) -> RunConfig:
    return config.build(
        RunConfig, {"train": {"batch": 8, "duration": {"steps": 10}}, "mix": {"more": {"batch": 2}}} | sections
    )


def test_layout_is_a_function_of_the_configuration() -> None:
    parts = {
        "a": {"duration": {"epochs": 1}, "train": {"batch": 16}, "mix": {"more": {"batch": 3}}},
        "none": None,
        "b": {"duration": {"samples": 40}, "optim": {"lr": 0.5}},
        "c": {"duration": {"steps": 5}, "method": {"ema": [1.0, 1.0]}},
    }
    main, a, b, c = phases.layout(made(phases=parts), dataset_size=64)
    spans = [(p.span.start, p.span.stop) for p in (main, a, b, c)]
    assert spans == [(0, 10), (10, 14), (14, 19), (19, 24)]
    assert [(p.rates.start, p.rates.stop) for p in (main, a, b, c)] == [(0, 14), (0, 14), (14, 24), (14, 24)]
    assert [(p.clock.start, p.clock.stop) for p in (main, a, b, c)] == [(0, 19), (0, 19), (0, 19), (19, 24)]
    assert [dict(p.first) for p in (main, a, b, c)] == [
        {"data": 0, "more": 0}, {"data": 80, "more": 20}, {"data": 144, "more": 32}, {"data": 184, "more": 42},
    ]  # fmt: skip
    assert all(
        p.shifts[s] + p.span.start * phases.batches(p.config)[s] == p.first[s] for p in (a, b, c) for s in p.first
    )
    assert (b.config.optim.lr, b.config.optim.warmup.steps, c.config.optim.lr) == (0.5, 0, 0.5)
    assert json.dumps(config.to_dict(c.config.method["ema"])) == "[1.0, 1.0]" and "ema" not in b.config.method


def test_rates_of_its_own_begin_where_those_before_ended() -> None:
    parts = {name: {"duration": {"steps": 5}, "optim": changes} for name, changes in (
        ("a", {"final_lr": 0.1, "final_weight_decay": 0.2}), ("b", {"shape": "constant"}), ("c", {"final_lr": 0.0}),
    )}  # fmt: skip
    settings = made(optim={"lr": 1.0, "final_lr": 0.5, "weight_decay": 0.3, "final_weight_decay": 0.4}, phases=parts)
    found = [phase.config.optim for phase in phases.layout(settings, 64)]
    assert [(o.lr, o.final_lr) for o in found] == [(1.0, 0.5), (0.5, 0.1), (0.1, 0.5), (0.1, 0.0)]
    assert [(o.weight_decay, o.final_weight_decay) for o in found] == [(0.3, 0.4), (0.4, 0.2), (0.2, 0.4), (0.4, 0.4)]


def test_a_clip_is_spaced_in_one_way() -> None:
    clip = {"data": {"clip": {"frames": 16, "fps": 4}}}
    for change, wanted in (({"frames": 64}, (64, 4.0, None)), ({"stride": 2}, (16, None, 2))):
        settings = made(**clip, phases={"next": {"duration": {"steps": 1}, "data": {"clip": change}}})
        found = phases.in_force(settings, "next").data.clip
        assert found is not None and (found.frames, found.fps, found.stride) == wanted


def test_debug_shrinks_phases_too() -> None:
    for name in ("vjepa2-vit-g16", "vjepa21-vit-l16"):
        plain, small = config.load(name), config.load(name, overlays=["debug"])
        assert plain.phases.keys() == small.phases.keys() == {"cooldown"}
        shrunk = phases.in_force(small, "cooldown")
        assert shrunk.train.duration.steps == 1 and shrunk.train.batch <= 8 and max(shrunk.data.image_size) < 128
