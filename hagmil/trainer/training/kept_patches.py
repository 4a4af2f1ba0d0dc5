"""The test of the best weights with several numbers of kept patches, at the end of a training.

It uses the validation slides, which are at hand. Therefore the export can choose the number of kept patches, and a
bundle has a threshold of sure verdicts, without the features. The test costs about two validations: the coarsest stage
runs once for each slide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hagmil.bundle import Certainty, Tested
from hagmil.bundle.adaptive import KEEPS
from hagmil.trainer.cascade.certainty import calibrate_certainty
from hagmil.trainer.cascade.keep_table import tabulate_keeps
from hagmil.trainer.cascade.readings import SlideReadings, read_slide
from hagmil.trainer.cascade.slide_cascade import SlideCascade, models_runner
from hagmil.trainer.compute.distributed import ProcessGroup
from hagmil.trainer.config.training import HagMilConfig, TrainingConfig
from hagmil.trainer.data.cohort import Cohort
from hagmil.trainer.methods.base import Method


@dataclass(frozen=True, slots=True)
class KeptPatchesTest:
    """The result of the test.

    Args:
        tested: verdicts by number of kept patches and by slide size.
        certainty: threshold from which the adaptive cascade calls a verdict sure, by the heuristic.
    """

    tested: Tested
    certainty: Certainty


def is_planned(config: TrainingConfig, cohort: Cohort) -> bool:
    """Whether a training ends with this test: if it chooses its weights with several numbers of kept patches."""
    is_stable = isinstance(config, HagMilConfig) and config.cascade.validation_keeps is not None
    return is_stable and len(cohort.stages) > 1 and len(cohort.val) > 0


def measure_kept_patches(
    method: Method, cohort: Cohort, *, keep: int, group: ProcessGroup, after_slide: Callable[[int], None]
) -> KeptPatchesTest:
    """Classify the validation slides with several numbers of kept patches.

    Several processes share the slides, and all return the same result.

    Args:
        method: the method with its models.
        cohort: the cohort of a training of HAG-MIL with several stages and with validation slides.
        keep: number of kept patches of the checkpoint, which is tested too.
        group: the processes.
        after_slide: called after each slide with the number of finished slides; may raise to stop.
    """
    run = models_runner([model.eval() for model in method.models], "hag-mil", device=str(group.device))
    own = range(group.rank, len(cohort.val), group.world_size)
    found: dict[int, SlideReadings] = {}
    for place in own:
        cascade = SlideCascade(cohort.val[place], cohort.stages, run)
        found[place] = read_slide(cascade, [*KEEPS, keep], with_top=True)
        after_slide(min(len(found) * group.world_size, len(cohort.val)))
    by_place = {place: readings for part in group.all_gather(found) for place, readings in part.items()}
    slides = [by_place[place] for place in range(len(cohort.val))]
    tested = tabulate_keeps(slides, _tested_keeps(slides, keep), cohort.classes, "val")
    return KeptPatchesTest(tested, calibrate_certainty(slides))


def _tested_keeps(slides: Sequence[SlideReadings], keep: int) -> list[int]:
    """The numbers with which patches of some slide are left out; the smallest number if there are none."""
    most = max(slide.most_kept for slide in slides)
    return sorted({one for one in (*KEEPS, keep) if one < most}) or [KEEPS[0]]
