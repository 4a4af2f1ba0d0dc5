"""hagmil eval: metrics of a checkpoint or a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from hagmil.bundle import Certainty, Tested, TestedKeep, TestedSize
    from hagmil.trainer.evaluation.report import EvaluationReport
    from hagmil.trainer.metrics.estimate import Estimate


class PartName(StrEnum):
    """A part of a split."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, run folder or bundle.", metavar="CHECKPOINT_OR_BUNDLE")],
    config: Annotated[
        str, typer.Option("--config", help="Training configuration that names features, labels and split.")
    ],
    part: Annotated[PartName, typer.Option("--part", help="Part of the split to evaluate.")] = PartName.test,
    out: Annotated[
        Path, typer.Option("--out", help="Output folder of evaluation.json and evaluation.html.", metavar="REPORT")
    ] = Path("hagmil-evaluation"),
    keeps: Annotated[
        str | None,
        typer.Option(
            "--keeps",
            help="Numbers of kept patches to compare with all patches, such as 4,8,16,all.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Store the results of --keeps in the manifest of the bundle.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit a temperature and choose the threshold of sure verdicts on the validation part first, and store "
            "both in the bundle.",
        ),
    ] = False,
    risk: Annotated[
        float | None,
        typer.Option(
            "--risk",
            help="With --calibrate: largest expected share of sure and wrong verdicts, such as 0.05, in place of the "
            "heuristic threshold.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: overrides a key of the configuration; repeatable.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Number of bootstrap resamples over patients.")
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the bootstrap.")] = 0,
    provider: Annotated[
        str, typer.Option("--provider", help="Execution provider of a bundle's stage models: cpu or cuda.")
    ] = "cpu",
) -> None:
    """Evaluate verdicts on extracted features, with 95 % intervals over patients.

    Writes a JSON file and an HTML report. A bundle gives the same metrics as its checkpoint, unless it is calibrated.
    """
    from hagmil._files import OutputFolder
    from hagmil.bundle import MANIFEST_NAME
    from hagmil.errors import UsageError
    from hagmil.trainer.cascade.keep_table import parse_keeps
    from hagmil.trainer.config.training import load_config
    from hagmil.trainer.evaluation.report import HTML_NAME
    from hagmil.trainer.evaluation.report_page import write_report

    kept = parse_keeps(keeps) if keeps is not None else ()
    loaded = load_config(config, overrides or [])
    OutputFolder.open(out)
    with common.StepProgress() as progress:
        if (model / MANIFEST_NAME).is_file():
            from hagmil.export.evaluate_bundle import evaluate_bundle

            report = evaluate_bundle(
                model,
                loaded,
                part=part.value,
                keeps=kept,
                record=record,
                calibrate=calibrate,
                risk=risk,
                provider=provider,
                resamples=resamples,
                seed=seed,
                progress=progress,
            )
        elif calibrate or record or risk is not None:
            option = "--calibrate" if calibrate else "--record" if record else "--risk"
            raise UsageError(f'"{model}" is not a bundle, and {option} changes a bundle: run hagmil export first')
        else:
            from hagmil.trainer.evaluation.evaluate_checkpoint import evaluate_checkpoint

            report = evaluate_checkpoint(
                model, loaded, part=part.value, keeps=kept, resamples=resamples, seed=seed, progress=progress
            )
    write_report(out, report)
    _show(report)
    if report.tested is not None:
        _show_keeps(report.tested)
    if calibrate and report.model.certainty is not None:
        common.stdout().print(_certainty(report.model.certainty), highlight=False)
    if record or calibrate:
        console = common.stdout()
        console.print(f"stored in the manifest, whose digest is now {report.model.sha256[:16]}...", highlight=False)
    common.stdout().print(f"report: {out / HTML_NAME}", markup=False, highlight=False)


def _show(report: EvaluationReport) -> None:
    """Print the metrics as a table, and why some have no interval."""
    from rich.markup import escape
    from rich.table import Table

    from hagmil.trainer.metrics.estimate import reasons

    layers = [("fine" if report.coarse else "", report.verdict)]
    if report.coarse is not None:
        layers.append(("coarse", report.coarse))
    console = common.stdout()
    for name, found in layers:
        table = Table(title=f"{name} {report.part}: {found.slides} slides, {found.patients} patients".strip())
        for column in ("metric", "value", "95 % interval"):
            table.add_column(column)
        rows = found.totals()
        for each in found.by_class:
            rows[f"sensitivity, {each.name}"] = each.sensitivity
            rows[f"specificity, {each.name}"] = each.specificity
        for row, estimate in rows.items():
            table.add_row(escape(row), *_cells(estimate))
        console.print(table)
        for reason, names in reasons(rows).items():
            console.print(f"no interval of {', '.join(names)}: {reason}", markup=False, highlight=False)
    if report.agreement is not None:
        console.print(f"coarse and fine agree: {' '.join(_cells(report.agreement))}")
    if report.model.temperature is not None:
        console.print(f"temperature of the bundle: {report.model.temperature:.4f}")


def _show_keeps(tested: Tested) -> None:
    """Print the verdicts by number of kept patches, and by slide size if sizes differ."""
    title = f"kept patches, {tested.part}: {tested.slides} slides of {_bags(tested)} patches at the coarsest stage"
    common.stdout().print(_keep_table(title, tested.keeps))
    for size in tested.sizes:
        common.stdout().print(_keep_table(f"{size.keeps[0].slides} slides of {_bags(size)}", size.keeps))
    if tested.held_from is None:
        held = "with every tested number of kept patches, some verdicts differ from those of all patches"
    else:
        held = f"from {tested.held_from} kept patches on, every verdict is that of all patches"
    common.stdout().print(held, highlight=False)


def _certainty(certainty: Certainty) -> str:
    """Describe the threshold of sure verdicts in two lines."""
    how = (
        f"heuristic: {certainty.level:.0%} quantile of the margins"
        if certainty.method == "quantile"
        else f"at most {certainty.level:.1%} of verdicts are expected to be sure and wrong"
    )
    right = "" if certainty.sure_right is None else f", {certainty.sure_right:.1%} of the sure verdicts are right"
    return (
        f"a verdict is sure above a margin of {certainty.threshold:.3f} ({how})\n"
        f"on {certainty.slides} validation slides of {_bags(certainty)} patches at the coarsest stage: "
        f"{certainty.unsure:.1%} are unsure{right}"
    )


def _bags(tested: Tested | TestedSize | Certainty) -> str:
    return f"{tested.smallest_bag:,} to {tested.largest_bag:,}"


def _keep_table(title: str, rows: Sequence[TestedKeep]) -> Table:
    from rich.markup import escape

    names = list(rows[0].margins)
    heads = ("keep", "right", "AUC", "agreement", "patches read", *(f"margin, {escape(name)}" for name in names))
    table = common.table(*heads, title=title)
    for row in rows:
        auc = "undefined" if row.auc is None else f"{row.auc:.3f}"
        margins = ("" if margin is None else f"{margin:+.2f}" for margin in row.margins.values())
        keep = "all" if row.keep is None else f"{row.keep}"
        table.add_row(keep, f"{row.right:.1%}", auc, f"{row.agreement:.1%}", f"{row.patches_read:,.0f}", *margins)
    return table


def _cells(estimate: Estimate) -> tuple[str, str]:
    value = "undefined" if estimate.value is None else f"{estimate.value:.3f}"
    if estimate.low is None or estimate.high is None:
        return value, "" if estimate.value is None else "none"
    return value, f"{estimate.low:.3f} to {estimate.high:.3f}"
