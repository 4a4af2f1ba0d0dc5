"""A backbone whose features are whitened: what makes features of random weights fit to be learned from.

Features of random weights differ by a few hundredths of their size from patch to patch, nearly all of it along one
direction. A graph's own last step takes their mean over a cohort away, turns them to their principal directions and
scales each to one: an affine map, whose cost is nothing beside the convolutions'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hagmil._files import sha256_of, write_text
from hagmil.bundle import BACKBONE_CARD_NAME, BackboneCard, new_folder, open_backbone
from hagmil.export.graph import save
from hagmil.export.passes.check_contract import check_contract
from hagmil.features import SlideFeatures
from hagmil.spec import BACKBONE_FEATURES, BACKBONE_INPUTS, BACKBONE_OUTPUTS


@dataclass(frozen=True, slots=True)
class Whitening:
    """An affine map of features.

    Args:
        mean: float32 (dim,).
        turn: float32 (dim, directions), principal directions over the deviation along each.
    """

    mean: NDArray[np.float32]
    turn: NDArray[np.float32]

    def of(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Whitened features: (n, dim) to float32 (n, directions)."""
        return np.asarray((features.astype(np.float32) - self.mean) @ self.turn, np.float32)


def fit(cohort: Sequence[SlideFeatures], directions: int) -> Whitening:
    """The whitening of all patches of a cohort."""
    rows = np.concatenate([stage.features for slide in cohort for stage in slide.stages]).astype(np.float64)
    mean = rows.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(rows - mean, rowvar=False))  # rising
    chosen = slice(None, -directions - 1, -1)
    turn = vectors[:, chosen] / np.sqrt(variances[chosen])
    return Whitening(mean.astype(np.float32), turn.astype(np.float32))


def whiten_features(slide: SlideFeatures, whitening: Whitening, sha256: str) -> SlideFeatures:
    """The bags as the whitened backbone, whose digest is given, would have made them."""
    stages = tuple(replace(stage, features=whitening.of(stage.features)) for stage in slide.stages)
    return SlideFeatures(replace(slide.header, backbone_sha256=sha256), stages)


def write_whitened(backbone: Path, whitening: Whitening, out: Path) -> BackboneCard:
    """Write a backbone folder whose graph ends in the whitening."""
    card = open_backbone(backbone)
    graph = whitened_graph(onnx.load(backbone / card.onnx), whitening)
    check_contract(graph, BACKBONE_INPUTS, BACKBONE_OUTPUTS)
    with new_folder(out, overwrite=True) as folder:
        save(graph, folder / card.onnx)
        changes = {
            "sha256": sha256_of(folder / card.onnx),
            "features": whitening.turn.shape[1],
            "weights": f"{card.weights}, whitened",
        }
        card = card.model_copy(update=changes)
        write_text(folder / BACKBONE_CARD_NAME, card.model_dump_json(indent=2) + "\n")
    return card


def whitened_graph(model: onnx.ModelProto, whitening: Whitening) -> onnx.ModelProto:
    """The graph with two nodes more."""
    graph, plain = model.graph, f"{BACKBONE_FEATURES.name}_plain"
    for node in graph.node:
        node.output[:] = [plain if name == BACKBONE_FEATURES.name else name for name in node.output]
        node.input[:] = [plain if name == BACKBONE_FEATURES.name else name for name in node.input]
    for name, values in (("whitening_mean", whitening.mean), ("whitening_turn", whitening.turn)):
        graph.initializer.append(numpy_helper.from_array(values, name))
    graph.node.append(helper.make_node("Sub", [plain, "whitening_mean"], ["features_centred"]))
    graph.node.append(helper.make_node("MatMul", ["features_centred", "whitening_turn"], [BACKBONE_FEATURES.name]))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = whitening.turn.shape[1]
    return model
