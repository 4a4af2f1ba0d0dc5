"""The demonstration: the whole path from slides to verdicts, on phantoms.

1. Make a training cohort and an unseen cohort of phantoms.
2. Export a patch encoder and extract features of every stage.
3. Split the training cohort by patient and train.
4. Export a bundle.
5. Run inference on the unseen phantoms and compare verdicts with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import h5py
import numpy as np
import pyvips
from sklearn.metrics import roc_auc_score

from hagmil._files import write_text
from hagmil.bundle import RESEARCH_USE_ONLY
from hagmil.errors import Interrupted, SlideFailed, UsageError
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.pipeline import export_bundle
from hagmil.phantom import MASK_STEP_PX, PhantomSlide, write_cohort
from hagmil.progress import Progress
from hagmil.runtime.extract import ExtractOptions, Extractor, ExtractOutcome, extract_many, parse_stages
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.predict import PredictOptions, predict_requests
from hagmil.runtime.results.result import ATTENTION_NAME, Result
from hagmil.spec import Readout
from hagmil.trainer.config.training import parse_config
from hagmil.trainer.data.labels import read_labels
from hagmil.trainer.data.splits import make_splits, write_splits
from hagmil.trainer.training.loop import train

STAGES = "2,1,0.5"
PATCH_PX = 64
_SMALL: dict[str, object] = {
    "widths": [64],
    "hidden_width": 64,
    "gate_width": 32,
    "gate_dropout": 0.0,
    "attention_dropout": 0.0,
}
RECIPE: dict[str, object] = {
    "kind": "hag-mil",
    "classes": ["normal", "tumour"],
    "threads": 1,
    "model": {**_SMALL, "readout": "additive", "rows": "independent"},
    "cascade": {
        "keep_random": True,
        "keep_train": 8,
        "keep_validation": 8,
        "validation_keeps": [4, 16, "all"],
        "teach": 0.3,
    },
    "loss": {"instance": "none"},
    "optimiser": {"learning_rate": 1e-3},
    "schedule": {"max_epochs": 24, "patience": 8},
}
"""Our own recipe: additive read-out over independent rows, random K and teaching, so that the verdict depends little on
K and on the size of the slide (docs/benchmarks-stability.md). The model is small and the learning rate is higher than
in the published recipe, which is for hundreds of slides with thousands of patches each."""

POOLED_RECIPE: dict[str, object] = {
    **RECIPE,
    "model": _SMALL,
    "cascade": {"keep_train": 8, "keep_validation": 8},
    "loss": {"k_sample": 4},
}
"""The published transformer, read-out, selection and losses, with the same widths and schedule. There is no dropout:
with it, the model did not learn from 48 slides."""

PHANTOMS_ONLY = (
    f"{RESEARCH_USE_ONLY} This model was trained on synthetic slides: its verdicts on real slides have no meaning."
)

_VALIDATION_SHARE = 0.25
_MARK = ".hagmil-demo"


@dataclass(frozen=True, slots=True)
class DemoSize:
    """Size of the demonstration.

    Args:
        train_slides: number of phantoms for training and validation.
        unseen_slides: number of phantoms for inference.
        size_px: width and height of a phantom in level-0 pixels.
        seed: random seed.
    """

    train_slides: int = 64
    unseen_slides: int = 24
    size_px: int = 2048
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The result of the demonstration.

    Args:
        truths: the unseen phantoms.
        results: their results, in the same order.
        auc: area under the ROC curve on the unseen phantoms.
        stage_auc: the same for the logits of each stage, by name, coarse to fine; 0.5 is chance.
        lesion_ratio: see :func:`lesion_ratio`.
        bundle: folder of the bundle.
        out: folder of the results.
    """

    truths: tuple[PhantomSlide, ...]
    results: tuple[Result, ...]
    auc: float
    stage_auc: dict[str, float]
    lesion_ratio: float
    bundle: Path
    out: Path


def run_demo(out: Path, size: DemoSize, progress: Progress, *, readout: Readout = "additive") -> DemoReport:
    """Run the demonstration.

    Args:
        out: output folder; the output of an earlier demonstration in it is deleted.
        size: number and size of the phantoms.
        progress: called for each step.
        readout: ``additive`` for our own recipe, ``pooled`` for the published transformer and selection.

    Raises:
        HagmilError: a step failed.
    """
    _start_over(out)
    cohort = _cohort(out / "cohort", "training phantoms", size.train_slides, size, size.seed, progress)
    unseen = _cohort(out / "unseen", "unseen phantoms", size.unseen_slides, size, size.seed + 1, progress)
    backbone = out / "backbone"
    export_backbone("tiny", weights=None, out_dir=backbone, overwrite=True)  # step 2
    _extract(cohort, backbone, out / "features", progress)
    recipe = RECIPE if readout == "additive" else POOLED_RECIPE
    bundle = _train_and_export(out, backbone, recipe, size.seed, progress)  # steps 3 and 4
    results = _infer(unseen, bundle, out / "results", progress)  # step 5
    tumour = [slide.label == "tumour" for slide in unseen]
    return DemoReport(
        truths=tuple(unseen),
        results=results,
        auc=float(roc_auc_score(tumour, [result.probabilities["tumour"] for result in results])),
        stage_auc=stage_auc(results, tumour),
        lesion_ratio=lesion_ratio(unseen, out / "results"),
        bundle=bundle,
        out=out / "results",
    )


