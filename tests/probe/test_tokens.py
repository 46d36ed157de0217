"""Tokens give the same numbers wherever they are kept, in any order; files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.checkpoint import layers, random_encoder
from jepa.config import Duration
from jepa.data import Manifest, Split, eval_batches
from jepa.errors import ConfigError, DataError
from jepa.probe.attentive import AttentiveConfig, train_grid
from jepa.probe.clips import ClipsConfig
from jepa.probe.features import Extractor, FeaturesConfig, Source, Wants
from jepa.probe.tokens import Filed, Held, Made, Sink, TokensConfig, read
from tests.tiny import run_config

CPU = torch.device("cpu")
DEEP = ("method.encoder.depth=3",)


@pytest.fixture(scope="module")
def manifest(probe_data: Path) -> Manifest:
    return Manifest.open(probe_data)


@pytest.fixture(scope="module")
def source(probe_data: Path) -> Source:
    encoder = random_encoder(run_config(probe_data, *DEEP), 0)
    return Source(
        "tiny", "random", (20, 20), {"seed": 0}, lambda device: encoder.pool, {},
        lambda device, wanted: layers.levels(encoder, wanted), layers.grid(encoder),
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(manifest: Manifest) -> list[tuple[Split, np.ndarray]]:
    return [(manifest.splits[name], np.arange(n)) for name, n in (("train", 40), ("val", 20), ("test", 20))]


def extractor(manifest: Manifest, cache: Path | None, **tokens: object) -> Extractor:
    return Extractor(manifest, FeaturesConfig(batch=16, tokens=TokensConfig(**tokens)), CPU, cache=cache)


LISTS = [np.array([3, 3, 0]), np.array([19]), np.arange(20)[::-1].copy()]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_same_numbers_in_memory_on_disk_and_nowhere(manifest, source, parts, tmp_path, dtype):
    wants, found = Wants(tokens=True), {}
    for where, limits in {
        "memory": {},
        "disk": {"memory_gib": 0.0},
        "nowhere": {"memory_gib": 0.0, "disk_gib": 0.0},
    }.items():
        features = extractor(manifest, tmp_path, dtype=dtype, **limits).everything(source, parts, wants)
        assert features.tokens is not None and [t.where for t in features.tokens] == [where] * 3
        assert [t.shape for t in features.tokens] == [(40, 1, 25, 32), (20, 1, 25, 32), (20, 1, 25, 32)]
        found[where] = list(features.tokens[2].walk(LISTS))
        files = [p for p in tmp_path.iterdir() if p.suffix == ".npy"]
        assert len(files) == (3 if where == "disk" else 0)
        features.close()
        assert not [p for p in tmp_path.iterdir() if "tokens" in p.name]
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert {x.dtype for xs in found.values() for x in xs} == {kind}
    assert all(torch.equal(a, b) for a, b in zip(found["memory"], found["disk"], strict=True))
    for a, b in zip(found["memory"], found["nowhere"], strict=True):  # other batches, other rounding
        torch.testing.assert_close(a.float(), b.float(), atol={"fp16": 2e-3, "bf16": 2e-2, "fp32": 2e-6}[dtype], rtol=0)
    encoder_tokens = exact(source, parts)
    torch.testing.assert_close(found["memory"][2][:, 0].flip(0), encoder_tokens.to(kind), atol=0, rtol=0)


def exact(source: Source, parts: list[tuple[Split, np.ndarray]]) -> Tensor:
    assert source.levels is not None
    batches = eval_batches(parts[2][0], (20, 20), 16, indices=parts[2][1])
    return torch.cat([source.levels(CPU, ())(batch.images)[0] for batch in batches])


def test_a_probe_ends_the_same_wherever_its_tokens_are(manifest, source, parts, tmp_path):
    config = AttentiveConfig(heads=2, lr=(1e-3,), weight_decay=(0.1,), duration=Duration(steps=6), batch=16)
    labels = torch.arange(40) % 3
    ends = []
    for limits in ({}, {"memory_gib": 0.0}, {"memory_gib": 0.0, "disk_gib": 0.0}):
        found = extractor(manifest, tmp_path, **limits).everything(source, parts, Wants(pooled=False, tokens=True))
        assert found.tokens is not None and found.output == []
        ends.append(train_grid(found.tokens[0], labels, 3, config).stack.values)
        found.close()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[2][name], value, atol=2e-3, rtol=0)


def test_pooled_features_beside_tokens_are_those_without(manifest, source, parts, tmp_path):
    plain = extractor(manifest, None)(source, parts)
    both = extractor(manifest, tmp_path).everything(source, parts, Wants(layers=(0, -1), tokens=True))
    for a, b, inner, last in zip(plain, both.output, both.layers[0], both.layers[-1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        torch.testing.assert_close(last, b, atol=1e-6, rtol=0)
        assert inner.shape == b.shape and (inner - b).abs().max() > 0.01


def test_kept_tokens_are_read_again_and_damaged_ones_made_again(manifest, source, parts, tmp_path):
    made: list[int] = []

    def levels(device, wanted):
        made.append(1)
        return source.levels(device, wanted)

    counted = Source(source.name, "random", (20, 20), {"seed": 0}, source.build, {}, levels, source.grid)
    wants = Wants(tokens=True)
    first = extractor(manifest, tmp_path, keep=True).everything(counted, parts, wants)
    first.close()
    files = sorted(p for p in tmp_path.iterdir() if p.suffix == ".npy")
    assert len(files) == 3 and len(made) == 1
    again = extractor(manifest, tmp_path, keep=True, memory_gib=0.0).everything(counted, parts, wants)
    assert len(made) == 1 and [t.where for t in again.tokens] == ["disk"] * 3
    assert torch.equal(next(again.tokens[0].walk(LISTS)), next(first.tokens[0].walk(LISTS)))
    files[0].write_bytes(files[0].read_bytes()[:-9])
    again = extractor(manifest, tmp_path, keep=True).everything(counted, parts, wants)
    assert len(made) == 2 and torch.equal(next(again.tokens[0].walk(LISTS)), next(first.tokens[0].walk(LISTS)))
    other = extractor(manifest, tmp_path, keep=True, dtype="bf16").everything(counted, parts, wants)
    assert len(made) == 3 and other.tokens is not None


def test_layers_of_tokens_come_one_after_the_other(manifest, source, parts):
    found = extractor(manifest, None, layers=(0, -1), dtype="fp32").everything(source, parts, Wants(tokens=True))
    assert found.tokens is not None and found.tokens[2].shape == (20, 1, 50, 32)
    (x,) = found.tokens[2].walk([np.arange(20)])
    torch.testing.assert_close(x[:, 0, 25:], exact(source, parts), atol=1e-6, rtol=0)


def test_tokens_that_cannot_be_kept(manifest, source, parts, tmp_path):
    def scaled(factor: float) -> Source:
        levels = lambda device, wanted: lambda x: [factor * t for t in source.levels(device, wanted)(x)]  # noqa: E731
        return Source("scaled", "random", (20, 20), {"scaled": factor}, source.build, {}, levels, source.grid)

    with pytest.raises(DataError, match=r"scaled: tokens reach .*e\+05, more than float16 holds.*dtype=bf16"):
        extractor(manifest, tmp_path, memory_gib=0.0).everything(scaled(1e5), parts, Wants(tokens=True))
    extractor(manifest, tmp_path, dtype="bf16").everything(scaled(1e5), parts, Wants(tokens=True))
    with pytest.raises(DataError, match="scaled: some tokens are NaN or infinite"):
        extractor(manifest, tmp_path, memory_gib=0.0).everything(scaled(float("nan")), parts, Wants(tokens=True))
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".npy" or p.name.startswith(".")]


def test_a_source_without_tokens_gives_its_features_only(manifest, parts):
    plain = Source("plain", "pixels", (20, 20), None, lambda device: lambda x: x.flatten(1).float())
    found = extractor(manifest, None).everything(plain, parts, Wants(layers=(0,), tokens=True))
    assert found.tokens is None and found.layers == {} and found.output[0].shape == (40, 1200)


def test_layers_that_are_not_there(source, manifest, parts):
    with pytest.raises(ConfigError, match=r"layers \[3, -4\]: this encoder has layers 0 to 2, or -3 to -1"):
        extractor(manifest, None).everything(source, parts, Wants(layers=(3, 0, -4)))


def test_clips_are_joined_for_tokens_and_averaged_for_features(monkeypatch, manifest, source, parts):
    """With clips in place of images: 3 clips of 2 views of each sample, made of the sample's image."""
    whole = Extractor.batches

    def batches(self, source, split, indices, views):
        assert views == 2 - (split.name == "train")
        plain = Extractor(self.manifest, FeaturesConfig(batch=7), CPU)
        for images in whole(plain, source, split, indices):
            seen = torch.stack([images, images.flip(-1)][:views], dim=1)
            yield torch.stack([seen, seen.flip(-2), seen // 2], dim=1)

    monkeypatch.setattr(Extractor, "batches", batches)
    config = FeaturesConfig(clips=ClipsConfig(stride=4, views=2), tokens=TokensConfig(dtype="fp32"))
    found = Extractor(manifest, config, CPU).everything(source, parts, Wants(tokens=True))
    assert found.tokens is not None and found.tokens[2].shape == (20, 2, 75, 32)
    assert found.tokens[0].shape == (40, 1, 75, 32)  # training samples have one view
    (x,) = found.tokens[2].walk([np.arange(20)])
    torch.testing.assert_close(x[:, 0, :25], exact(source, parts), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.output[2], x.mean(dim=(1, 2)), atol=1e-5, rtol=0)
    means = Extractor(manifest, config, CPU).everything(source, parts, Wants())  # kNN and linear alone
    torch.testing.assert_close(means.output[2], found.output[2], atol=1e-5, rtol=0)
    flat = Source("flat", "pixels", (20, 20), None, lambda device: lambda x: x.flatten(1).float())
    plain = Extractor(manifest, config, CPU).everything(flat, parts, Wants())
    assert plain.output[2].shape == (20, 1200)  # the mean over clips and views


# --- without a data set -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), chunk=st.integers(1, 7), seed=st.integers(0, 100))
def test_made_tokens_come_in_the_sizes_asked_for(sizes, chunk, seed):
    values = torch.arange(12).view(12, 1, 1, 1).float()
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, 12, n) for n in sizes]
    made = Made((12, 1, 1, 1), lambda places: iter(values[torch.from_numpy(places)].split(chunk)))
    for got, places in zip(made.walk(lists), lists, strict=True):
        assert torch.equal(got, values[torch.from_numpy(places)])


