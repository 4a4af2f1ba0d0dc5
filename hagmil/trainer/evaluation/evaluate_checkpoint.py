"""Evaluate a checkpoint on one part of a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hagmil.errors import EnvironmentLacks
from hagmil.progress import Progress, no_progress
from hagmil.trainer.cascade.keep_table import check_keeps, tabulate_keeps
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import Part
from hagmil.trainer.evaluation.inputs import checkpoint_spec, open_part
from hagmil.trainer.evaluation.report import EvaluatedModel, EvaluationReport, make_report
from hagmil.trainer.evaluation.scoring import checkpoint_runner, score_slides
from hagmil.trainer.metrics.bootstrap import RESAMPLES


def evaluate_checkpoint(
    path: Path,
    config: TrainingConfig,
    *,
    part: Part = "test",
    keeps: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Evaluate the predictions of a checkpoint.

    Args:
        path: a checkpoint folder, its weights file, or a run folder (whose best checkpoint is evaluated).
        config: locations of features, labels and split, and the device.
        part: train, val or test.
        keeps: numbers of kept patches to compare with all patches, in ascending order; empty for none.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        progress: called after each slide with the name of the part.

    Returns:
        The report; no file is written.

    Raises:
        UsageError: ``keeps`` is given for a model that keeps no patches.
        BundleError: the checkpoint is unusable.
        DataError: tables or features cannot be read or do not match the model.
        EnvironmentLacks: the device is absent.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentLacks(f'device "{config.device}" is absent: torch finds no CUDA device; set device to cpu')
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(path)
    spec = checkpoint_spec(checkpoint)
    if keeps:
        check_keeps(spec.kind, len(spec.stages))
    slides = open_part(config, spec, part)
    scores = score_slides(
        slides,
        spec,
        checkpoint_runner(checkpoint, device=config.device),
        keeps=keeps,
        after_slide=lambda done: progress(part, done, len(slides.slides)),
    )
    model = EvaluatedModel(what="checkpoint", path=str(path), sha256=checkpoint.card.weights_sha256, kind=spec.kind)
    table = tabulate_keeps(scores.readings, keeps, spec.classes, part) if keeps else None
    return make_report(
        scores, spec, model, part, tested=table, empty_slides=slides.empty, resamples=resamples, seed=seed
    )
