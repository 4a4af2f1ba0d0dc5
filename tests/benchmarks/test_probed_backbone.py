"""The probed backbone: labelled patches, probes, and the graph that contains them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.features_cascade import phantom_cohort
from benchmarks.probed_backbone import Probes, cut_patches, encode, fit, read_mask, write_probed
from hagmil.export.backbones.export_backbone import export_backbone


def test_probes_separate_the_patches_of_each_spacing() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3.0, 2.0, (400, 6)).astype(np.float32)
    spacing_um = np.repeat(np.array([2.0, 0.5], np.float32), 200)
    lesion = np.where(spacing_um == 2.0, features[:, 0] > 3, features[:, 1] > 3).astype(np.float32)
    found = fit(features, lesion, spacing_um).of(features)
    assert found.shape == (400, 2)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=1e-4)
    for column, spacing in enumerate((2.0, 0.5)):
        rows = spacing_um == spacing
        assert np.corrcoef(found[rows, column], lesion[rows])[0, 1] > 0.7


def test_every_other_patch_of_a_tumour_phantom_contains_lesion_and_none_of_a_normal_one(tmp_path: Path) -> None:
    cohort = phantom_cohort(tmp_path / "probe", slides=2, size_px=1024, seed=3)
    patches = cut_patches(cohort, (1.0, 0.5), patch_px=64, per_slide=4, seed=0)
    assert patches.pixels.shape == (16, 64, 64, 3)
    assert patches.spacing_um.tolist() == [1.0] * 4 + [0.5] * 4 + [1.0] * 4 + [0.5] * 4
    by_slide = dict(zip([slide.label for slide in cohort], patches.lesion.reshape(2, 8), strict=True))
    assert not by_slide["normal"].any()
    assert (by_slide["tumour"][1::2] > 0).all()
    assert not read_mask(next(slide for slide in cohort if slide.label == "normal")).any()


def test_the_graph_computes_the_outputs_of_the_probes(tmp_path: Path) -> None:
    card = export_backbone("tiny", None, tmp_path / "plain")
    rng = np.random.default_rng(0)
    probes = Probes(
        rng.normal(size=card.features).astype(np.float32), rng.normal(size=(card.features, 3)).astype(np.float32)
    )
    probed = write_probed(tmp_path / "plain", probes, tmp_path / "probed")
    patches = rng.integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    assert probed.features == 3
    np.testing.assert_allclose(
        encode(patches, tmp_path / "probed"), probes.of(encode(patches, tmp_path / "plain")), rtol=1e-4, atol=1e-4
    )
