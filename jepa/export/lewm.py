"""stable-worldmodel's LeWM to ours, weight by weight: same numbers, other names.

Its encoder is a ViT of transformers with a class token; its learned positions become our table, and those of the class
token are added to the token. Its predictor is `jepa.nn.causal.CausalPredictor`'s model.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from jepa.errors import CheckpointError

# In this order, on names after the prefix is gone. transformers renamed its ViT in version 5; both are read.
_VIT = (
    (r"^(?:vit\.)?(?:encoder\.)?layer(?:s)?\.(\d+)\.", r"blocks.\1."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"attention\.(?:attention\.)?(?:q_proj|query)\.", "attn.q."),
    (r"attention\.(?:attention\.)?(?:k_proj|key)\.", "attn.k."),
    (r"attention\.(?:attention\.)?(?:v_proj|value)\.", "attn.v."),
    (r"attention\.(?:o_proj|output\.dense)\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
_PREDICTOR = (
    (r"^pos_embedding$", "positions"),
    (r"^transformer\.layers\.(\d+)\.", r"blocks.\1."),
    (r"^transformer\.norm\.", "norm."),
    (r"^transformer\.input_proj\.", "latent_in."),
    (r"^transformer\.cond_proj\.", "action_in."),
    (r"^transformer\.output_proj\.", "latent_out."),
    (r"attn\.to_qkv\.", "attn.qkv."),
    (r"attn\.to_out\.0\.", "attn.proj."),
    (r"mlp\.net\.0\.", "mlp_norm."),
    (r"mlp\.net\.1\.", "fc1."),
    (r"mlp\.net\.4\.", "fc2."),
    (r"adaLN_modulation\.1\.", "modulation."),
)
_PROJECTOR = ((r"^net\.0\.", "fc1."), (r"^net\.1\.", "norm."), (r"^net\.3\.", "fc2."))
_ACTIONS = ((r"^patch_embed\.", "narrow."), (r"^embed\.0\.", "fc1."), (r"^embed\.2\.", "fc2."))
_PARTS = {  # theirs: ours
    "encoder": ("encoder.vit", _VIT),
    "projector": ("encoder.projector", _PROJECTOR),
    "action_encoder": ("action_encoder", _ACTIONS),
    "predictor": ("predictor", _PREDICTOR),
    "pred_proj": ("projector", _PROJECTOR),
}


def lewm_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of stable_worldmodel's LeWM (ViT with class token, MLP projectors) for `jepa.methods.lewm`.

    Missing are only the statistics of actions: that library normalises them outside the model.

    Raises:
        CheckpointError: a weight that has no place.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        part, _, rest = name.partition(".")
        if part not in _PARTS:
            raise CheckpointError(f"{name!r} is no part of a LeWM; those are {', '.join(_PARTS)}")
        if rest.endswith("num_batches_tracked"):
            continue
        prefix, rules = _PARTS[part]
        for pattern, new in rules:
            rest = re.sub(pattern, new, rest)
        found[f"{prefix}.{rest}"] = tensor
    _join_attention(found)
    _place_positions(found)
    narrow = found.get("action_encoder.narrow.weight")
    if narrow is not None and narrow.ndim == 3:  # a convolution over one step
        found["action_encoder.narrow.weight"] = narrow.squeeze(-1)
    return found


def _join_attention(found: dict[str, Tensor]) -> None:
    """Queries, keys and values are one matrix here."""
    for name in [n for n in found if ".attn.q." in n]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{which}.")) for which in "qkv"]
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)


def _place_positions(found: dict[str, Tensor]) -> None:
    try:
        table = found.pop("encoder.vit.embeddings.position_embeddings")
        token = found.pop("encoder.vit.embeddings.cls_token")
    except KeyError as error:
        raise CheckpointError(f"the encoder has no {error}: only a ViT with a class token fits") from None
    found["encoder.class_token"] = token + table[:, :1]
    found["encoder.vit.pos_embed"] = table[:, 1:].contiguous()


__all__ = ["lewm_weights"]
