"""``evaluation.html``: the evaluation for people, one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hagmil.trainer.assessment import Assessment, ClassAssessment, Estimate
from hagmil.trainer.assessment_plots import COLOURS, calibration_svg, confusion_svg, roc_points, roc_svg
from hagmil.trainer.evaluation_report import EvaluationReport, SlideVerdict

_WRONG_AT_MOST = 100
_PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --page: #ffffff; --panel: #f5f7fa; --rule: #d9dfe7;
  --series-0: #2266c2; --series-1: #c8501e; --series-2: #1d8a63; --series-3: #8a4fc0; --series-4: #b08500;
  --series-5: #c23a78; --series-6: #1a8fa8; --series-7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9aa7b7; --page: #12161c; --panel: #1b212a;
  --rule: #333d4a; --series-0: #6aa5f2; --series-1: #f08a5b; --series-2: #55c79c; --series-3: #bb8bea;
  --series-4: #dbb445; --series-5: #ee7fb0; --series-6: #55c3d8; --series-7: #a3adba; } }
body { margin: 0 auto; max-width: 1060px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 10px; } h3 { font-size: 15px; }
p, .note { color: var(--soft); max-width: 72ch; } code { font-size: 13px; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 18px; } figure { margin: 0; padding: 14px; background: var(--panel);
  border-radius: 8px; overflow-x: auto; max-width: 100%; box-sizing: border-box; }
figcaption { font-weight: 600; margin-bottom: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } td.interval { color: var(--soft); }
svg text { fill: var(--ink); font-size: 12px; } svg .small, svg .axis { fill: var(--soft); font-size: 11px; }
svg .axis { font-size: 12px; } svg .count { font-weight: 600; } svg .grid { stroke: var(--rule); }
svg .chance { stroke: var(--soft); stroke-dasharray: 4 4; } svg .gap { stroke: var(--series-1); stroke-width: 2; }
svg .cell { fill: var(--page); stroke: var(--rule); } .key { display: inline-block; width: 14px; height: 4px;
  border-radius: 2px; margin-right: 7px; vertical-align: middle; } ul.legend { list-style: none; padding: 0;
  margin: 8px 0 0; font-size: 13px; }
"""


