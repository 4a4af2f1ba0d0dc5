"""A resnet50-trunc that detects lesions of phantoms without trained convolutions.

1. Cut patches from phantoms, with the known share of lesion in each. Positions are random; on slides with lesions,
   every other patch is at a lesion.
2. Use random weights with batch-norm statistics of such patches. With the initial statistics of 0 and 1, activations
   grow from layer to layer and features carry little information.
3. Compute the features of all these patches with the exported graph.
4. Fit a linear probe for each spacing: ridge regression of the square root of the share of lesion on the features. Its
   output is scaled to mean 0 and standard deviation 1 over all these patches.
5. Append the probes to the graph as an affine map, whose cost is negligible.

The backbone is thus supervised by lesion masks of phantoms and works on phantoms only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from benchmarks.features_cascade import LabelledPhantom
from hagmil.bundle import BACKBONE_CARD_NAME, BackboneCard, new_folder, open_backbone
from hagmil.export.backbones.encoder import PatchEncoder
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.backbones.resnet import NAME, resnet50_trunc
from hagmil.export.graph import save
from hagmil.export.passes.check_contract import check_contract
from hagmil.features import SlideFeatures
from hagmil.phantom import MASK_STEP_PX
from hagmil.runtime.sessions import open_session
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide, require_spacing
from hagmil.spec import BACKBONE_FEATURES, BACKBONE_INPUTS, BACKBONE_OUTPUTS, PATCHES

STATISTICS_PATCHES = 96
BATCH = 16
LEAST_TISSUE = 0.1
TISSUE_SATURATION = 20
RIDGE = 100.0


@dataclass(frozen=True, slots=True)
class LabelledPatches:
    """Patches with their share of lesion.

    Args:
        pixels: uint8 (patches, side, side, 3).
        lesion: float32 (patches,), share of lesion in each.
        spacing_um: float32 (patches,).
    """

    pixels: NDArray[np.uint8]
    lesion: NDArray[np.float32]
    spacing_um: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probes:
    """An affine map of features.

    Args:
        mean: float32 (dim,).
        weights: float32 (dim, probes), a direction for each spacing.
    """

    mean: NDArray[np.float32]
    weights: NDArray[np.float32]

    def of(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Apply the probes: (n, dim) to float32 (n, probes)."""
        return np.asarray((features.astype(np.float32) - self.mean) @ self.weights, np.float32)


def cut_patches(
    cohort: Sequence[LabelledPhantom], spacings_um: Sequence[float], patch_px: int, per_slide: int, seed: int
) -> LabelledPatches:
    """Cut ``per_slide`` patches from every slide at every spacing (step 1)."""
    rng = np.random.default_rng(seed)
    pixels, lesion, spacing = [], [], []
    for each in cohort:
        mask = read_mask(each)
        diseased = np.argwhere(mask)  # (pixels, 2): row, column
        with open_slide(each.path) as slide:
            for spacing_um in spacings_um:
                for number in range(per_slide):
                    targets = diseased[: len(diseased) * (number % 2)]
                    patch, share = cut_one(slide, spacing_um, mask, targets, patch_px, rng)
                    pixels.append(patch)
                    lesion.append(share)
                    spacing.append(spacing_um)
    return LabelledPatches(np.stack(pixels), np.array(lesion, np.float32), np.array(spacing, np.float32))


def read_mask(slide: LabelledPhantom) -> NDArray[np.bool_]:
    """Read the lesion mask of a phantom, with one pixel for ``MASK_STEP_PX`` level-0 pixels."""
    path = slide.path.parents[1] / "masks" / f"{slide.slide_id}_mask.tif"
    with open_slide(path) as mask:
        return mask.read_region(0, 0, 0, mask.size.width, mask.size.height)[..., 0] > 127


def cut_one(
    slide: Slide,
    spacing_um: float,
    mask: NDArray[np.bool_],
    targets: NDArray[np.intp],
    patch_px: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], float]:
    """Cut a patch with tissue, over one of the target pixels if there are any; also return its share of lesion."""
    level = next(each for each in slide.levels if round(each.downsample * require_spacing(slide), 3) == spacing_um)
    factor = round(level.downsample)
    most = (level.width - patch_px, level.height - patch_px)
    while True:
        corner = rng.integers(0, [most[0] + 1, most[1] + 1])
        if len(targets):
            row, column = targets[rng.integers(len(targets))] * (MASK_STEP_PX / factor)
            corner = (np.array([column, row]) - rng.integers(0, patch_px, 2)).astype(np.int64).clip(0, most)
        x, y = corner.tolist()
        patch = slide.read_region(level.index, x, y, patch_px, patch_px)
        saturation = patch.max(axis=-1).astype(np.int64) - patch.min(axis=-1)
        if (saturation > TISSUE_SATURATION).mean() >= LEAST_TISSUE:
            break
    left, top, side = (round(value * factor / MASK_STEP_PX) for value in (x, y, patch_px))
    return patch, float(mask[top : top + side, left : left + side].mean())


