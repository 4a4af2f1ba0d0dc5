"""Names of weights in the published HMIL code, and ours for them: the one place that knows both."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hagmil.errors import BundleError

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
    """Our name of one published weight, or None where the published model has no such weight."""
    return _OUR_NAMES.get(published)


def published_hmil_name(ours: str) -> str:
    """The published name of one of our weights."""
    return _PUBLISHED_NAMES[ours]


def published_hmil_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published HMIL model.

    Args:
        state: published name to weight, without any ``module.`` before the names.

    Returns:
        Our name to weight, for ``load_state_dict`` of a :class:`HierarchicalMil`.

    Raises:
        BundleError: a name that the published model does not have; all of them are listed.
    """
    unknown = sorted(state.keys() - _OUR_NAMES.keys())
    if unknown:
        raise BundleError(f"no weights of a published HMIL model: {', '.join(unknown)}", code="unknown_weights")
    return {_OUR_NAMES[published]: weight for published, weight in state.items()}
