"""Mapping between the weight names of the published HAG-MIL code and ours."""

from __future__ import annotations

import re

_MODEL_NAMES = {"weights": "combine", "fc5": "classifier"}

_BLOCK_NAMES = {
    "fc.0": "project.0",
    "fc.1": "project.1",
    "layer.norm": "attention_norm",
    "layer.attn.to_qkv": "attention.to_qkv",
    "layer.attn.res_conv": "attention.value_conv",
    "layer.attn.to_out.0": "attention.to_out",
    "norm": "norm",
    "attention_net.0": "gates.hidden",
    "attention_net.3.attention_a.0": "gates.tanh_gate",
    "attention_net.3.attention_b.0": "gates.sigmoid_gate",
    "attention_net.3.attention_c": "gates.score",
    "layer_map_to_final.0": "embed.0",
    "layer_map_to_final.1": "embed.1",
}

_PUBLISHED_MODEL_NAMES = {ours: published for published, ours in _MODEL_NAMES.items()}
_PUBLISHED_BLOCK_NAMES = {ours: published for published, ours in _BLOCK_NAMES.items()}

_PUBLISHED_SCALE = "layer.residual_attn.omega"
_PUBLISHED_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_OUR_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_PARAMETER = re.compile(r"(.+)\.(weight|bias)")


def our_name(published: str) -> str | None:
    """Our name of a published weight; None if the published model has no such weight."""
    block = _PUBLISHED_BLOCK.fullmatch(published)
    prefix, rest = (f"blocks.{block[1]}.", block[2]) if block else ("", published)
    if block and rest == _PUBLISHED_SCALE:
        return f"{prefix}residual_scale"
    parameter = _PARAMETER.fullmatch(rest)
    if parameter is None:
        return None
    if not block and re.fullmatch(r"instance_classifiers\.\d+", parameter[1]):
        return published
    module = (_BLOCK_NAMES if block else _MODEL_NAMES).get(parameter[1])
    return f"{prefix}{module}.{parameter[2]}" if module else None


def published_name(ours: str) -> str:
    """The published name of one of our weights: the inverse of :func:`our_name`."""
    block = _OUR_BLOCK.fullmatch(ours)
    prefix, rest = (f"layers.{block[1]}.", block[2]) if block else ("", ours)
    if block and rest == "residual_scale":
        return prefix + _PUBLISHED_SCALE
    module, _, parameter = rest.rpartition(".")
    return f"{prefix}{(_PUBLISHED_BLOCK_NAMES if block else _PUBLISHED_MODEL_NAMES).get(module, module)}.{parameter}"
