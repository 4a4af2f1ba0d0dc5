"""hagmil demo: the whole path, from synthetic slides to verdicts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.workflows.demo import DemoReport

_DEFAULT_OUT = Path("hagmil-demo")


class ReadoutName(StrEnum):
    """Read-out of the stage models."""

    additive = "additive"
    pooled = "pooled"


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Output folder; the output of an earlier demo in it is replaced.")
    ] = _DEFAULT_OUT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the phantoms and the training.")] = 0,
    readout: Annotated[
        ReadoutName,
        typer.Option(
            "--readout", help="additive: our own recipe; pooled: the published transformer, whose verdict depends on K."
        ),
    ] = ReadoutName.additive,
) -> None:
    """Make phantoms, extract features, train, export, and run inference on unseen phantoms.

    Takes a few minutes on two cores.
    """
    from hagmil.workflows.demo import DemoSize, run_demo

    with common.StepProgress() as display:
        report = run_demo(out, DemoSize(seed=seed), display, readout=readout.value)
    _show(report)


def _show(report: DemoReport) -> None:
    view = common.table("unseen phantom", "truth", "verdict", "p(tumour)")
    for slide, result in zip(report.truths, report.results, strict=True):
        right = slide.label == result.prediction
        view.add_row(
            slide.slide_id,
            slide.label,
            f"[{'green' if right else 'red'}]{result.prediction}[/]",
            f"{result.probabilities['tumour']:.3f}",
        )
    correct = sum(slide.label == result.prediction for slide, result in zip(report.truths, report.results, strict=True))
    console = common.stdout()
    console.print(view)
    console.print(
        f"{correct} of {len(report.results)} verdicts are correct; AUC {report.auc:.3f}; patches read at the finest "
        f"stage of tumour phantoms lie in a lesion {report.lesion_ratio:.1f} times as often as tissue on average"
    )
    areas = ", ".join(f"{name} {area:.3f}" for name, area in report.stage_auc.items())
    console.print(f"AUC of each stage's own logits: {areas}")
    console.print(f"heatmaps: {report.out}/<phantom>/heatmap.png, for example {_most_certain(report)}")
    console.print(f"bundle: {report.bundle}; results: {report.out / 'results.csv'}")


def _most_certain(report: DemoReport) -> Path:
    """The heatmap of the phantom with the highest probability of tumour."""
    tumours = [result for result in report.results if result.prediction == "tumour"] or list(report.results)
    best = max(tumours, key=lambda result: result.probabilities["tumour"])
    return report.out / best.slide_id / "heatmap.png"
