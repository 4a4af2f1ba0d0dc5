"""What is measured: a slide, laid out for a bundle, and the patches that stand for it."""

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
    """A slide, laid out.

    Args:
        slide: an open slide.
        geometry: of the finest stage on it.
        coords: int64 (patches, 2), level-0 corners of patches of that stage, grouped by their coarsest parents.
    """

    slide: Slide
    geometry: StageGeometry
    coords: NDArray[np.int64]


def request_of(
    slide: str | None, folder: Path, manifest: Manifest, phantom_px: int, spacing_um: float | None
) -> SlideRequest:
    """The one slide that was asked for; a phantom at the finest stage's spacing where none was.

    Args:
        slide: as it was typed.
        folder: where a phantom goes.
        manifest: the bundle's.
        phantom_px: side of a phantom in level-0 pixels.
        spacing_um: micrometres per level-0 pixel, in place of the file's.

    Raises:
        UsageError: more than one slide was named.
    """
    if slide is None:
        path = folder / f"phantom-{phantom_px}.tif"
        least, most = _PHANTOM_SPACINGS_UM
        spacing = min(max(manifest.stages[-1].spacing_um, least), most)
        write_phantom(PhantomSpec(seed=0, label="tumour", size_px=phantom_px, spacing_um=spacing), path)
        return SlideRequest(path.stem, str(path), path)
    requests = slide_requests([slide], spacing_um=spacing_um)
    if len(requests) != 1:
        raise UsageError(f'"{slide}" names {len(requests)} slides; hagmil bench takes one')
    return requests[0]


def workload_of(slide: Slide, manifest: Manifest, most_patches: int) -> Workload:
    """Lay the bundle's stages on a slide and choose the patches to be measured.

    Args:
        slide: an open slide.
        manifest: the bundle's.
        most_patches: no more than these, of cells of the coarsest stage that lie all over the tissue.

    Raises:
        SlideRejected: no spacing, too coarse, no brightfield, or no tissue.
    """
    layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
    require_tissue(layout)
    return Workload(slide, layout.plan[-1], finest_coords(layout, most_patches))


def finest_coords(layout: SlideLayout, most: int) -> NDArray[np.int64]:
    """Patches of the finest stage under evenly chosen patches of the coarsest.

    Args:
        layout: the slide, laid out for stages from coarse to fine.
        most: the largest number of patches.

    Returns:
        int64 (patches, 2), siblings beside one another, as the cascade reads them.
    """
    plan, coords = layout.plan, layout.coords
    factor = plan[0].patch_level0 // plan[-1].patch_level0
    cells = min(len(coords), -(-most // factor**2))
    coords = coords[np.linspace(0, len(coords) - 1, cells).round().astype(np.int64)] if cells else coords
    for coarse, fine in pairwise(plan):
        coords = children(coords, coarse.patch_level0, coarse.patch_level0 // fine.patch_level0)
    return coords[:most]


def describe_slide(slide: Slide, *, phantom: bool) -> BenchSlide:
    """What the report says of the slide."""
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
    """What the report says of the bundle."""
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