def write_backbone(pixels: NDArray[np.uint8], seed: int, folder: Path) -> None:
    """Export random weights with batch-norm statistics of some patches (step 2)."""
    backbone = resnet50_trunc(None)
    encoder = PatchEncoder(backbone.encoder, backbone.mean, backbone.std)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(pixels)[:STATISTICS_PATCHES])
    encoder.train()
    with torch.no_grad():
        for batch in chosen.split(BATCH):
            encoder(batch)
    weights = folder.with_suffix(".safetensors")
    save_file(backbone.encoder.state_dict(), weights)
    export_backbone(NAME, str(weights), folder)


def encode(pixels: NDArray[np.uint8], backbone: Path) -> NDArray[np.float32]:
    """Compute features with the exported graph (step 3): float32 (patches, dim)."""
    session = open_session(backbone / open_backbone(backbone).onnx)
    starts = range(0, len(pixels), BATCH)
    return np.concatenate(
        [session.run({PATCHES.name: pixels[start : start + BATCH]})[BACKBONE_FEATURES.name] for start in starts]
    )


def fit(features: NDArray[np.floating], lesion: NDArray[np.floating], spacing_um: NDArray[np.floating]) -> Probes:
    """Fit a probe for each spacing, coarse to fine (step 4)."""
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    scaled = (features - mean) / deviation
    directions = []
    for spacing in sorted(set(spacing_um.tolist()), reverse=True):
        chosen = spacing_um == spacing
        rows, target = scaled[chosen] - scaled[chosen].mean(axis=0), np.sqrt(lesion[chosen].astype(np.float64))
        gram = rows.T @ rows + RIDGE * np.eye(rows.shape[1])
        directions.append(np.linalg.solve(gram, rows.T @ (target - target.mean())))
    weights = np.stack(directions, axis=1)  # (dim, probes)
    weights /= (scaled @ weights).std(axis=0) * deviation[:, None]
    return Probes(mean.astype(np.float32), weights.astype(np.float32))


def probed_features(slide: SlideFeatures, probes: Probes, sha256: str) -> SlideFeatures:
    """Convert bags to those of the probed backbone with the given digest."""
    stages = tuple(replace(stage, features=probes.of(stage.features)) for stage in slide.stages)
    return SlideFeatures(replace(slide.header, backbone_sha256=sha256), stages)


def write_probed(backbone: Path, probes: Probes, out: Path) -> BackboneCard:
    """Write a backbone folder whose graph ends with the probes (step 5)."""
    card = open_backbone(backbone)
    graph = probed_graph(onnx.load(backbone / card.onnx), probes)
    check_contract(graph, BACKBONE_INPUTS, BACKBONE_OUTPUTS)
    with new_folder(out, overwrite=True) as folder:
        save(graph, folder / card.onnx)
        changes = {
            "sha256": sha256((folder / card.onnx).read_bytes()).hexdigest(),
            "features": probes.weights.shape[1],
            "weights": "random; batch-norm statistics and linear probes for lesion from phantoms",
        }
        card = card.model_copy(update=changes)
        (folder / BACKBONE_CARD_NAME).write_text(card.model_dump_json(indent=2) + "\n")
    return card


def probed_graph(model: onnx.ModelProto, probes: Probes) -> onnx.ModelProto:
    """Append the probes to a graph as two nodes."""
    graph, plain = model.graph, f"{BACKBONE_FEATURES.name}_plain"
    for node in graph.node:
        node.output[:] = [plain if name == BACKBONE_FEATURES.name else name for name in node.output]
        node.input[:] = [plain if name == BACKBONE_FEATURES.name else name for name in node.input]
    for name, values in (("probes_mean", probes.mean), ("probes_weights", probes.weights)):
        graph.initializer.append(numpy_helper.from_array(values, name))
    graph.node.append(helper.make_node("Sub", [plain, "probes_mean"], ["features_centred"]))
    graph.node.append(helper.make_node("MatMul", ["features_centred", "probes_weights"], [BACKBONE_FEATURES.name]))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = probes.weights.shape[1]
    return model
