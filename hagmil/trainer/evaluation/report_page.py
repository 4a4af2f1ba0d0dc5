"""``evaluation.html``: the evaluation as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from hagmil._files import write_text
from hagmil.reports.page import html_page, legend
from hagmil.trainer.evaluation.keep_section import keep_section
from hagmil.trainer.evaluation.report import HTML_NAME, JSON_NAME, EvaluationReport, SlideVerdict
from hagmil.trainer.evaluation.report_plots import calibration_svg, confusion_svg, roc_points, roc_svg
from hagmil.trainer.metrics.bootstrap import (
    LEAST_PATIENTS,
    Assessment,
    ClassAssessment,
)
from hagmil.trainer.metrics.estimate import Estimate, reasons

_MOST_WRONG = 100
_PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
_METHOD_NAMES = {"clopper-pearson": "Clopper-Pearson", "mover": "MOVER", "score": "score", "bca": "bootstrap, BCa"}
_STYLE = """
td.interval { color: var(--soft); } svg .count { font-weight: 600; }
svg .chance { stroke: var(--soft); stroke-dasharray: 4 4; } svg .gap { stroke: var(--series-1); stroke-width: 2; }
svg .cell { fill: var(--page); stroke: var(--rule); }
"""


def render_html(report: EvaluationReport) -> str:
    """Render an evaluation as HTML.

    Args:
        report: the evaluation.

    Returns:
        A complete page; style and pictures are embedded.
    """
    model, verdict = report.model, report.verdict
    name = _PART_NAMES[report.part]
    head = (
        f"<h1>Evaluation on the {name} part</h1><p>{verdict.slides} slides of {verdict.patients} patients"
        f"{_empty(report)}. {model.what.capitalize()} <code>{escape(model.path)}</code>, {model.kind}, SHA-256 "
        f"<code>{model.sha256[:16]}</code>. {_temperature(report)}{_certainty(report)} hagmil {escape(report.hagmil)}, "
        f"{report.created:%Y-%m-%d %H:%M} UTC.</p>"
    )
    has_coarse = report.coarse is not None
    sections = [_section("Fine classes" if has_coarse else "Predictions", verdict, _columns(report.slides))]
    if report.coarse is not None:
        sections.append(_section("Coarse classes", report.coarse, _columns(report.slides, coarse=True)))
        if report.agreement is not None:
            sections.append(f"<p>Coarse and fine predictions agree on {_words(report.agreement)} of the slides.</p>")
    if report.tested is not None:
        sections.append(keep_section(report.tested))
    sections.append(_wrong(report.slides))
    sections.append(_method(report))
    return html_page(f"Evaluation: {name}", head + "".join(sections), _STYLE)


_Columns = tuple[list[str], list[dict[str, float]]]
"""Label and probabilities of each slide."""


def _columns(slides: Sequence[SlideVerdict], *, coarse: bool = False) -> _Columns:
    if coarse:
        return [slide.coarse_label or "" for slide in slides], [slide.coarse_probabilities for slide in slides]
    return [slide.label for slide in slides], [slide.probabilities for slide in slides]


def _section(title: str, found: Assessment, columns: _Columns) -> str:
    labels, probabilities = columns
    truth = np.array(labels)
    curves = [
        (each, roc_points(np.array([row[each] for row in probabilities]), truth == each)) for each in found.classes
    ]
    names = [(f"{each.name}: AUC ", index) for index, each in enumerate(found.by_class)]
    pictures = (
        f"<figure><figcaption>ROC curves, one against rest</figcaption>{roc_svg(curves)}"
        f"{legend(names, notes=[_words(each.auc) for each in found.by_class])}</figure>"
        f"<figure><figcaption>Calibration</figcaption>{calibration_svg(found.calibration)}</figure>"
        "<figure><figcaption>Confusion matrix</figcaption>"
        f"{confusion_svg(found.classes, found.confusion, found.confusion_share)}</figure>"
    )
    return f'<h2>{title}</h2>{_totals(found)}<div class="plots">{pictures}</div>{_by_class(found.by_class)}'


def _totals(found: Assessment) -> str:
    rows = found.totals()
    body = "".join(
        f"<tr><td>{name}</td><td>{_number(value.value)}</td><td class='interval'>{_interval(value)}</td>"
        f"<td class='interval'>{_METHOD_NAMES[value.method] if value.method else ''}</td></tr>"
        for name, value in rows.items()
    )
    return (
        '<div class="wide"><table><thead><tr><th>metric</th><th>value</th><th>95 % interval</th>'
        f"<th>method</th></tr></thead><tbody>{body}</tbody></table></div>{_reasons(rows)}<p></p>"
    )


def _by_class(classes: Sequence[ClassAssessment]) -> str:
    columns = {
        "AUC": [each.auc for each in classes],
        "sensitivity": [each.sensitivity for each in classes],
        "specificity": [each.specificity for each in classes],
        "F1": [each.f1 for each in classes],
        "average precision": [each.average_precision for each in classes],
    }
    body = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{each.slides}</td>"
        + "".join(f"<td>{_words(column[index])}</td>" for column in columns.values())
        + "</tr>"
        for index, each in enumerate(classes)
    )
    named = {
        f"{name} of {each.name}": column[index]
        for index, each in enumerate(classes)
        for name, column in columns.items()
    }
    return (
        '<h3>Each class against the rest</h3><div class="wide"><table><thead><tr><th>class</th><th>slides</th>'
        f"{''.join(f'<th>{name}</th>' for name in columns)}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{_reasons(named)}"
    )


def _reasons(estimates: Mapping[str, Estimate]) -> str:
    """Say which metrics have no interval, and why."""
    return "".join(
        f"<p class='note'>No interval of {escape(', '.join(names))}: {reason}.</p>"
        for reason, names in reasons(estimates).items()
    )


def _wrong(slides: Sequence[SlideVerdict]) -> str:
    wrong = sorted(
        (slide for slide in slides if slide.prediction != slide.label),
        key=lambda slide: (-slide.probabilities[slide.prediction], slide.slide_id),
    )
    if not wrong:
        return "<h2>Wrong predictions</h2><p>None.</p>"
    more = len(wrong) - _MOST_WRONG
    rest = f" {more} more are in {JSON_NAME}." if more > 0 else ""
    note = f"<p>Sorted by the probability of the prediction, highest first.{rest}</p>"
    body = "".join(
        f"<tr><td>{escape(slide.slide_id)}</td><td>{escape(slide.case_id)}</td><td>{escape(slide.label)}</td>"
        f"<td>{escape(slide.prediction)}</td><td>{slide.probabilities[slide.prediction]:.3f}</td>"
        f"<td>{slide.probabilities[slide.label]:.3f}</td></tr>"
        for slide in wrong[:_MOST_WRONG]
    )
    return (
        f'<h2>Wrong predictions</h2>{note}<div class="wide"><table><thead><tr><th>slide</th><th>patient</th>'
        "<th>label</th><th>prediction</th><th>its probability</th><th>probability of the label</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _method(report: EvaluationReport) -> str:
    return (
        "<h2>How it was measured</h2><p>Intervals have a confidence of 95 % and are clustered by patient. Those of "
        "proportions and F1 are Clopper-Pearson's with the effective number of slides, those of balanced accuracy are "
        "combined from them (MOVER), and those of AUC are score intervals whose variance is at least DeLong's. The "
        f"others are BCa intervals from {report.verdict.resamples} resamples of patients (seed {report.seed}) and "
        f"given only with at least {LEAST_PATIENTS} patients of each class. The expected calibration error uses "
        f"{len(report.verdict.calibration)} bins of equal width over the probability of the prediction. In the "
        "calibration plot, larger dots stand for more slides.</p>"
    )


def _empty(report: EvaluationReport) -> str:
    count = len(report.empty_slides)
    return f"; {count} more without tissue have no prediction and count in no metric" if count else ""


def _temperature(report: EvaluationReport) -> str:
    model = report.model
    if model.temperature is None:
        return "Probabilities are not calibrated."
    coarse = "" if model.coarse_temperature is None else f", coarse {model.coarse_temperature:.3f}"
    return f"Probabilities are calibrated with temperature {model.temperature:.3f}{coarse}."


def _certainty(report: EvaluationReport) -> str:
    certainty = report.model.certainty
    if certainty is None:
        return ""
    how = "a heuristic" if certainty.method == "quantile" else f"for a risk of {certainty.level:g}"
    return f" Adaptive runs call a verdict sure above a margin of {certainty.threshold:.3f} ({how})."


def _words(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} <span class='note'>{_interval(estimate)}</span>"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "" if estimate.value is None else "no interval"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def write_report(folder: Path, report: EvaluationReport) -> None:
    """Write ``evaluation.json`` and ``evaluation.html`` into a folder.

    Args:
        folder: made if it is missing.
        report: the evaluation.
    """
    write_text(folder / JSON_NAME, report.model_dump_json(indent=2) + "\n")
    write_text(folder / HTML_NAME, render_html(report))
