"""hagmil demo: the main job on phantoms, from nothing to verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from hagmil.workflows.demo import DemoReport

_DEFAULT_OUT = Path("hagmil-demo")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of everything it makes; replaced.")] = _DEFAULT_OUT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other phantoms.")] = 0,
) -> None:
    """Phantoms, features, training, export, and inference on unseen phantoms; a few minutes on two cores."""
    from hagmil.workflows.demo import DemoSize, run_demo

    with common.StepProgress() as display:
        report = run_demo(out, DemoSize(seed=seed), display)
    _show(report)


def _show(report: DemoReport) -> None:
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("unseen phantom", "truth", "verdict", "p(tumour)"):
        view.add_column(head, overflow="fold")
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
        f"{correct} of {len(report.results)} verdicts are right; AUC {report.auc:.3f}; the finest patches that were "
        f"read on tumour phantoms lie in a lesion {report.lesion_ratio:.1f} times as often as tissue does"
    )
    console.print(f"heatmaps: {report.out}/<phantom>/heatmap.png, such as {_most_certain(report)}")
    console.print(f"bundle: {report.bundle}; results: {report.out / 'results.csv'}")


def _most_certain(report: DemoReport) -> Path:
    tumours = [result for result in report.results if result.prediction == "tumour"] or list(report.results)
    best = max(tumours, key=lambda result: result.probabilities["tumour"])
    return report.out / best.slide_id / "heatmap.png"
