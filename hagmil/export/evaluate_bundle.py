"""Evaluation of a bundle on feature files, which can also be recorded in its manifest.

The stage models run in ONNX Runtime. Everything else is shared with checkpoints
(:mod:`hagmil.trainer.evaluation.scoring`), so that a bundle and its checkpoint are evaluated in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.bundle import Bundle, open_bundle, write_manifest
from hagmil.bundle.adaptive import KEEPS
from hagmil.errors import UsageError
from hagmil.progress import Progress, no_progress
from hagmil.runtime.inference.contract import CheckedSession, graph_contracts
from hagmil.runtime.sessions import open_session
from hagmil.spec import BAG
from hagmil.trainer.cascade.certainty import calibrate_certainty, check_risk
from hagmil.trainer.cascade.keep_table import check_keeps, tabulate_keeps
from hagmil.trainer.cascade.slide_cascade import StageOutputs, StageRunner
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.labels import Part
from hagmil.trainer.evaluation.inputs import EvaluatedModelSpec, EvaluatedStageSpec, EvaluationPart, open_part
from hagmil.trainer.evaluation.report import EvaluatedModel, EvaluationReport, make_report
from hagmil.trainer.evaluation.scoring import Scores, score_slides
from hagmil.trainer.metrics.bootstrap import RESAMPLES, probability_table
from hagmil.trainer.metrics.temperature_scaling import fit_temperature


def evaluate_bundle(
    path: Path,
    config: TrainingConfig,
    *,
    part: Part = "test",
    keeps: Sequence[int] = (),
    record: bool = False,
    calibrate: bool = False,
    risk: float | None = None,
    provider: str = "cpu",
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Evaluate a bundle, at its temperature if it has one.

    Args:
        path: folder of the bundle.
        config: configuration with the paths of features, labels and split.
        part: train, val or test.
        keeps: numbers of kept patches to compare with all patches, in ascending order; empty for none.
        record: store the comparison of ``keeps`` in the bundle.
        calibrate: on the validation part, fit a temperature and, for a cascade, choose the threshold of sure verdicts,
            and store both in the bundle first.
        risk: with ``calibrate``, largest expected share of sure and wrong verdicts; None for the heuristic threshold.
        provider: execution provider of the stage models: ``cpu`` or ``cuda``.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.
        progress: called after each slide.

    Returns:
        The report. Only the manifest of the bundle is written, and only with ``record`` or ``calibrate``.

    Raises:
        UsageError: ``record`` is given without ``keeps``, ``risk`` without ``calibrate``, ``keeps`` or ``risk`` for a
            model that keeps no patches, or there are too few validation slides for the risk.
        BundleError: the bundle cannot be used.
        DataError: tables or features cannot be read, or do not fit the model.
        EnvironmentLacks: the provider is not available.
    """
    bundle = open_bundle(path)
    _check_options(bundle, keeps, record=record, calibrate=calibrate, risk=risk)

    def score(name: Part, keeps: Sequence[int], with_top: bool) -> tuple[Scores, EvaluationPart]:
        slides = open_part(config, bundle_spec(bundle), name)
        scores = score_bundle(
            bundle,
            slides,
            provider=provider,
            threads=config.threads,
            keeps=keeps,
            with_top=with_top,
            after_slide=lambda done: progress(name, done, len(slides.slides)),
        )
        return scores, slides

    ladder = KEEPS if calibrate and _is_cascade(bundle) else ()
    same = calibrate and part == "val"  # one pass gives both
    scores, slides = score(part, (*keeps, *ladder) if same else keeps, same)  # before any change of the bundle
    if calibrate:
        bundle = calibrate_bundle(path, scores if same else score("val", ladder, True)[0], risk=risk)
    spec = bundle_spec(bundle)
    table = None
    if keeps:
        temperature = bundle.manifest.temperature
        table = tabulate_keeps(scores.readings, keeps, spec.classes, part, temperature=temperature)
    if record:
        bundle = _update(path, tested=table)
    manifest = bundle.manifest
    model = EvaluatedModel(
        what="bundle",
        path=str(path),
        sha256=bundle.sha256,
        kind=spec.kind,
        temperature=manifest.temperature,
        coarse_temperature=manifest.coarse_temperature,
        certainty=manifest.certainty,
    )
    calibrated = scores.at(manifest.temperature, manifest.coarse_temperature)
    return make_report(
        calibrated, spec, model, part, tested=table, empty_slides=slides.empty, resamples=resamples, seed=seed
    )


