"""Cases of a bundle's self-test: a few patches, one small bag per stage, and the expected outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from hagmil.bundle import Precision
from hagmil.export.parity.compare import Tolerance
from hagmil.export.parity.synthetic_inputs import synthetic_bag, synthetic_patches
from hagmil.export.parity.torch_reference import torch_run
from hagmil.runtime.sessions import open_session
from hagmil.selftest import BACKBONE, SelfTestCase
from hagmil.spec import BAG, PATCHES, STAGE_INPUTS, Kind
from hagmil.trainer.models.registry import output_specs

SELFTEST_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(absolute=1e-3, relative=1e-3),
    "fp16": Tolerance(absolute=1e-2, relative=1e-2),
    "int8": Tolerance(absolute=2e-2, relative=2e-2),
}
"""Wider than the tolerances of parity, because they apply to every provider, including tensor cores."""

_SEED = 2023
_TISSUE_PATCHES = 2
_BAG_PATCHES = 37


def backbone_case(source: Path, patch_px: int, precision: Precision) -> SelfTestCase:
    """Run the backbone on a few patches on the CPU.

    Args:
        source: the graph to run: ``backbone.onnx``, or the float32 graph that a half-precision one was made from.
        patch_px: side of a patch in pixels.
        precision: of the bundle's backbone; selects the tolerance.
    """
    patches = np.concatenate(
        [
            synthetic_patches("tissue", _TISSUE_PATCHES, patch_px, patch_px, seed=_SEED),
            synthetic_patches("white", 1, patch_px, patch_px),
        ]
    )
    inputs = {PATCHES.name: patches}
    tolerance = SELFTEST_TOLERANCES[precision]
    return SelfTestCase(
        BACKBONE, inputs, open_session(source).run(dict(inputs)), tolerance.absolute, tolerance.relative
    )


def stage_case(name: str, model: nn.Module, feature_dim: int, kind: Kind, precision: Precision) -> SelfTestCase:
    """Run a stage model in torch on a small bag.

    Args:
        name: name of the stage.
        model: the torch model.
        feature_dim: length of a feature vector.
        kind: kind of the model.
        precision: of the stage's graph; selects the tolerance.
    """
    inputs = {BAG.name: synthetic_bag("clustered", _BAG_PATCHES, feature_dim, seed=_SEED)}
    outputs = torch_run(model, STAGE_INPUTS, output_specs(model, kind), dtype=torch.float32)(dict(inputs))
    tolerance = SELFTEST_TOLERANCES[precision]
    return SelfTestCase(name, inputs, outputs, tolerance.absolute, tolerance.relative)
