"""The adaptive cascade gives the outcome of its last number of kept patches, and encodes no patch twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagmil.errors import UsageError
from hagmil.runtime.inference.adaptive import AdaptiveOutcome, adaptive_keeps, run_adaptive
from hagmil.runtime.inference.cascade import StageOutcome, run_cascade
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.sessions import Session
from hagmil.runtime.slides.open import open_slide
from tests.runtime.calibrated import calibrated
from tests.runtime.small_bundle import write_small_bundle


class CountingSession:
    """A session that counts the rows of its inputs."""

    def __init__(self, session: Session) -> None:
        self._session, self.rows = session, list[int]()

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Run the graph once."""
        self.rows += [len(array) for array in inputs.values()]
        return self._session.run(inputs, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> LoadedModel:
    return load_model(small_bundle, threads=1)


def _adaptive(path: Path, model: LoadedModel, limit: int | None = None, coarsest: int | None = None) -> AdaptiveOutcome:
    manifest = model.bundle.manifest
    with open_slide(path) as slide:
        layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        coords = layout.coords[:coarsest]
        return run_adaptive(slide, coords, model, layout.plan, EncodeOptions(), clock=StepClock(), limit=limit)


def _fixed(path: Path, model: LoadedModel, keep: int) -> tuple[StageOutcome, ...]:
    manifest = model.bundle.manifest
    with open_slide(path) as slide:
        layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        return run_cascade(slide, layout.coords, model, layout.plan, EncodeOptions(), clock=StepClock(), keep=keep)


@pytest.mark.parametrize("limit", [8, 16, 32])
def test_the_outcome_at_k_is_that_of_the_cascade_that_keeps_k_patches(
    limit: int, tissue_path: Path, model: LoadedModel
) -> None:
    found = _adaptive(tissue_path, calibrated(model, threshold=99), limit)
    assert not found.sure
    assert [reading.keep for reading in found.readings] == [keep for keep in (4, 8, 16, 32) if keep <= limit]
    for one, other in zip(found.stages, _fixed(tissue_path, model, limit), strict=True):
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_array_equal(one.kept, other.kept)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
        np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], atol=1e-5)


def test_no_patch_is_encoded_twice_and_the_coarsest_model_runs_once(tissue_path: Path, model: LoadedModel) -> None:
    backbone, stages = CountingSession(model.backbone), [CountingSession(session) for session in model.stages]
    counting = replace(calibrated(model, threshold=99), backbone=backbone, stages=tuple(stages))
    found = _adaptive(tissue_path, counting)
    needed = [
        {
            (index, *corner)
            for index, stage in enumerate(_fixed(tissue_path, model, keep))
            for corner in stage.coords.tolist()
        }
        for keep in (4, 8, 16, 32)
    ]
    assert sum(backbone.rows) == len(set.union(*needed))
    assert [reading.patches_read for reading in found.readings] == [
        len(set.union(*needed[: count + 1])) for count in range(4)
    ]
    assert [len(session.rows) for session in stages] == [1, 4, 8]  # the last stage also reads its rows of the top


def test_the_cascade_stops_at_the_first_sure_pair(tissue_path: Path, model: LoadedModel) -> None:
    found = _adaptive(tissue_path, calibrated(model, threshold=0.5))
    assert found.sure
    assert [reading.keep for reading in found.readings] == [4, 8]
    assert [len(stage.kept) for stage in found.stages] == [8, 8, 0]


def test_the_second_reading_uses_the_rows_with_the_highest_attention(tissue_path: Path, model: LoadedModel) -> None:
    found = _adaptive(tissue_path, calibrated(model, threshold=99))
    green = np.sort(-found.stages[-1].attention)[:4].mean()  # attention is the negative green
    np.testing.assert_allclose(found.readings[-1].top_logits, [green, 1 - green], atol=1e-6)
    assert abs(found.readings[-1].logits[0] - green) > 0.05


def test_a_slide_with_few_patches_ends_when_all_are_read_and_repeats_the_last_reading(
    tissue_path: Path, model: LoadedModel
) -> None:
    unsure = _adaptive(tissue_path, calibrated(model, threshold=99, keeps=(4, 8, 16, 32, 64)), coarsest=3)
    assert [(reading.keep, reading.patches_read) for reading in unsure.readings] == [
        (4, 31),
        (8, 47),
        (16, 63),
        (32, 63),
    ]
    np.testing.assert_array_equal(unsure.readings[-1].logits, unsure.readings[-2].logits)
    sure = _adaptive(tissue_path, calibrated(model, threshold=0, keeps=(64, 128)), coarsest=3)
    assert (sure.sure, [reading.keep for reading in sure.readings]) == (True, [64, 128])


def test_a_bundle_that_is_not_calibrated_or_has_no_cascade_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hagmil eval --calibrate"):
        adaptive_keeps(model.bundle)
    one_stage = load_model(write_small_bundle(tmp_path / "one", spacings_um=(0.5,)), threads=1)
    with pytest.raises(UsageError, match="one stage, which reads all patches"):
        adaptive_keeps(calibrated(one_stage).bundle)


@pytest.mark.parametrize("limit", [4, 33])
def test_a_limit_needs_two_numbers_and_may_not_exceed_the_calibration(limit: int, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match=rf"pass --keep 8 to 32, not {limit}"):
        adaptive_keeps(calibrated(model).bundle, limit)


def test_a_limit_between_two_numbers_allows_the_smaller(model: LoadedModel) -> None:
    assert adaptive_keeps(calibrated(model).bundle, 31) == (4, 8, 16)
