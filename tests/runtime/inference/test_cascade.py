"""The cascade reads only children of kept patches, and keeps the patches with the highest attention."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hagmil.errors import BundleError
from hagmil.runtime.inference import cascade
from hagmil.runtime.inference.cascade import StageOutcome, highest_rows, run_cascade, run_stage
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.patches.quadtree import children, coarse_grid
from hagmil.runtime.patches.reader import read_patch
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.overview import read_overview
from hagmil.runtime.tissue.segment import find_tissue
from tests.runtime.slide_files import DARKEST_XY


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def _run(path: Path, model: LoadedModel, keep: int | None = None, **options: int) -> tuple[StageOutcome, ...]:
    manifest = model.bundle.manifest
    with open_slide(path) as slide:
        layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        return run_cascade(
            slide, layout.coords, model, layout.plan, EncodeOptions(**options), clock=StepClock(), keep=keep
        )


def test_each_stage_reads_the_children_of_the_patches_kept_by_the_previous_stage(
    tissue_path: Path, model: LoadedModel
) -> None:
    outcomes = _run(tissue_path, model)
    assert [outcome.geometry.patch_level0 for outcome in outcomes] == [64, 32, 16]
    for coarse, fine in pairwise(outcomes):
        assert len(coarse.kept) == 2
        np.testing.assert_array_equal(
            fine.coords, children(coarse.coords[coarse.kept], coarse.geometry.patch_level0, 2)
        )
    assert len(outcomes[-1].kept) == 0


def test_the_coarsest_stage_reads_the_grid_over_tissue(tissue_path: Path, model: LoadedModel) -> None:
    outcomes = _run(tissue_path, model)
    with open_slide(tissue_path) as slide:
        parameters = model.bundle.manifest.tissue
        mask = find_tissue(read_overview(slide, parameters.spacing_um), parameters)
        np.testing.assert_array_equal(outcomes[0].coords, coarse_grid(slide.size, 64, mask, parameters.min_share))


def test_batch_buffers_are_released_before_a_stage_model_runs(
    tissue_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for name in ("release_buffers", "run_stage"):
        real = getattr(cascade, name)
        monkeypatch.setattr(cascade, name, lambda *args, name=name, real=real: called.append(name) or real(*args))
    _run(tissue_path, model)
    assert called == 3 * ["release_buffers", "run_stage"]


def test_the_last_stage_reads_the_darkest_square(tissue_path: Path, model: LoadedModel) -> None:
    corner = np.array(DARKEST_XY)
    finest = _run(tissue_path, model)[-1]
    assert ((finest.coords >= corner) & (finest.coords + 16 <= corner + 128)).all()


def test_attention_and_logits_are_computed_from_the_pixels(tissue_path: Path, model: LoadedModel) -> None:
    for outcome in _run(tissue_path, model):
        with open_slide(tissue_path) as slide:
            green = [read_patch(slide, outcome.geometry, x, y)[..., 1].mean() / 255 for x, y in outcome.coords.tolist()]
        np.testing.assert_allclose(outcome.attention, -np.array(green), atol=1e-6)
        np.testing.assert_allclose(outcome.outputs["logits"], [np.mean(green), 1 - np.mean(green)], atol=1e-6)


def test_reader_threads_do_not_change_results_and_the_batch_size_changes_only_rounding(
    tissue_path: Path, model: LoadedModel
) -> None:
    one = _run(tissue_path, model, batch_size=50, reader_threads=1)
    threads = _run(tissue_path, model, batch_size=50, reader_threads=3)
    batches = _run(tissue_path, model, batch_size=1, reader_threads=2)
    for left, right, other in zip(one, threads, batches, strict=True):
        np.testing.assert_array_equal(left.coords, right.coords)
        np.testing.assert_array_equal(left.attention, right.attention)
        np.testing.assert_array_equal(left.coords, other.coords)
        np.testing.assert_allclose(left.attention, other.attention, atol=1e-5)


def test_keep_overrides_the_bundle_and_a_large_keep_keeps_all_patches(tissue_path: Path, model: LoadedModel) -> None:
    assert [len(outcome.kept) for outcome in _run(tissue_path, model, keep=5)] == [5, 5, 0]
    outcomes = _run(tissue_path, model, keep=100_000)
    assert len(outcomes[0].kept) == len(outcomes[0].coords)
    assert len(outcomes[2].coords) == 16 * len(outcomes[0].coords)


def test_equal_scores_keep_their_order() -> None:
    np.testing.assert_array_equal(highest_rows(np.array([1, 3, 3, 2, 3], np.float32), 4), [1, 2, 4, 3])
    np.testing.assert_array_equal(highest_rows(np.array([1, 2], np.float32), 9), [1, 0])


def test_outputs_that_are_not_finite_are_rejected(model: LoadedModel) -> None:
    features = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(BundleError, match=r"stage 2um: .*not finite"):
        run_stage(model.stages[0], features, "2um")