def test_some_of_the_samples():
    whole = Held(torch.arange(10).view(10, 1, 1, 1).float())
    part = whole.at(np.array([7, 2, 5]))
    assert len(part) == 3 and part.shape == (3, 1, 1, 1)
    (got,) = part.walk([np.array([2, 0])])
    assert got.flatten().tolist() == [5.0, 7.0]
    assert whole.at(np.arange(10)) is whole


def test_a_file_of_something_else_is_not_read(tmp_path):
    config = TokensConfig(keep=True)
    assert read(None, 3, config, memory=True) is None
    assert read(tmp_path / "none.npy", 3, config, memory=True) is None
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float16))
    np.save(tmp_path / "wide.npy", np.zeros((3, 1, 2, 2), np.float32))
    np.save(tmp_path / "good.npy", np.zeros((3, 1, 2, 2), np.float16))
    assert read(tmp_path / "flat.npy", 3, config, memory=True) is None
    assert read(tmp_path / "wide.npy", 3, config, memory=True) is None
    assert read(tmp_path / "good.npy", 4, config, memory=True) is None
    assert isinstance(read(tmp_path / "good.npy", 3, config, memory=True), Held)
    assert isinstance(read(tmp_path / "good.npy", 3, config, memory=False), Filed)


def test_no_room_on_the_disk(monkeypatch, tmp_path):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa.probe.tokens.os.posix_fallocate", full, raising=False)
    sink = Sink(4, "disk", TokensConfig(), tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"cannot be written to .*No space left on device.*disk_gib=0"):
        sink.add(torch.zeros(2, 1, 3, 4, dtype=torch.float16))
    assert list(tmp_path.iterdir()) == []


def test_limits():
    config = TokensConfig(memory_gib=1.0, disk_gib=2.0)
    gib = 2**29  # numbers of two bytes
    assert [config.place(n, disk=True) for n in (gib, gib + 1, 2 * gib, 2 * gib + 1)] == [
        "memory", "disk", "disk", "nowhere",
    ]  # fmt: skip
    assert config.place(gib + 1, disk=False) == "nowhere"
    with pytest.raises(ConfigError, match="allowed: 0 or more"):
        TokensConfig(memory_gib=-1.0)
