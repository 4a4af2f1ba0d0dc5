"""Recognise TransMIL (also of STAMP and MIL-Lab), DSMIL, and the transformer of STAMP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hagmil.trainer.models.dsmil import DsmilConfig
from hagmil.trainer.models.tile_transformer import TileTransformerConfig
from hagmil.trainer.models.transmil import TransMilConfig
from hagmil.trainer.published.heads.found_head import (
    FoundHead,
    HeadOptions,
    UnusableHead,
    Weights,
    indices,
    renamed,
)

_DEFAULT_HEADS = 8


def recognise_transmil(weights: Weights, settings: Mapping[str, Any], options: HeadOptions) -> FoundHead | None:
    """TransMIL; the settings tell STAMP's, whose library returned the last rows."""
    if "pos_layer.proj.weight" not in weights:
        return None
    is_original = "_fc1.0.weight" in weights and "dim_input" not in settings and "stamp_version" not in settings
    ours = renamed(
        weights,
        [
            (r"_fc1\.", "hidden."),
            (r"patch_embed\.", "hidden."),
            (r"layer1\.attn\.", "layers.0.attention."),
            (r"layer2\.attn\.", "layers.1.attention."),
            (r"layer1\.", "layers.0."),
            (r"layer2\.", "layers.1."),
            (r"blocks\.", "layers."),
            (r"pos_layer\.proj1\.", "position.convolutions.1."),
            (r"pos_layer\.proj2\.", "position.convolutions.2."),
            (r"pos_layer\.proj\.", "position.convolutions.0."),
            (r"_fc2\.", "classifier."),
        ],
    )
    ours = {key.replace(".to_out.0.", ".to_out.").replace(".res_conv.", ".value_conv."): w for key, w in ours.items()}
    ours["class_token"] = ours.pop("cls_token").reshape(1, -1)
    numbers = indices(ours, r"hidden\.(\d+)\.weight")
    values = ours["layers.0.attention.value_conv.weight"]
    rows = options.nystrom_rows or ("first" if is_original else "last")
    config = TransMilConfig(
        hidden_widths=tuple(int(ours[f"hidden.{number}.weight"].shape[0]) for number in numbers),
        layers=len(indices(ours, r"layers\.(\d+)\.")),
        heads=int(values.shape[0]),
        value_kernel=int(values.shape[2]),
        returned_rows="first" if rows == "first" else "last",
    )
    feature_dim = int(ours[f"hidden.{numbers[0]}.weight"].shape[1])
    why = f"pos_layer and class token: TransMIL; attention returns the {rows} rows"
    return FoundHead("transmil", why, config, feature_dim, _classes(ours), ours)


def recognise_dsmil(weights: Weights, _settings: Mapping[str, Any], options: HeadOptions) -> FoundHead | None:
    """DSMIL of its own code and of MIL-Lab."""
    if not any(key.startswith("b_classifier.") for key in weights):
        return None
    if "i_classifier.inst_classifier.weight" in weights:
        return _millab_dsmil(weights, options)
    ours = renamed(
        weights,
        [
            (r"i_classifier\.fc\.0\.", "instance_classifier."),
            (r"i_classifier\.fc\.", "instance_classifier."),
            (r"b_classifier\.lin\.", "bag_layer."),
            (r"b_classifier\.q\.(?=\d)", "query."),
            (r"b_classifier\.q\.", "query.0."),
            (r"b_classifier\.v\.", "value."),
            (r"b_classifier\.fcc\.", "classifier."),
        ],
    )
    old = "bag_layer.0.weight" in ours
    query = "mlp" if "query.2.weight" in ours else "tanh" if old else "linear"
    value = "identity" if "value.1.weight" not in ours else "linear" if old else "relu"
    sizes = {"bag_layer": old, "query": query, "value": value}
    return _dsmil("i_classifier and b_classifier: DSMIL", ours, sizes, options)


