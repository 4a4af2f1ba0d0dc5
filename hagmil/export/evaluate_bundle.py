"""A bundle's verdicts on feature files, and the temperature that it is calibrated with.

The stages' graphs run in ONNX Runtime; everything around them is :mod:`hagmil.trainer.evaluation.scoring`'s, so a
bundle and
the checkpoint that it came from are evaluated alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Bundle, open_bundle, write_manifest
from hagmil.progress import Progress, no_progress
from hagmil.runtime.sessions import open_session
from hagmil.spec import BAG
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import Part
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluatedStageSpec, EvaluationPart, open_part
from hagmil.trainer.evaluation.report import EvaluatedModel, EvaluationReport, make_report
from hagmil.trainer.evaluation.scoring import Scores, StageOutputs, StageRunner, score_slides
from hagmil.trainer.metrics.bootstrap import RESAMPLES, probability_table
from hagmil.trainer.metrics.temperature_scaling import fit_temperature


def evaluate_bundle(
    path: Path,
    config: TrainingConfig,
    *,
    part: Part = "test",
    calibrate: bool = False,
    provider: str = "cpu",
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Measure a bundle's verdicts, at its temperature if it has one.

    Args:
        path: the bundle's folder.
        config: says where features, labels and split are.
        part: train, val or test.
        calibrate: first fit a temperature on the validation part and store it in the bundle.
        provider: of the stages' graphs: ``cpu`` or ``cuda``.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: called after each slide.

    Returns:
        The report; no file but the bundle's manifest is written.

    Raises:
        BundleError: the bundle cannot be used.
        DataError: tables or features that cannot be read, or are not for this model.
        EnvironmentLacks: the provider is absent.
    """
    bundle = open_bundle(path)

    def score(name: Part) -> tuple[Scores, EvaluationPart]:
        slides = open_part(config, bundle_spec(bundle), name)
        scores = score_bundle(
            bundle,
            slides,
            provider=provider,
            threads=config.threads,
            after_slide=lambda done: progress(name, done, len(slides.slides)),
        )
        return scores, slides

    scores, slides = score(part)  # first: a part that cannot be evaluated leaves the bundle as it was
    if calibrate:
        bundle = calibrate_bundle(path, scores if part == "val" else score("val")[0])
    manifest, spec = bundle.manifest, bundle_spec(bundle)
    model = EvaluatedModel(
        what="bundle",
        path=str(path),
        sha256=bundle.sha256,
        kind=spec.kind,
        temperature=manifest.temperature,
        coarse_temperature=manifest.coarse_temperature,
    )
    calibrated = scores.at(manifest.temperature, manifest.coarse_temperature)
    return make_report(calibrated, spec, model, part, empty_slides=slides.empty, resamples=resamples, seed=seed)


def bundle_spec(bundle: Bundle) -> EvaluatedModelSpec:
    """What a bundle's manifest says of its models."""
    manifest = bundle.manifest
    return EvaluatedModelSpec(
        kind=manifest.kind,
        classes=manifest.classes,
        hierarchy=manifest.hierarchy,
        stages=tuple(EvaluatedStageSpec(stage.name, stage.spacing_um, stage.keep) for stage in manifest.stages),
        feature_dim=manifest.backbone.features,
        patch_px=manifest.patch_px,
        backbone_sha256=manifest.backbone.reduced_from or manifest.files[manifest.backbone.onnx].sha256,
    )


def bundle_runner(bundle: Bundle, *, provider: str = "cpu", threads: int | None = None) -> StageRunner:
    """A bundle's stages as a function of a stage's number and its bag.

    Args:
        bundle: an open bundle.
        provider: ``cpu`` or ``cuda``.
        threads: of one run on the CPU; as many as there are cores where None.

    Raises:
        BundleError: a graph cannot be loaded.
        EnvironmentLacks: the provider is not on this machine.
    """
    sessions = [
        open_session(bundle.file(stage.onnx), provider=provider, threads=threads) for stage in bundle.manifest.stages
    ]

    def run(index: int, features: NDArray[np.float32]) -> StageOutputs:
        outputs = sessions[index].run({BAG.name: features})
        return {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    return run


def score_bundle(
    bundle: Bundle,
    part: EvaluationPart,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    after_slide: Callable[[int], None] = lambda _: None,
) -> Scores:
    """A bundle's verdicts on the slides of a part, before any temperature.

    Args:
        bundle: an open bundle.
        part: the slides; see :func:`hagmil.trainer.evaluation.inputs.open_part`.
        provider: ``cpu`` or ``cuda``.
        threads: of one run on the CPU.
        after_slide: called after each slide with the number done.

    Raises:
        DataError: features that cannot be read or are not finite.
        BundleError: a graph cannot be run.
        EnvironmentLacks: the provider is not on this machine.
    """
    run = bundle_runner(bundle, provider=provider, threads=threads)
    return score_slides(part, bundle_spec(bundle), run, after_slide=after_slide)


def calibrate_bundle(path: Path, scores: Scores) -> Bundle:
    """Fit temperatures and store them in a bundle's manifest, whose digest changes with it.

    Args:
        path: the bundle's folder.
        scores: its verdicts on validation slides, before any temperature.

    Returns:
        The bundle as it now is.

    Raises:
        DataError: there is no slide.
        BundleError: the bundle is altered or invalid.
    """
    bundle = open_bundle(path)
    found: dict[str, float | None] = {
        "temperature": fit_temperature(*probability_table(scores.verdict)),
        "coarse_temperature": fit_temperature(*probability_table(scores.coarse)) if scores.coarse else None,
    }
    write_manifest(path, bundle.manifest.model_copy(update=found))
    return open_bundle(path, verify=False)