def bundle_spec(bundle: Bundle) -> EvaluatedModelSpec:
    """Describe the models of a bundle, from its manifest."""
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
    """Return a function that maps the index of a stage and a bag to the outputs of the stage model.

    Args:
        bundle: an open bundle.
        provider: ``cpu`` or ``cuda``.
        threads: CPU threads of each session; None for all cores.

    Raises:
        BundleError: a graph cannot be loaded.
        EnvironmentLacks: the provider is not available.
    """
    sessions = [
        CheckedSession(open_session(bundle.file(contract.graph), provider=provider, threads=threads), contract)
        for contract in graph_contracts(bundle.manifest)[1:]
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
    keeps: Sequence[int] = (),
    with_top: bool = False,
    after_slide: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Run a bundle on the slides of a part and return its scores, without temperature scaling.

    Args:
        bundle: an open bundle.
        part: the slides; see :func:`hagmil.trainer.evaluation.inputs.open_part`.
        provider: ``cpu`` or ``cuda``.
        threads: CPU threads of each session; None for all cores.
        keeps: see :func:`hagmil.trainer.evaluation.scoring.score_slides`.
        with_top: see the same function.
        after_slide: called after each slide with the number of slides done.

    Raises:
        DataError: features cannot be read or are not finite.
        BundleError: a graph cannot be run.
        EnvironmentLacks: the provider is not available.
    """
    run = bundle_runner(bundle, provider=provider, threads=threads)
    return score_slides(part, bundle_spec(bundle), run, keeps=keeps, with_top=with_top, after_slide=after_slide)


def calibrate_bundle(path: Path, scores: Scores, *, risk: float | None = None) -> Bundle:
    """Fit temperatures, choose the threshold of sure verdicts, and store them in the manifest, whose digest changes.

    Args:
        path: folder of the bundle.
        scores: scores on validation slides, without temperature scaling; readings with ``top_logits`` for a threshold.
        risk: see :func:`evaluate_bundle`.

    Returns:
        The updated bundle.

    Raises:
        DataError: there are no slides.
        UsageError: there are too few slides for the risk.
        BundleError: the bundle is altered or invalid.
    """
    certainty = calibrate_certainty(scores.readings, risk=risk) if scores.readings else None
    cases = [score.case_id for score in scores.verdict]
    return _update(
        path,
        certainty=certainty,
        temperature=fit_temperature(*probability_table(scores.verdict), cases),
        coarse_temperature=fit_temperature(*probability_table(scores.coarse), cases) if scores.coarse else None,
    )


def _is_cascade(bundle: Bundle) -> bool:
    return len(bundle.manifest.stages) > 1


def _check_options(bundle: Bundle, keeps: Sequence[int], *, record: bool, calibrate: bool, risk: float | None) -> None:
    if record and not keeps:
        raise UsageError("--record stores the results of --keeps in a bundle; add --keeps")
    if risk is not None:
        if not calibrate:
            raise UsageError("--risk belongs to the threshold that --calibrate chooses; add --calibrate")
        check_risk(risk)
    if keeps or risk is not None:
        check_keeps(bundle.manifest.kind, len(bundle.manifest.stages))


def _update(path: Path, **sections: object) -> Bundle:
    """Replace sections of the manifest, which changes its digest; the other files are checked first."""
    bundle = open_bundle(path)
    write_manifest(path, bundle.manifest.model_copy(update=sections))
    return open_bundle(path, verify=False)
