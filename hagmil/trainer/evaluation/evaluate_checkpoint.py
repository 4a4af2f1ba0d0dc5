"""The evaluation of a checkpoint on one part of a split."""

from __future__ import annotations

from pathlib import Path

import torch

from hagmil.errors import EnvironmentLacks
from hagmil.progress import Progress, no_progress
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
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Measure a checkpoint's verdicts.

    Args:
        path: a checkpoint folder, its weights file, or a run folder (then its best checkpoint).
        config: says where features, labels and split are, and the device.
        part: train, val or test.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: called after each slide.

    Returns:
        The report; nothing is written.

    Raises:
        BundleError: the checkpoint cannot be used.
        DataError: tables or features that cannot be read, or are not for this model.
        EnvironmentLacks: the device is absent.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentLacks(f'device "{config.device}" was asked for, but torch sees no CUDA device')
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(path)
    spec = checkpoint_spec(checkpoint)
    slides = open_part(config, spec, part)
    scores = score_slides(
        slides,
        spec,
        checkpoint_runner(checkpoint, device=config.device),
        after_slide=lambda done: progress(part, done, len(slides.slides)),
    )
    model = EvaluatedModel(what="checkpoint", path=str(path), sha256=checkpoint.card.weights_sha256, kind=spec.kind)
    return make_report(scores, spec, model, part, empty_slides=slides.empty, resamples=resamples, seed=seed)
