"""The weights of ``tiny`` in the package."""

from __future__ import annotations

import numpy as np
import torch

from hagmil.export.backbones import tiny as tiny_module
from hagmil.export.backbones.encoder import PatchEncoder
from hagmil.export.backbones.export_backbone import find_backbone
from hagmil.export.parity.synthetic_inputs import synthetic_patches


def test_the_shipped_weights_are_small_and_the_default() -> None:
    backbone = find_backbone("tiny", None)

    assert tiny_module.SHIPPED.stat().st_size < 1_000_000
    assert backbone.weights.startswith("shipped with hagmil, trained on phantoms: file tiny.safetensors, sha256 ")
    assert backbone.features == 128


def test_the_shipped_weights_are_not_the_random_ones() -> None:
    shipped, random = (find_backbone("tiny", weights).encoder.state_dict() for weights in (None, "random"))

    assert not torch.equal(shipped["layers.0.weight"], random["layers.0.weight"])
    assert bool((shipped["layers.1.running_var"] != 1).any())


def test_features_of_glass_and_tissue_differ() -> None:
    backbone = find_backbone("tiny", None)
    encoder = PatchEncoder(backbone.encoder, backbone.mean, backbone.std).eval()
    with torch.inference_mode():
        glass, tissue = (
            encoder(torch.from_numpy(synthetic_patches(kind, 4, 64, 64, seed=3))).features.numpy()
            for kind in ("white", "tissue")
        )

    within = np.linalg.norm(tissue - tissue.mean(axis=0), axis=1).max()
    assert np.linalg.norm(tissue.mean(axis=0) - glass.mean(axis=0)) > 2 * within
