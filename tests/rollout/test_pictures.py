"""The decoder draws what latents say and nothing else; strips and films show every step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.tokens import Normalise
from jepa.probe.episodes import spread_places
from jepa.rollout import pictures
from jepa.rollout.decoder import Decoder, Nearest, train_decoder
from jepa.rollout.suite import PicturesConfig, RolloutSuite, WindowsConfig
from tests.rollout import worlds

PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")
SMALL = PicturesConfig(episodes=2, size=24, width=32, bank=50, decoder_steps=150, lr=3e-3)


def bank(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    places = 4 + 16 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return places[:, None], (255 * worlds.draw(places)).round().to(torch.uint8)


def test_a_decoder_learns_where_the_dot_is() -> None:
    latents, frames = bank(300)
    frames = frames.float()
    frames = F.avg_pool2d(frames, 5, 1, 2).mul(20).clamp(max=255).to(torch.uint8)  # a larger dot: easier to see
    decoder, error = train_decoder(latents, frames, SMALL, CPU)
    new, shown = bank(64, 1)
    shown = F.avg_pool2d(shown.float(), 5, 1, 2).mul(20).clamp(max=255) / 255
    with torch.no_grad():
        drawn = decoder(new)
    assert drawn.shape == shown.shape
    blind = (shown - shown.mean(dim=0)).square().mean()  # what one picture for all would cost
    assert float((drawn - shown).square().mean()) < 0.7 * float(blind)
    assert error < 0.7 * float(blind)


@pytest.mark.parametrize(
    ("tokens", "width", "square"), [(1, 8, False), (16, 8, True), (17, 8, False), (17, 2048, False)]
)
def test_a_square_of_tokens_begins_as_that_square(tokens: int, width: int, square: bool) -> None:
    decoder = Decoder(tokens, width, (48, 96), PicturesConfig(size=32, width=16))
    assert decoder.square == square and decoder.pooled == (width == 2048)
    assert decoder(torch.randn(2, tokens, width)).shape == (2, 3, 16, 32)
    if square:  # a token tells of its own part of the picture
        x = torch.zeros(1, tokens, width)
        x[0, 0] += 5
        moved = (decoder(x) - decoder(torch.zeros_like(x))).abs().sum(dim=1)[0]
        assert float(moved[:4, :8].detach().mean()) > 5 * float(moved[-4:, -8:].detach().mean())


def test_training_a_decoder_leaves_torchs_generator_alone_and_repeats() -> None:
    state, (latents, frames) = torch.random.get_rng_state(), bank(20)
    settings = PicturesConfig(size=24, width=16, decoder_steps=3)
    first, second = (train_decoder(latents, frames, settings, CPU)[0] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_nearest_frame_is_the_one_whose_latents_are() -> None:
    latents, frames = bank(30)
    drawn = Nearest(latents, frames)(latents[[7, 3]] + 1e-3)
    assert torch.equal((255 * drawn).round().to(torch.uint8), frames[[7, 3]])


def test_rows_of_a_roll_out_are_what_they_are_called() -> None:
    test, train = worlds.Walks("test", [12, 12], 1), worlds.Walks("train", [12] * 40, 2)
    suite = RolloutSuite(windows=WindowsConfig(seen=2, horizon=4), pictures=PicturesConfig(episodes=1, bank=480))
    assert suite.pictures is not None
    draw, about = pictures.drawer(worlds.model(), PLAIN, train, suite.pictures, 2, 8, CPU)
    assert about == {"by": "nearest training frame", "bank": 440}  # from the second frame of each episode on
    (found,) = pictures.roll_outs(worlds.model(), PLAIN, test, spread_places(test.lengths, 2, 2, 4), suite, draw, CPU)
    assert found.episode == 0 and found.start == 1
    assert {name: len(row) for name, row in found.rows.items()} == dict.fromkeys(
        ("what happened", "seen, drawn", "imagined", "no action"), 5
    )
    assert found.rows["imagined"] == found.rows["seen, drawn"]  # this model knows the world
    assert all(tile == found.rows["no action"][0] for tile in found.rows["no action"])
    assert found.rows["what happened"][0] != found.rows["what happened"][4]
    strip = pictures.strip(found)
    assert strip.height > strip.width / 5 and len(pictures.film(found)) == 5


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="size=4"):
        PicturesConfig(size=4)
    with pytest.raises(ConfigError, match="decoder_steps=-1"):
        PicturesConfig(decoder_steps=-1)
    with pytest.raises(ConfigError, match="horizon=0"):
        WindowsConfig(horizon=0)
