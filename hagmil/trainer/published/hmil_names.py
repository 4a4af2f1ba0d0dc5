"""Mapping between the weight names of the published HMIL code and ours."""

from __future__ import annotations

_MODULE_NAMES = {
    "feature_extractor.0": "extract.0",
    "feature_extractor.2": "extract.2",
    "feature_reducer.0": "reduce",
    "coarse_attention.0.attention_a.0": "coarse_attention.tanh_gate",
    "coarse_attention.0.attention_b.0": "coarse_attention.sigmoid_gate",
    "coarse_attention.0.attention_c": "coarse_attention.score",
    "fine_attention.0.attention_a.0": "fine_attention.tanh_gate",
    "fine_attention.0.attention_b.0": "fine_attention.sigmoid_gate",
    "fine_attention.0.attention_c": "fine_attention.score",
    "coarse_classifier": "coarse_classifier",
    "fine_classifier": "fine_classifier",
}

_OUR_NAMES = {
    f"{published}.{parameter}": f"{ours}.{parameter}"
    for published, ours in _MODULE_NAMES.items()
    for parameter in ("weight", "bias")
}
_PUBLISHED_NAMES = {ours: published for published, ours in _OUR_NAMES.items()}


def our_hmil_name(published: str) -> str | None:
    """Our name of a published weight; None if the published model has no such weight."""
    return _OUR_NAMES.get(published)


def published_hmil_name(ours: str) -> str:
    """The published name of one of our weights."""
    return _PUBLISHED_NAMES[ours]