def render_html(report: EvaluationReport) -> str:
    """The page.

    Args:
        report: what was found.

    Returns:
        HTML with its style and pictures inside; it loads nothing.
    """
    model, verdict = report.model, report.verdict
    name = _PART_NAMES[report.part]
    head = (
        f"<h1>Evaluation on the {name} part</h1><p>{verdict.slides} slides of {verdict.patients} patients"
        f"{_empty(report)}. {model.what.capitalize()} <code>{escape(model.path)}</code>, {model.kind}, SHA-256 "
        f"<code>{model.sha256[:16]}</code>. {_temperature(report)} hagmil {escape(report.hagmil)}, "
        f"{report.created:%Y-%m-%d %H:%M} UTC.</p>"
    )
    has_coarse = report.coarse is not None
    sections = [_section("Fine classes" if has_coarse else "Verdict", verdict, _columns(report.slides))]
    if report.coarse is not None:
        sections.append(_section("Coarse classes", report.coarse, _columns(report.slides, coarse=True)))
        if report.agreement is not None:
            sections.append(f"<p>Coarse and fine predictions agree on {_words(report.agreement)} of the slides.</p>")
    sections.append(_wrong(report.slides))
    sections.append(_method(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Evaluation: {name}</title><style>{_STYLE}</style>'
        f"</head><body>{head}{''.join(sections)}</body></html>\n"
    )


_Columns = tuple[list[str], list[dict[str, float]]]


def _columns(slides: Sequence[SlideVerdict], *, coarse: bool = False) -> _Columns:
    """Labels and probabilities of all slides."""
    if coarse:
        return [slide.coarse_label or "" for slide in slides], [slide.coarse_probabilities for slide in slides]
    return [slide.label for slide in slides], [slide.probabilities for slide in slides]


def _section(title: str, found: Assessment, columns: _Columns) -> str:
    labels, probabilities = columns
    truth = np.array(labels)
    curves = [
        (each, roc_points(np.array([row[each] for row in probabilities]), truth == each)) for each in found.classes
    ]
    legend = "".join(
        f'<li><span class="key" style="background: var(--series-{index % COLOURS})"></span>'
        f"{escape(each.name)}: AUC {_words(each.auc)}</li>"
        for index, each in enumerate(found.by_class)
    )
    pictures = (
        f"<figure><figcaption>ROC, one against rest</figcaption>{roc_svg(curves)}"
        f'<ul class="legend">{legend}</ul></figure>'
        f"<figure><figcaption>Calibration</figcaption>{calibration_svg(found.calibration)}</figure>"
        "<figure><figcaption>Confusion</figcaption>"
        f"{confusion_svg(found.classes, found.confusion, found.confusion_share)}</figure>"
    )
    return f'<h2>{title}</h2>{_totals(found)}<div class="plots">{pictures}</div>{_by_class(found.by_class)}'


def _totals(found: Assessment) -> str:
    rows = (
        ("AUC, macro", found.auc),
        ("accuracy", found.accuracy),
        ("balanced accuracy", found.balanced_accuracy),
        ("macro F1", found.macro_f1),
        ("expected calibration error", found.calibration_error),
        ("log loss", found.log_loss),
    )
    body = "".join(
        f"<tr><td>{name}</td><td>{_number(value.value)}</td><td class='interval'>{_interval(value)}</td>"
        f"<td class='interval'>{value.undefined_resamples or ''}</td></tr>"
        for name, value in rows
    )
    return (
        '<div class="wide"><table><thead><tr><th>measure</th><th>value</th><th>95 % interval</th>'
        f"<th>undefined resamples</th></tr></thead><tbody>{body}</tbody></table></div><p></p>"
    )


def _by_class(classes: Sequence[ClassAssessment]) -> str:
    body = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{each.slides}</td>"
        + "".join(f"<td>{_words(value)}</td>" for value in (each.auc, each.sensitivity, each.specificity, each.f1))
        + "</tr>"
        for each in classes
    )
    return (
        '<h3>Each class against the rest</h3><div class="wide"><table><thead><tr><th>class</th><th>slides</th>'
        "<th>AUC</th><th>sensitivity</th><th>specificity</th><th>F1</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _wrong(slides: Sequence[SlideVerdict]) -> str:
    wrong = sorted(
        (slide for slide in slides if slide.prediction != slide.label),
        key=lambda slide: (-slide.probabilities[slide.prediction], slide.slide_id),
    )
    if not wrong:
        return "<h2>Wrong verdicts</h2><p>None.</p>"
    more = len(wrong) - _WRONG_AT_MOST
    note = f"<p>The surest first; {more} more stand in the JSON.</p>" if more > 0 else "<p>The surest first.</p>"
    body = "".join(
        f"<tr><td>{escape(slide.slide_id)}</td><td>{escape(slide.case_id)}</td><td>{escape(slide.label)}</td>"
        f"<td>{escape(slide.prediction)}</td><td>{slide.probabilities[slide.prediction]:.3f}</td>"
        f"<td>{slide.probabilities[slide.label]:.3f}</td></tr>"
        for slide in wrong[:_WRONG_AT_MOST]
    )
    return (
        f'<h2>Wrong verdicts</h2>{note}<div class="wide"><table><thead><tr><th>slide</th><th>patient</th><th>label</th>'
        "<th>prediction</th><th>its probability</th><th>the label's</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _method(report: EvaluationReport) -> str:
    return (
        "<h2>How it was measured</h2><p>Intervals are the central 95 % of "
        f"{report.verdict.resamples} bootstrap resamples (seed {report.seed}). Patients are drawn, with all their "
        "slides, not stratified by class. A resample that does not define a measure, since it lacks a class, is left "
        "out of that measure's interval and counted. The expected calibration error has "
        f"{len(report.verdict.calibration)} bins of equal width over the probability of the prediction; in the "
        "picture a dot's area follows its number of slides.</p>"
    )


def _empty(report: EvaluationReport) -> str:
    count = len(report.empty_slides)
    return f"; {count} more without tissue have no verdict and are in no number" if count else ""


def _temperature(report: EvaluationReport) -> str:
    model = report.model
    if model.temperature is None:
        return "Probabilities are not calibrated."
    coarse = "" if model.coarse_temperature is None else f", coarse {model.coarse_temperature:.3f}"
    return f"Probabilities are calibrated with temperature {model.temperature:.3f}{coarse}."


def _words(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} <span class='note'>{_interval(estimate)}</span>"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.3f} to {estimate.high:.3f}"
