"""The slide and the patches that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil._files import sha256_of
from hagmil.bundle import Bundle, Manifest
from hagmil.errors import UsageError
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.runtime.bench.report import BenchBundle, BenchSlide
from hagmil.runtime.inference.loaded_bundle import builtin_bundle
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import SlideLayout, lay_out, require_tissue, stage_specs
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.slides.slide import Slide, require_spacing

_PHANTOM_SPACINGS_UM = (0.1, 2.0)


@dataclass(frozen=True, slots=True)
class Workload:
    """Patches of a slide to read and encode.

    Args:
        slide: an open slide.
        geometry: geometry of the finest stage on it.
        coords: int64 (patches, 2), level-0 top-left (x, y) of patches of that stage, grouped by their ancestors in the
            coarsest stage.
    """

    slide: Slide
    geometry: StageGeometry
    coords: NDArray[np.int64]


def request_of(
    slide: str | None, folder: Path, manifest: Manifest, phantom_px: int, spacing_um: float | None
) -> SlideRequest:
    """Find the slide, or make a phantom with the spacing of the finest stage.

    Args:
        slide: path or glob of a single slide; None for a phantom.
        folder: folder for a phantom.
        manifest: the bundle's manifest.
        phantom_px: side of a phantom in level-0 pixels.
        spacing_um: micrometres per level-0 pixel, overriding that of the file.

    Raises:
        UsageError: ``slide`` names no slide or more than one.
    """
    if slide is None:
        path = folder / f"phantom-{phantom_px}.tif"
        low, high = _PHANTOM_SPACINGS_UM
        spacing = min(max(manifest.stages[-1].spacing_um, low), high)
        write_phantom(PhantomSpec(seed=0, label="tumour", size_px=phantom_px, spacing_um=spacing), path)
        return SlideRequest(path.stem, str(path), path)
    requests = slide_requests([slide], spacing_um=spacing_um)
    if len(requests) != 1:
        raise UsageError(f'"{slide}" names {len(requests)} slides; hagmil bench takes one slide')
    return requests[0]


def workload_of(slide: Slide, manifest: Manifest, most_patches: int) -> Workload:
    """Lay out a slide for a bundle and choose the patches to measure.

    Args:
        slide: an open slide.
        manifest: the bundle's manifest.
        most_patches: largest number of patches; they are spread evenly over the tissue.

    Raises:
        SlideRejected: the slide has no spacing, is too coarse, is not brightfield, or shows no tissue.
    """
    layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
    require_tissue(layout)
    return Workload(slide, layout.plan[-1], finest_coords(layout, most_patches))


def finest_coords(layout: SlideLayout, most: int) -> NDArray[np.int64]:
    """Return patches of the finest stage under evenly spaced patches of the coarsest one.

    Args:
        layout: layout of the slide for all stages, coarse to fine.
        most: largest number of patches.

    Returns:
        int64 (patches, 2), with siblings adjacent, as the cascade reads them.
    """
    plan, coords = layout.plan, layout.coords
    factor = plan[0].patch_level0 // plan[-1].patch_level0
    cells = min(len(coords), -(-most // factor**2))
    coords = coords[np.linspace(0, len(coords) - 1, cells).round().astype(np.int64)] if cells else coords
    for coarse, fine in pairwise(plan):
        coords = children(coords, coarse.patch_level0, coarse.patch_level0 // fine.patch_level0)
    return coords[:most]


def describe_slide(slide: Slide, *, phantom: bool) -> BenchSlide:
    """Describe the slide for the report."""
    return BenchSlide(
        name=slide.path.name,
        phantom=phantom,
        sha256=sha256_of(slide.path),
        bytes=slide.path.stat().st_size,
        vendor=slide.vendor,
        width=slide.size.width,
        height=slide.size.height,
        spacing_um=require_spacing(slide),
        spacing_source=slide.spacing_source,
        levels=len(slide.levels),
    )


def describe_bundle(bundle: Bundle) -> BenchBundle:
    """Describe the bundle for the report."""
    manifest = bundle.manifest
    return BenchBundle(
        name=bundle.path.resolve().name,
        builtin=bundle.path.resolve() == builtin_bundle().resolve(),
        sha256=bundle.sha256,
        kind=manifest.kind,
        backbone=manifest.backbone.name,
        features=manifest.backbone.features,
        precision=manifest.precision,
        patch_px=manifest.patch_px,
        stages_um={stage.name: stage.spacing_um for stage in manifest.stages},
    )
