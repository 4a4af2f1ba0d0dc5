"""The benchmark from slide to prediction: its arithmetic, and the patches that both ways read."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.features_cascade import EVERYTHING, LabelledPhantom, Verdicts
from benchmarks.slide_to_verdict import (
    BATCH,
    SlideRun,
    as_json,
    both_agree,
    large_verdicts,
    markdown,
    ours,
    parts_of,
    published,
    scaled,
    spread_batches,
    write_split,
)
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.runtime.inference.loaded_bundle import builtin_bundle, load_model
from hagmil.runtime.predict import predict_slide

PEER = SlideRun((0, 0, 1000), {"read": 10.0, "backbone": 80.0, "models": 1.0, "total": 100.0}, "tumour", 0.9)
MINE = SlideRun((40, 20, 20), {"read": 0.2, "backbone": 7.0, "models": 0.5, "write": 0.3, "total": 8.0}, "tumour", 0.8)


def verdicts(keep: int, tumour: list[float]) -> Verdicts:
    second = np.array(tumour)
    return Verdicts(keep, np.stack([1 - second, second], axis=1), np.ones((len(tumour), 3), np.int64))


def test_the_factor_is_patches_avoided_times_the_ratio_of_the_costs_per_patch() -> None:
    parts = parts_of(PEER, MINE)
    assert parts["factor"] == 12.5
    assert parts["patches_avoided"] == 12.5
    assert parts["seconds_per_patch"] == 1.0
    assert parts["read"] == 50.0
    assert parts["patches_avoided"] * parts["seconds_per_patch"] == pytest.approx(parts["factor"], rel=0.01)


def test_keep_must_agree_with_keeping_everything_and_with_the_finest_stage_alone() -> None:
    tried = [verdicts(1, [0.1, 0.4]), verdicts(2, [0.1, 0.9]), verdicts(4, [0.1, 0.9])]
    tumour, normal = verdicts(EVERYTHING, [0.2, 0.7]), verdicts(EVERYTHING, [0.2, 0.3])
    assert both_agree(tried, tumour, tumour) == 2
    assert both_agree(tried, normal, tumour) is None


def test_a_case_is_in_training_or_validation_but_not_in_both(tmp_path: Path) -> None:
    slides = [
        LabelledPhantom(f"s{index}", f"c{index // 2}", ("normal", "tumour")[index >= 8], tmp_path)
        for index in range(16)
    ]
    write_split(tmp_path / "split.csv", slides)
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = {row["train"] for row in rows if row["train"]}
    validated = {row["val"] for row in rows if row["val"]}
    assert (len(trained), len(validated)) == (12, 4)
    case = {slide.slide_id: slide.case_id for slide in slides}
    assert not {case[name] for name in trained} & {case[name] for name in validated}
    assert {slide.label for slide in slides if slide.slide_id in validated} == {"normal", "tumour"}


def test_a_sample_consists_of_whole_batches_from_the_first_to_the_last() -> None:
    coords = np.stack([np.arange(10 * BATCH + 3)] * 2, axis=1)
    sample = spread_batches(coords, 3 * BATCH)
    assert sample[:, 0].tolist() == [
        *range(BATCH),
        *range(5 * BATCH, 6 * BATCH),
        *range(10 * BATCH, 10 * BATCH + 3),
    ]
    np.testing.assert_array_equal(spread_batches(coords, len(coords)), coords)


def test_only_reading_and_encoding_are_scaled_up() -> None:
    assert scaled({"tissue": 1.0, "read": 2.0, "backbone": 3.0, "models": 4.0}, 10.0) == {
        "tissue": 1.0,
        "read": 20.0,
        "backbone": 30.0,
        "models": 4.0,
    }


def test_the_published_way_reads_the_finest_patches_with_tissue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = tmp_path / "slide.tif"
    write_phantom(PhantomSpec(seed=1, label="tumour", size_px=512), slide, threads=1)
    model = load_model(builtin_bundle(), threads=1)
    peer, whole = published(slide, model)
    monkeypatch.setattr("benchmarks.slide_to_verdict.BATCH", 7)
    mine = ours(slide, model, 1 << 20, tmp_path / "out")
    assert peer.patches[:2] == (0, 0)
    assert 0 < peer.patches[2] <= whole == mine.patches[2]
    assert set(peer.seconds) == {"open", "tissue", "read", "backbone", "models", "total"}
    assert 0 <= peer.probability <= 1


def test_models_of_several_seeds_share_the_features_of_a_slide(tmp_path: Path) -> None:
    slide = tmp_path / "slide.tif"
    write_phantom(PhantomSpec(seed=1, label="tumour", size_px=512), slide, threads=1)
    model = load_model(builtin_bundle(), threads=1)
    found = large_verdicts(slide, {5: model, 6: model}, [1, 2])
    for keep, outcome in found[5]:
        expected = predict_slide(slide, model=model, keep=keep).stages[-1]
        assert len(outcome.coords) == expected.encoded
        np.testing.assert_allclose(outcome.outputs["logits"], expected.logits, atol=1e-5)
    assert [keep for keep, _ in found[6]] == [1, 2]


def test_the_tables_show_patches_steps_and_both_predictions() -> None:
    rows = [
        {
            "keep": "4",
            "agrees_with_all": 1.0,
            "agrees_with_finest_alone": 0.5,
            "auc": None,
            "accuracy": 0.75,
            "share_of_finest": 0.1,
        }
    ]
    report = {
        "size_px": 4096,
        "keep": 4,
        "published_sample": None,
        "published": as_json(PEER),
        "ours": as_json(MINE),
        "parts": parts_of(PEER, MINE),
        "other_keeps": [{"keep": 16, **as_json(PEER), "factor": 1.0}],
        "cohort": {"rows": rows},
        "seeds": [{"seed": 5, "keep": 8, "rows": rows, "large": [{"keep": 8, "probability": 0.75}]}],
    }
    text = markdown(report)
    assert "| patches at 0.5 um/px | 1000 | 20 | |" in text
    assert "| patches, all stages | 1000 | 80 | 12.5 |" in text
    assert "| write, s | 0.00 | 0.30 |  |" in text
    assert "| prediction | tumour 0.900 | tumour 0.800 | |" in text
    assert "| 4 | 80 | 8.0 | 12.5 | tumour 0.800 |" in text
    assert "| 5 | 8 | tumour 0.750 |" in text
    assert "| 4 | 100.0% | 50.0% |  | 75.0% | 10.0% |" in text
