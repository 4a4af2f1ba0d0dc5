"""Names of weights in the published HAG-MIL code, and ours for them: the one place that knows both."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hagmil.errors import BundleError

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

_PUBLISHED_SCALE = "layer.residual_attn.omega"
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_PARAMETER = re.compile(r"(.+)\.(weight|bias)")


def our_name(published: str) -> str | None:
    """Our name of one published weight, or None where the published model has no such weight."""
    block = _BLOCK.fullmatch(published)
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


def published_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of one published stage model (its state dict, without any ``model0.`` before the
    names).

    Args:
        state: published name to weight.

    Returns:
        Our name to weight, for ``load_state_dict`` of an :class:`IntegratedAttentionTransformer`.

    Raises:
        BundleError: a name that the published model does not have; all of them are listed.
    """
    names = {published: our_name(published) for published in state}
    unknown = sorted(published for published, ours in names.items() if ours is None)
    if unknown:
        raise BundleError(f"no weights of a published HAG-MIL model: {', '.join(unknown)}", code="unknown_weights")
    return {ours: state[published] for published, ours in names.items() if ours is not None}
