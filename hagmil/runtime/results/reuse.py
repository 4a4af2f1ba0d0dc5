"""Whether an earlier result is the one that a run would give."""

from __future__ import annotations

from pathlib import Path

from hagmil.errors import DataError, SlideFailed
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.inputs import SlideRequest
from hagmil.runtime.results.attention import read_attention
from hagmil.runtime.results.result import HEATMAP_NAME, REGIONS_NAME, Result, StageAttention
from hagmil.runtime.slides.slide_files import slide_sha256


def why_not_reused(
    result: Result,
    folder: Path,
    request: SlideRequest,
    model: LoadedModel,
    keep: int | None,
    *,
    adaptive: bool = False,
    max_missing: int = 0,
) -> str | None:
    """Compare an earlier result with a run: status, bundle, options, provider, files, and the slide's digest.

    The digest of the bundle covers the spacings and models of its stages, the patch size, the tissue parameters and the
    temperature. Options that only affect speed (batch size, threads) are not compared.

    Args:
        result: the earlier result.
        folder: its folder.
        request: the slide of the run.
        model: the model of the run.
        keep: number of kept patches that overrides the bundle's, in adaptive runs the limit, or None.
        adaptive: whether the run is adaptive.
        max_missing: number of patches that the run may leave out.

    Returns:
        What differs or is missing; None if the result can be used.
    """
    override_um = result.spacing_um if result.spacing_source == "override" else None
    differences = {
        f"it is {result.status}": result.status != "ok",
        "it comes from another bundle": result.bundle_sha256 != model.bundle.sha256,
        "it comes from another provider": result.provider != model.stages[-1].provider,
        "it comes from an adaptive run": result.sure is not None and not adaptive,
        "it does not come from an adaptive run": result.sure is None and adaptive,
        "it has another number of kept patches": result.keep != keep,
        "patches were left out": (result.patches_left_out or 0) > max_missing,
        "it has another spacing": override_um != request.spacing_um,
    }
    for difference, differs in differences.items():
        if differs:
            return difference
    damage = _damage(result, folder)
    if damage is not None:
        return damage
    try:
        same_slide = slide_sha256(request.path) == result.slide_sha256
    except SlideFailed as error:
        return error.message
    return None if same_slide else "the slide has changed"


def _damage(result: Result, folder: Path) -> str | None:
    """Which file of a result is missing or does not fit ``result.json``; None if they are whole."""
    for name in (HEATMAP_NAME, REGIONS_NAME):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            return f"{name} is missing"
    try:
        stages = read_attention(folder)
    except DataError as error:
        return error.message
    found = {stage.name: (_rows(stage), len(stage.kept)) for stage in stages}
    if found != {stage.name: (stage.encoded, stage.kept) for stage in result.stages}:
        return "attention.h5 does not have the patches that result.json counts"
    return None


def _rows(stage: StageAttention) -> int | None:
    """The number of patches; None if coordinates and attention differ in length."""
    return len(stage.coords) if stage.coords.shape == (*stage.attention.shape, 2) else None
