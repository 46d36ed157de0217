"""Names of weights here and elsewhere: one table for each layout, read in both directions.

A row pairs the beginning of our names with that of theirs; ``{}`` stands for a block's number. One of our weights may
be several of theirs: queries, keys and values, which we keep as one matrix, or mask tokens, which they stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.errors import CheckpointError

Parts = tuple[str, ...]


@dataclass(frozen=True)
class KeyMap:
    """One layout. `rows`: (ours, theirs); `fused`: (ours, theirs in the order in which ours holds them)."""

    title: str
    rows: tuple[tuple[str, str], ...]
    fused: tuple[tuple[str, Parts], ...] = ()
    stacked: tuple[tuple[str, str], ...] = ()  # ours, one for each number; theirs, all of them along a first axis

    def outward(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our weights under their names.

        Raises:
            CheckpointError: a weight that the layout has no place for.
        """
        out: dict[str, Tensor] = {}
        piles: dict[str, dict[int, Tensor]] = {}
        for name, tensor in ours.items():
            if (found := _first(name, self.rows)) is not None:
                out[found] = tensor
                continue
            parts = next((p for own, p in self.fused if _fits(own, name)), None)
            if parts is not None:
                own = next(own for own, _ in self.fused if _fits(own, name))
                pieces = tensor.chunk(len(parts))
                out |= {_renamed(name, own, p): t.contiguous() for p, t in zip(parts, pieces, strict=True)}
                continue
            pile = next(((theirs, m) for own, theirs in self.stacked if (m := _pattern(own).fullmatch(name))), None)
            if pile is None:
                raise CheckpointError(f"{self.title} has no place for the weight {name!r}")
            piles.setdefault(pile[0], {})[int(pile[1].group(1))] = tensor
        return out | {name: torch.stack([pile[i] for i in sorted(pile)]) for name, pile in piles.items()}

    def inward(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their weights under our names, bit for bit what `outward` was given.

        Raises:
            CheckpointError: a weight that we have no place for, or queries without their keys.
        """
        out: dict[str, Tensor] = {}
        pieces: dict[str, dict[int, Tensor]] = {}
        for name, tensor in theirs.items():
            if (found := _first(name, [(b, a) for a, b in self.rows])) is not None:
                out[found] = tensor
            elif (piece := self._piece(name)) is not None:
                pieces.setdefault(piece[0], {})[piece[1]] = tensor
            elif (own := next((own for own, pile in self.stacked if pile == name), None)) is not None:
                out |= {own.replace("{}", str(i)): t for i, t in enumerate(tensor)}
            else:
                raise CheckpointError(f"{name!r} of {self.title} has no place here")
        for name, found_pieces in pieces.items():
            count = next(len(p) for own, p in self.fused if _fits(own, name))
            if len(found_pieces) != count:
                raise CheckpointError(f"{self.title}: {name} needs {count} weights, {len(found_pieces)} are there")
            out[name] = torch.cat([found_pieces[i] for i in range(count)])
        return out

    def _piece(self, name: str) -> tuple[str, int] | None:
        for own, parts in self.fused:
            for place, part in enumerate(parts):
                if _fits(part, name):
                    return _renamed(name, part, own), place
        return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(map(re.escape, template.split("{}"))))


def _fits(template: str, name: str) -> bool:
    return _pattern(template).match(name) is not None


def _renamed(name: str, template: str, other: str) -> str:
    found = _pattern(template).match(name)
    assert found is not None, f"{name!r} does not begin as {template!r}"
    numbers = found.groups()
    return (other.replace("{}", numbers[0]) if numbers else other) + name[found.end() :]


def _first(name: str, rows: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str | None:
    return next((_renamed(name, a, b) for a, b in rows if _fits(a, name)), None)


def _block(ours: str, theirs: str, renamed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{ours}.{{}}.{a}.", f"{theirs}.{{}}.{b}.") for a, b in renamed.items())


def _attention(ours: str, theirs: str, names: Parts) -> tuple[str, Parts]:
    return f"{ours}.{{}}.attn.qkv.", tuple(f"{theirs}.{{}}.attention.{name}." for name in names)


_SAME = {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
_IJEPA = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}

IJEPA = KeyMap(  # as files of an IJepaModel without pooler name them, whatever the version of transformers
    "transformers' IJepaModel",
    (
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("norm.", "layernorm."),
        *_block("blocks", "encoder.layer", _IJEPA),
    ),
    (_attention("blocks", "encoder.layer", ("attention.query", "attention.key", "attention.value")),),
)

VJEPA2 = KeyMap(  # of a VJEPA2Model; ours as `encoder.` and `predictor.`
    "transformers' VJEPA2Model",
    (
        ("encoder.patch_embed.proj.", "encoder.embeddings.patch_embeddings.proj."),
        ("encoder.norm.", "encoder.layernorm."),
        *_block("encoder.blocks", "encoder.layer", _SAME | {"attn.proj": "attention.proj"}),
        ("predictor.predictor_embed.", "predictor.embeddings.predictor_embeddings."),
        ("predictor.predictor_norm.", "predictor.layernorm."),
        ("predictor.predictor_proj.", "predictor.proj."),
        *_block("predictor.predictor_blocks", "predictor.layer", _SAME | {"attn.proj": "attention.proj"}),
    ),
    (
        _attention("encoder.blocks", "encoder.layer", ("query", "key", "value")),
        _attention("predictor.predictor_blocks", "predictor.layer", ("query", "key", "value")),
    ),
    (("predictor.mask_tokens.{}", "predictor.embeddings.mask_tokens"),),
)

TIMM = KeyMap(  # of a VisionTransformer without class token: the official names are timm's
    "timm's VisionTransformer",
    tuple((name, name) for name in ("pos_embed", "patch_embed.proj.", "blocks.{}.", "norm.")),
)

DINOWM = KeyMap(  # of its predictor
    "DINO-WM's predictor",
    (
        ("positions", "pos_embedding"),
        ("norm.", "transformer.norm."),
        *(
            (f"blocks.{{}}.{ours}.", f"transformer.layers.{{}}.{theirs}.")
            for ours, theirs in (
                ("norm1", "0.norm"), ("attn.qkv", "0.to_qkv"), ("attn.proj", "0.to_out.0"), ("norm2", "1.net.0"),
                ("mlp.fc1", "1.net.1"), ("mlp.fc2", "1.net.4"),
            )
        ),
    ),
)  # fmt: skip

__all__ = ["DINOWM", "IJEPA", "TIMM", "VJEPA2", "KeyMap"]