def recognise_tile_transformer(weights: Weights, settings: Mapping[str, Any], options: HeadOptions) -> FoundHead | None:
    """The transformer of STAMP (all layouts), and that of MIL-Lab without feed-forward networks."""
    token = "class_token" if "class_token" in weights else "cls_token"
    if token not in weights:
        return None
    if any(".mhsa.query_encoders." in key for key in weights):
        raise UnusableHead("it uses ALiBi, which needs the coordinates of tiles; a head gets features only")
    if "blocks.0.attention.in_proj_weight" in weights:
        if "blocks.0.mlp.0.weight" in weights:
            raise UnusableHead("it is the transformer of MIL-Lab with feed-forward networks, which is not supported")
        ours = renamed(
            weights,
            [
                (r"patch_embed\.0\.", "project.0."),
                (r"blocks\.(\d+)\.norm\.", r"layers.\1.attention.norm."),
                (r"blocks\.(\d+)\.attention\.in_proj_", r"layers.\1.attention.to_qkv."),
                (r"blocks\.(\d+)\.attention\.out_proj\.", r"layers.\1.attention.to_out."),
            ],
        )
        projection, why = "relu", "blocks without feed-forward networks: MIL-Lab's transformer"
    elif any(key.startswith("transformer.layers.0.0.mhsa.") for key in weights):
        ours = renamed(
            weights,
            [
                (r"(project_features|fc)\.0\.", "project.0."),
                (r"transformer\.layers\.(\d+)\.0\.norm\.", r"layers.\1.attention.norm."),
                (r"transformer\.layers\.(\d+)\.0\.mhsa\.in_proj_", r"layers.\1.attention.to_qkv."),
                (r"transformer\.layers\.(\d+)\.0\.mhsa\.out_proj\.", r"layers.\1.attention.to_out."),
                (r"transformer\.layers\.(\d+)\.1\.(mlp\.)?", r"layers.\1.feed_forward."),
                (r"transformer\.norm\.", "norm."),
                (r"mlp_head\.0\.", "classifier."),
            ],
        )
        projection, why = "gelu", "transformer.layers and class token: STAMP"
    else:
        return None
    ours["class_token"] = ours.pop(token).reshape(1, -1)
    inner = ours.get("layers.0.feed_forward.1.weight")
    found = settings.get("n_heads", settings.get("num_heads"))
    heads = options.heads or (found if isinstance(found, int) else _DEFAULT_HEADS)
    width, feature_dim = (int(size) for size in ours["project.0.weight"].shape)
    config = TileTransformerConfig(
        width=width,
        layers=len(indices(ours, r"layers\.(\d+)\.")),
        heads=heads,
        inner_width=0 if inner is None else int(inner.shape[0]),
        projection="relu" if projection == "relu" else "gelu",
        tiles_see_class_token=not options.masked,
    )
    names = settings.get("categories")
    given = tuple(str(name) for name in names) if isinstance(names, list | tuple) else None
    return FoundHead(
        "stamp", f"{why}; {heads} attention heads", config, feature_dim, _classes(ours), ours, class_names=given
    )


def _millab_dsmil(weights: Weights, options: HeadOptions) -> FoundHead:
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith("b_classifier.fcc.")}  # not used
    ours = renamed(
        kept,
        [
            (r"patch_embed\.", "hidden."),
            (r"i_classifier\.inst_classifier\.", "instance_classifier."),
            (r"b_classifier\.q\.", "query.0."),
            (r"b_classifier\.v\.", "value."),
            (r"b_classifier\.norm\.", "bag_norm."),
        ],
    )
    sizes = {"query": "linear", "value": "linear", "bag_norm": True, "logits": "mean"}
    return _dsmil("patch_embed, i_classifier and b_classifier: MIL-Lab's DSMIL", ours, sizes, options)


def _dsmil(why: str, ours: dict[str, Tensor], sizes: dict[str, Any], options: HeadOptions) -> FoundHead:
    if "classifier.weight" not in ours or "instance_classifier.weight" not in ours:
        raise UnusableHead("it is an incomplete DSMIL, such as init.pth, without classifiers")
    joint = ours["classifier.weight"]
    ours["classifier.weight"] = joint.reshape(joint.shape[0], -1)
    present = int(joint.shape[0])
    numbers = indices(ours, r"hidden\.(\d+)\.weight")
    first = ours[f"hidden.{numbers[0]}.weight"] if numbers else ours["instance_classifier.weight"]
    negative = options.negative_class or present == 1
    config = DsmilConfig.model_validate(
        {
            **sizes,
            "hidden_widths": [int(ours[f"hidden.{number}.weight"].shape[0]) for number in numbers],
            "query_width": int(ours["query.0.weight"].shape[0]),
            "negative_class": negative,
        }
    )
    return FoundHead("dsmil", why, config, int(first.shape[1]), present + negative, ours)


def _classes(ours: Weights) -> int:
    weight = ours.get("classifier.weight")
    if weight is None:
        raise UnusableHead("it has no classifier: pretrained weights without a head; train the classifier first")
    if len(weight) < 2:
        raise UnusableHead("it has one output, as for regression or survival; a verdict needs at least two classes")
    return len(weight)
