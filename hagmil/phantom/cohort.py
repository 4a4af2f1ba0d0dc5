"""Cohorts of phantoms: slides, lesion masks and labels for training.

1. Distribute the slides evenly over the classes.
2. Group the slides of each class into cases of one or two.
3. Shuffle, so that the order does not reveal the label, and number slides and cases.
4. Write the slides, each from its own seed; then the tables.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hagmil._files import OutputFolder, write_text
from hagmil.errors import UsageError
from hagmil.phantom.classes import PHANTOM_CLASSES, PHANTOM_HIERARCHY
from hagmil.phantom.files import write_phantom
from hagmil.phantom.spec import PhantomSpec, PhantomTruth

TWO_SLIDE_CASES: Final = 0.3
"""Probability that a case has two slides, while its class has slides left."""


@dataclass(frozen=True, slots=True)
class PhantomSlide:
    """One slide of a cohort.

    Args:
        slide_id: stem of the file name.
        case_id: the case, which corresponds to a patient and has one or two slides of one label.
        label: the phantom class.
        slide_path: path of the slide.
        mask_path: path of the lesion mask.
        truth: the known truth.
    """

    slide_id: str
    case_id: str
    label: str
    slide_path: Path
    mask_path: Path
    truth: PhantomTruth


def write_cohort(
    out_dir: Path,
    slides: int = 8,
    size_px: int = 4096,
    seed: int = 0,
    spacing_um: float = 0.5,
    classes: str = "binary",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[PhantomSlide]:
    """Write a cohort of phantoms, with the slides distributed evenly over the classes.

    Writes ``slides/<slide_id>.tif``, ``masks/<slide_id>_mask.tif`` and, last, ``labels.csv`` with the columns
    slide_id, case_id and label; for "hierarchy" also ``hierarchy.json`` (coarse, fine, fine_to_coarse).

    Args:
        out_dir: output folder, created if missing; files of the same names are replaced.
        slides: number of slides.
        size_px: side of each slide in level-0 pixels.
        seed: seed of the whole cohort.
        spacing_um: micrometres per level-0 pixel.
        classes: "binary" (normal, tumour) or "hierarchy" (the fine classes of ``PHANTOM_HIERARCHY``).
        progress: called with (slides done, number of slides, slide_id) after each slide.

    Returns:
        The slides, in the order of labels.csv.

    Raises:
        UsageError: a value is out of range, or the classes are unknown.
        EnvironmentLacks: the folder cannot be written, or the disk is full.
    """
    if slides < 1:
        raise UsageError(f"phantom cohort: {slides} slides; pass at least 1")
    if classes not in PHANTOM_CLASSES:
        raise UsageError(f'phantom cohort: unknown classes "{classes}"; choose from {", ".join(PHANTOM_CLASSES)}')
    if seed < 0:
        raise UsageError(f"phantom cohort: seed {seed} is negative; pass 0 or more")
    plan_seed, *slide_seeds = np.random.SeedSequence(seed).spawn(slides + 1)
    plan = _plan(slides, PHANTOM_CLASSES[classes], np.random.default_rng(plan_seed))
    specs = [
        PhantomSpec(int(slide_seed.generate_state(1, np.uint64)[0]), label, size_px, spacing_um)
        for (_, label), slide_seed in zip(plan, slide_seeds, strict=True)
    ]
    output = OutputFolder.open(out_dir, "slides", "masks")
    made = []
    for index, ((case_id, _), spec) in enumerate(zip(plan, specs, strict=True)):
        output.require_present()
        made.append(_write_slide(out_dir, f"phantom_{index:03d}", case_id, spec))
        if progress is not None:
            progress(index + 1, slides, made[-1].slide_id)
    if classes == "hierarchy":
        write_text(out_dir / "hierarchy.json", _hierarchy_json())
    write_text(out_dir / "labels.csv", _labels_csv(made))
    return made


def _plan(slides: int, labels: tuple[str, ...], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Case and label of each slide (steps 1 to 3)."""
    members: list[tuple[int, str]] = []
    cases = 0
    for place, label in enumerate(labels):
        left = slides // len(labels) + (place < slides % len(labels))  # step 1
        while left:
            count = 2 if left > 1 and rng.random() < TWO_SLIDE_CASES else 1  # step 2
            members += [(cases, label)] * count
            cases += 1
            left -= count
    shuffled = [members[place] for place in rng.permutation(len(members)).tolist()]  # step 3
    numbers = {case: number for number, case in enumerate(dict.fromkeys(case for case, _ in shuffled))}
    return [(f"case_{numbers[case]:03d}", label) for case, label in shuffled]


def _write_slide(out_dir: Path, slide_id: str, case_id: str, spec: PhantomSpec) -> PhantomSlide:
    """Write one slide and its mask (step 4)."""
    slide_path = out_dir / "slides" / f"{slide_id}.tif"
    mask_path = out_dir / "masks" / f"{slide_id}_mask.tif"
    truth = write_phantom(spec, slide_path, mask_path)
    return PhantomSlide(slide_id, case_id, spec.label, slide_path, mask_path, truth)


def _labels_csv(slides: list[PhantomSlide]) -> str:
    """Text of labels.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "case_id", "label"])
    writer.writerows([slide.slide_id, slide.case_id, slide.label] for slide in slides)
    return text.getvalue()


def _hierarchy_json() -> str:
    """Text of hierarchy.json, in the form of the bundle manifest."""
    coarse = list(dict.fromkeys(PHANTOM_HIERARCHY.values()))
    table = {"coarse": coarse, "fine": list(PHANTOM_HIERARCHY), "fine_to_coarse": dict(PHANTOM_HIERARCHY)}
    return json.dumps(table, indent=2) + "\n"
