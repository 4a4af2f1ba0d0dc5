"""Warnings of one slide's result: deviations from the model's spacing, and from what the bundle was tested with.

A warning is one line that begins with its code and a colon; docs/errors.md lists the codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from hagmil.bundle import Manifest, Tested
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.patches.geometry import TOLERANCE, finest_ratio
from hagmil.runtime.patches.plan import stage_specs

WarningCode = Literal[
    "spacing_coarser", "keep_untested", "larger_than_tested", "larger_than_calibrated", "patches_left_out"
]
WARNING_CODES: tuple[WarningCode, ...] = get_args(WarningCode)
"""Codes of all warnings."""


def slide_warnings(
    manifest: Manifest,
    slide_spacing_um: float,
    outcomes: Sequence[StageOutcome],
    *,
    keep: int | None = None,
    adaptive: bool = False,
    left_out: int = 0,
) -> tuple[str, ...]:
    """The warnings of a slide.

    Args:
        manifest: the bundle's manifest. Without its section ``tested`` nothing is known about numbers of kept patches
            and sizes of slides, and no warning refers to them.
        slide_spacing_um: micrometres per level-0 pixel.
        outcomes: the stages, coarse to fine.
        keep: number of kept patches that overrides the manifest's, or None.
        adaptive: whether the adaptive cascade chose the number of kept patches, from numbers of its calibration.
        left_out: number of patches of the coarsest stage that are left out because tiles of the file have no bytes.

    Returns:
        One line for each warning.
    """
    found = [*_spacing(manifest, slide_spacing_um)]
    if left_out:
        total = left_out + len(outcomes[0].coords)
        text = f"{left_out} of {total} patches of the coarsest stage were left out, because tiles have no bytes"
        found.append(_warning("patches_left_out", text))
    if manifest.tested is not None:
        if not adaptive:
            found += _keep(manifest, manifest.tested, outcomes, keep)
        found += _size("larger_than_tested", "largest tested slide", outcomes, manifest.tested.largest_bag)
    if manifest.certainty is not None and adaptive:
        found += _size(
            "larger_than_calibrated", "largest slide of the calibration", outcomes, manifest.certainty.largest_bag
        )
    return tuple(found)


def warning_code(warning: str) -> str:
    """The code of a warning."""
    return warning.partition(":")[0]


def _warning(code: WarningCode, text: str) -> str:
    return f"{code}: {text}"


def _spacing(manifest: Manifest, slide_spacing_um: float) -> Iterator[str]:
    ratio, finest = finest_ratio(slide_spacing_um, stage_specs(manifest)), manifest.stages[-1]
    if ratio <= 1 - TOLERANCE:
        yield _warning(
            "spacing_coarser",
            f"stage {finest.name} was read at the slide's spacing of {slide_spacing_um:.4g} um/px, "
            f"{1 / ratio - 1:.1%} coarser than the model's {finest.spacing_um:g}",
        )


def _keep(manifest: Manifest, tested: Tested, outcomes: Sequence[StageOutcome], keep: int | None) -> Iterator[str]:
    """Warn if a number of kept patches is not one for which the verdicts held (see docs/errors.md).

    Numbers between two tested ones count as tested, also those above the largest if all patches were tested: the
    verdicts were the same at both. So does a number that keeps every patch of the slide.
    """
    used = [keep or stage.keep or 0 for stage in manifest.stages[:-1]]
    if all(len(outcome.kept) == len(outcome.coords) for outcome in outcomes[:-1]):
        return
    numbers = [one.keep for one in tested.keeps if one.keep is not None]
    every = any(one.keep is None for one in tested.keeps)
    if tested.held_from is None:
        held = "on the tested slides, no number of kept patches gives all the verdicts of all patches"
    else:
        held = f"the verdicts of the {tested.slides} tested slides are those of all patches from {tested.held_from} on"
    if tested.held_from is None or min(used) < tested.held_from:
        yield _warning("keep_untested", f"{min(used)} kept patches are too few to rely on: {held}")
    elif not every and max(used) > max(numbers, default=0):
        yield _warning("keep_untested", f"{max(used)} kept patches are more than were tested: {held}")


def _size(code: WarningCode, name: str, outcomes: Sequence[StageOutcome], largest: int) -> Iterator[str]:
    patches = len(outcomes[0].coords)
    if patches > largest:
        yield _warning(code, f"the slide has {patches} patches at the coarsest stage; the {name} has {largest}")
