"""The files of one slide beside result.json: heatmaps, attention and regions."""

from __future__ import annotations

from pathlib import Path

from hagmil.bundle import RESEARCH_USE_ONLY
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inference.one_slide import SlideOutcome
from hagmil.runtime.inference.verdict import class_attentions
from hagmil.runtime.results.attention import write_attention
from hagmil.runtime.results.class_heatmaps import CLASS_HEATMAPS, draw_class_heatmaps
from hagmil.runtime.results.evidence_maps import EVIDENCE_MAPS, draw_evidence_maps
from hagmil.runtime.results.heatmap import draw_heatmap
from hagmil.runtime.results.panels import Caption
from hagmil.runtime.results.regions import write_regions
from hagmil.runtime.results.result import ATTENTION_NAME, HEATMAP_NAME, REGIONS_NAME, RESULT_NAME


def clear_slide_folder(folder: Path) -> None:
    """Make the folder, and delete the files that an earlier run wrote into it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT_NAME, HEATMAP_NAME, CLASS_HEATMAPS, EVIDENCE_MAPS, ATTENTION_NAME, REGIONS_NAME):
        for path in folder.glob(name):
            path.unlink()


def write_slide_files(folder: Path, slide_id: str, model: LoadedModel, outcome: SlideOutcome) -> None:
    """Write heatmap.png, attention.h5 and regions.geojson, and the pictures of classes if the model gives them.

    Args:
        folder: an existing folder.
        slide_id: the title of the heatmaps.
        model: the model that ran.
        outcome: what the cascade gave.
    """
    ranked = sorted(outcome.verdict.probabilities.items(), key=lambda item: -item[1])
    unsure = "   unsure" if outcome.adaptive is not None and not outcome.adaptive.sure else ""
    caption = Caption(
        title=slide_id,
        verdict=f"{outcome.verdict.prediction}  {ranked[0][1]:.3f}{unsure}",
        details="   ".join(f"{name} {value:.3f}" for name, value in ranked),
        notice=notice_of(model),
    )
    draw_heatmap(folder / HEATMAP_NAME, outcome.thumbnail, outcome.stages, caption)
    hierarchy, last = model.bundle.manifest.hierarchy, outcome.stages[-1]
    attentions = class_attentions(hierarchy, outcome.verdict, last.outputs)
    draw_class_heatmaps(folder, outcome.thumbnail, last, attentions, caption)
    draw_evidence_maps(folder, outcome.thumbnail, last, model.bundle.manifest.classes, caption)
    write_attention(folder, outcome.stages, hierarchy)
    write_regions(folder, outcome.stages)


def notice_of(model: LoadedModel) -> str:
    """The notice on every picture: research use only, and the model's intended use."""
    intended_use = model.bundle.manifest.intended_use
    return intended_use if RESEARCH_USE_ONLY in intended_use else f"{RESEARCH_USE_ONLY} {intended_use}"
