"""Recognise CLAM, ABMIL of MIL-Lab, AttentionDeepMIL, and pooling heads."""

from __future__ import annotations

import torch
from torch import Tensor

from hagmil.trainer.models.attention_mil import AbmilConfig, ClamConfig
from hagmil.trainer.models.pooling import PoolingConfig
from hagmil.trainer.published.heads.found_head import FoundHead, UnusableHead, Weights, indices, renamed, stacked

_GATES = (
    (r"attention_a\.0\.", "attention.tanh_gate."),
    (r"attention_b\.0\.", "attention.sigmoid_gate."),
    (r"attention_c\.", "attention.score."),
    (r"module\.0\.", "attention.tanh_gate."),
    (r"module\.[23]\.", "attention.score."),
)


def recognise_clam(weights: Weights) -> FoundHead | None:
    """CLAM with one or several attentions, in all layouts of its code."""
    if "attention_net.0.weight" not in weights:
        return None
    gates = [(rf"attention_net\.[23]\.{pattern}", name) for pattern, name in _GATES]
    ours = renamed(
        weights, [(r"attention_net\.0\.", "hidden.0."), *gates, (r"classifiers\.(?=weight|bias)", "classifier.")]
    )
    several = bool(indices(weights, r"classifiers\.(\d+)\."))
    if several:
        ours = stacked(ours, "classifiers")
    branches = len(ours.get("attention.score.weight", ()))
    if branches > 1 and not several:
        raise UnusableHead("it is CLAM_MB of a version of April 2024 that gives a table of logits, which is unusable")
    kind = "clam-mb" if several else "clam-sb"
    return _attention_head(kind, f"attention_net with {branches} score(s) per patch: CLAM", ours)


def recognise_millab_attention(weights: Weights) -> FoundHead | None:
    """ABMIL and CLAM of MIL-Lab; they differ by the instance classifiers."""
    if not any(key.startswith("global_attn.") for key in weights):
        return None
    ours = renamed(
        weights, [(r"patch_embed\.", "hidden."), *((rf"global_attn\.{pattern}", name) for pattern, name in _GATES)]
    )
    kind = "clam-sb" if any(key.startswith("instance_classifiers.") for key in weights) else "abmil"
    return _attention_head(kind, "patch_embed and global_attn: MIL-Lab", ours)


def recognise_attention_deep_mil(weights: Weights) -> FoundHead | None:
    """The attention of AttentionDeepMIL; its only logit becomes the second of two classes."""
    plain = {"attention.0.weight", "attention.2.weight"} <= weights.keys()
    if not plain and "attention_w.weight" not in weights:
        return None
    if any(key.startswith("feature_extractor_part") for key in weights):
        raise UnusableHead(
            "it is AttentionDeepMIL with its network over images of digits; a head takes the features of an encoder"
        )
    ours = renamed(
        weights,
        [
            (r"attention_V\.0\.", "attention.tanh_gate."),
            (r"attention_U\.0\.", "attention.sigmoid_gate."),
            (r"attention_w\.", "attention.score."),
            (r"attention\.0\.", "attention.tanh_gate."),
            (r"attention\.2\.", "attention.score."),
            (r"classifier\.0\.", "classifier."),
        ],
    )
    for part in ("weight", "bias"):
        positive = ours.get(f"classifier.{part}")
        if positive is not None and len(positive) == 1:
            ours[f"classifier.{part}"] = torch.cat([torch.zeros_like(positive), positive])
    return _attention_head("abmil", "attention over features and one sigmoid: AttentionDeepMIL", ours)


def recognise_pooling(weights: Weights) -> FoundHead | None:
    """CLAM's ``mil`` (max pooling), and STAMP's networks over the mean."""
    names = set(weights)
    if names == {"fc.weight", "fc.bias"}:
        return _pooling(
            "mean",
            "one linear layer fc: STAMP's linear model over the mean",
            renamed(weights, [(r"fc\.", "classifier.")]),
        )
    layers = indices(weights, r"mlp\.(\d+)\.weight")
    if layers and all(name.startswith("mlp.") for name in names):
        last = layers[-1]
        ours = renamed(weights, [(rf"mlp\.{last}\.", "classifier."), (r"mlp\.", "hidden.")])
        return _pooling("mean", "layers mlp: STAMP's network over the mean", ours)
    rows = indices(weights, r"classifiers\.(\d+)\.")
    if names & {"fc.0.weight", "classifier.0.weight"} and len(names) == 2 + 2 * max(1, len(rows)):
        rest = stacked(weights, "classifiers") if rows else weights
        ours = renamed(
            rest,
            [
                (r"fc\.0\.", "hidden.0."),
                (r"classifier\.0\.", "hidden.0."),
                (r"classifier\.[23]\.", "classifier."),
                (r"classifiers\.", "classifier."),
            ],
        )
        return _pooling("max", "fc and classifier without attention: CLAM's mil", ours)
    return None


def _pooling(kind: str, why: str, ours: dict[str, Tensor]) -> FoundHead:
    widths, feature_dim = _hidden(ours)
    classes = _classes(ours)
    return FoundHead(kind, why, PoolingConfig(hidden_widths=widths), feature_dim, classes, ours)


def _attention_head(kind: str, why: str, ours: dict[str, Tensor]) -> FoundHead:
    widths, feature_dim = _hidden(ours)
    gate = ours.get("attention.tanh_gate.weight")
    if gate is None or "attention.score.weight" not in ours:
        raise UnusableHead("its attention is incomplete: weights of the gates or of the scores are missing")
    classes = _classes(ours)
    config = AbmilConfig if kind == "abmil" else ClamConfig
    sizes = config(hidden_widths=widths, gated="attention.sigmoid_gate.weight" in ours, gate_width=int(gate.shape[0]))
    return FoundHead(kind, why, sizes, feature_dim if widths else int(gate.shape[1]), classes, ours)


def _hidden(ours: Weights) -> tuple[tuple[int, ...], int]:
    """Widths of the hidden layers, and the length of a feature vector."""
    numbers = indices(ours, r"hidden\.(\d+)\.weight")
    first = ours[f"hidden.{numbers[0]}.weight"] if numbers else ours.get("classifier.weight")
    feature_dim = 0 if first is None else int(first.shape[1])
    return tuple(int(ours[f"hidden.{number}.weight"].shape[0]) for number in numbers), feature_dim


def _classes(ours: Weights) -> int:
    weight = ours.get("classifier.weight")
    if weight is None:
        raise UnusableHead("it has no classifier: pretrained weights without a head; train the classifier first")
    if len(weight) < 2:
        raise UnusableHead("it has one output, as for regression or survival; a verdict needs at least two classes")
    return len(weight)
