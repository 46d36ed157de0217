"""A small decoder on frozen latents, so that people can look at what is imagined. No model is ever trained by it.

Latents that lie in a square of tokens begin as that square, all others as one vector that two layers turn into 8 x 8
places. A convolution lets neighbours agree, then each place becomes its patch of pixels: how it differs from the mean
picture. It is trained on real frames of the training split by the mean squared error, which blurs what the latents do
not say: what is missing in its pictures is missing there.

Shapes: B frames, N tokens, D width, C channels, s places on a side, p pixels of a place's side, h w picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.rollout.suite import PicturesConfig

_PLACES = 8  # s of a single vector
_BATCH = 32
_MOST = 16384  # numbers of a frame's latents that are taken as one vector; of more, the mean over tokens


class Decoder(nn.Module):
    """Latents (B, N, D) to pictures (B, 3, h, w) with pixels from about 0 to 1."""

    mean: Tensor
    std: Tensor
    usual: Tensor  # (3, h, w)

    def __init__(self, tokens: int, width: int, image_size: tuple[int, int], config: PicturesConfig) -> None:
        super().__init__()
        side = math.isqrt(tokens)
        self.square = tokens > 1 and side * side == tokens
        self.pooled = not self.square and tokens * width > _MOST
        self.side, channels = side if self.square else _PLACES, config.width
        if self.square:
            self.first: nn.Module = nn.Linear(width, channels)
        else:
            self.first = nn.Sequential(
                nn.Linear(width if self.pooled else tokens * width, 4 * channels), nn.GELU(),
                nn.Linear(4 * channels, channels * self.side**2),
            )  # fmt: skip
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        shrink = min(1.0, config.size / max(image_size))
        self.size = (max(1, round(image_size[0] * shrink)), max(1, round(image_size[1] * shrink)))
        self.patch = -(-max(self.size) // self.side)
        self.last = nn.Conv2d(channels, 3 * self.patch**2, 1)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("usual", torch.full((3, *self.size), 0.5))

    def forward(self, latents: Tensor) -> Tensor:
        x = (latents.float() - self.mean) / self.std
        if self.square:
            x = self.first(x).transpose(1, 2)  # (B, C, s * s)
        else:
            x = self.first(x.mean(dim=1) if self.pooled else x.flatten(1))
        x = F.gelu(x.reshape(len(x), -1, self.side, self.side))
        x = x + F.gelu(self.mix(x))
        picture = F.pixel_shuffle(self.last(x), self.patch)  # (B, 3, s * p, s * p)
        if picture.shape[-2:] != self.size:
            picture = F.interpolate(picture, self.size, mode="bilinear", antialias=True)
        return self.usual + picture


def train_decoder(
    latents: Tensor, frames: Tensor, config: PicturesConfig, device: torch.device
) -> tuple[Decoder, float]:
    """A decoder of latents (n, N, D) fitted to frames (n, 3, H, W) uint8, and the error of its last steps.

    Weights and batches are drawn by a seed; torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(latents.shape[1], latents.shape[2], (frames.shape[-2], frames.shape[-1]), config).to(device)
    flat = latents.float().flatten(0, 1)
    decoder.mean.copy_(flat.mean(dim=0))
    decoder.std.copy_((flat - flat.mean(dim=0)).square().mean().sqrt().clamp_min(1e-6))
    target = F.interpolate(frames.float() / 255, decoder.size, mode="area")
    decoder.usual.copy_(target.mean(dim=0))
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=config.lr, weight_decay=1e-4)
    draws = torch.Generator().manual_seed(0)
    last: list[float] = []
    for step in range(config.decoder_steps):
        for group in optimiser.param_groups:  # a cosine down to nothing: the last pictures are the sharpest
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.decoder_steps))
        places = torch.randint(0, len(latents), (min(_BATCH, len(latents)),), generator=draws)
        loss = F.mse_loss(decoder(latents[places].to(device)), target[places].to(device))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        last = [*last[-49:], loss.item()]
    return decoder.eval(), sum(last) / max(len(last), 1)


class Nearest:
    """Instead of a decoder: of the frames of a bank, the one whose latents are nearest."""

    def __init__(self, latents: Tensor, frames: Tensor) -> None:
        self.bank, self.frames = latents.float().flatten(1), frames

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (B, N, D) to frames (B, 3, H, W) from 0 to 1."""
        near = torch.cdist(latents.float().cpu().flatten(1), self.bank).argmin(dim=1)
        return self.frames[near].float() / 255