def _start_over(out: Path) -> None:
    """Delete the output of an earlier demonstration; raise an error if the folder contains anything else."""
    mark = out / _MARK
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise UsageError(f'"{out}" contains files that are not from hagmil demo; choose another --out')
        rmtree(out)
    write_text(mark, "Written by hagmil demo, which deletes this folder when it runs again.\n")


def stage_auc(results: Sequence[Result], tumour: Sequence[bool]) -> dict[str, float]:
    """Return the area under the ROC curve of each stage's own logits, by the stage's name.

    Args:
        results: results of two classes, with the logits of each stage.
        tumour: whether the second class is the truth, for each result.
    """
    areas = {}
    for index, stage in enumerate(results[0].stages):
        logits = [result.stages[index].logits for result in results]
        areas[stage.name] = float(roc_auc_score(tumour, [second - first for first, second in logits]))
    return areas


def lesion_ratio(slides: Sequence[PhantomSlide], results: Path) -> float:
    """Return the rate of patches in lesions at the finest stage, divided by the share of lesions in tissue.

    A patch is in a lesion if its centre is. Both rates are means over the phantoms with lesions.

    Args:
        slides: phantoms; those without lesions are ignored.
        results: folder of their results.
    """
    diseased = [slide for slide in slides if slide.truth.lesion_share > 0]
    read = [_share_in_lesion(slide, results / slide.slide_id / ATTENTION_NAME) for slide in diseased]
    return float(np.mean(read) / np.mean([slide.truth.lesion_share for slide in diseased]))


def _share_in_lesion(slide: PhantomSlide, attention: Path) -> float:
    with h5py.File(attention) as file:
        finest = min(file.values(), key=lambda group: group.attrs["spacing_um"])
        centres = finest["coords"][...] + int(finest.attrs["patch_size_level0"]) // 2
    mask = pyvips.Image.new_from_file(str(slide.mask_path)).numpy()
    row, column = (np.minimum(centres[:, axis] // MASK_STEP_PX, mask.shape[1 - axis] - 1) for axis in (1, 0))
    return float((mask[row, column] > 0).mean())


def _cohort(folder: Path, words: str, slides: int, size: DemoSize, seed: int, progress: Progress) -> list[PhantomSlide]:
    """Step 1."""
    return write_cohort(
        folder,
        slides=slides,
        size_px=size.size_px,
        seed=seed,
        progress=lambda done, total, _name: progress(words, done, total),
    )


def _extract(cohort: Sequence[PhantomSlide], backbone: Path, out: Path, progress: Progress) -> None:
    """Step 2."""
    options = ExtractOptions(stages=parse_stages(STAGES), patch_px=PATCH_PX, overwrite=True)
    extractor = Extractor.open(backbone, options)
    requests = slide_requests([str(slide.slide_path) for slide in cohort])
    extract_many(requests, extractor, out, on_outcome=_each_must_be_ok("features", len(requests), progress))


def _each_must_be_ok(words: str, total: int, progress: Progress) -> Callable[[ExtractOutcome | Result], None]:
    """Return a callback that counts slides and raises an error for the first one that is not ok."""
    done = 0

    def _count(outcome: ExtractOutcome | Result) -> None:
        nonlocal done
        done += 1
        progress(words, done, total)
        if outcome.status != "ok":
            raise SlideFailed(f"{words} of {outcome.slide_id}: {outcome.message}")

    return _count


def _train_and_export(out: Path, backbone: Path, recipe: Mapping[str, object], seed: int, progress: Progress) -> Path:
    """Steps 3 and 4."""
    labels = read_labels(out / "cohort" / "labels.csv")
    (split,) = write_splits(out / "splits", make_splits(labels, val_share=_VALIDATION_SHARE, test_share=0, seed=seed))
    config = parse_config(
        {
            **recipe,
            "seed": seed,
            "out": str(out / "run"),
            "data": {
                "features": str(out / "features"),
                "labels": str(out / "cohort" / "labels.csv"),
                "split": str(split),
            },
        },
        source="the demonstration's recipe",
    )
    train(
        config,
        progress=lambda state: (
            progress("training", (state.epoch - 1) * state.total + state.done, state.max_epochs * state.total)
            if state.phase == "train"
            else None
        ),
    )
    progress("export", 0, 1)
    export_bundle(
        out / "run" / "checkpoints" / "best", backbone, out / "bundle", intended_use=PHANTOMS_ONLY, overwrite=True
    )
    progress("export", 1, 1)
    return out / "bundle"


def _infer(unseen: Sequence[PhantomSlide], bundle: Path, out: Path, progress: Progress) -> tuple[Result, ...]:
    """Step 5."""
    requests = slide_requests([str(slide.slide_path) for slide in unseen])
    count = _each_must_be_ok("inference", len(requests), progress)
    try:
        return predict_requests(requests, load_model(bundle), out, PredictOptions(), on_result=count)
    except Interrupted as error:
        raise Interrupted("the demonstration was stopped; run it again to start from the beginning") from error
