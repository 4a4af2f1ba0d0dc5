"""Intervals of the area under the ROC curve, clustered by patient.

1. The interval contains the areas that lie within 1.96 of their own standard errors of the estimate: a score interval,
   with the variance of Hanley and McNeil (1982) as modified by Newcombe (2006, method 5). It has a width above zero at
   an area of 1.
2. The variance is multiplied by a factor so that, at the estimate, it is not below that of DeLong et al. (1988) summed
   over patients (Obuchowski 1997). The factor therefore accounts for the correlation of slides of one patient. As for
   proportions, a quotient of t quantiles accounts for the number of patients.
3. If all slides are in the right order, DeLong's variance is 0. The correlation within a patient is then taken as 1,
   and the numbers of slides are Kish's effective ones, as for proportions.
4. For the mean over classes, the standard errors of the classes are averaged. This is an upper bound, reached if the
   areas are perfectly correlated. The factor is that of the variance of the mean, at least that of independent areas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from hagmil.trainer.metrics.estimate import TAILS, Estimate, without_interval

_EDGE = 1e-12
_TOO_FEW = "slides of a single patient with or without the class"


@dataclass(frozen=True, slots=True)
class ClassAuc:
    """The area under the ROC curve of one class, with what its interval needs.

    Args:
        value: the area.
        positive: effective number of slides of the class.
        negative: effective number of other slides.
        by_patient: float64 (patients,), contributions to the deviation of the area.
        patients: smaller number of patients with slides of the class, or of the rest.
        slides: smaller number of slides of the class, or of the rest.
    """

    value: float
    positive: float
    negative: float
    by_patient: NDArray[np.float64]
    patients: int
    slides: int

    def standard_error(self, area: float) -> float:
        """Return step 1's standard error at an area."""
        half = (self.positive + self.negative) / 2 - 1
        spread = 1 + half * (1 - area) / (2 - area) + half * area / (1 + area)
        return float(np.sqrt(area * (1 - area) * spread / (self.positive * self.negative)))


def class_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_], cases: NDArray[np.intp]) -> ClassAuc | None:
    """Compute the area for one class.

    Args:
        scores: float64 (slides,), probability of the class.
        positive: bool (slides,), whether the label is the class.
        cases: int (slides,), index of the patient.

    Returns:
        The area; None unless both slides of the class and others occur.
    """
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return None
    ranks = stats.rankdata(scores)
    placement = np.empty(len(scores))  # share of slides of the other side in the right order
    placement[positive] = (ranks[positive] - stats.rankdata(scores[positive])) / rest
    placement[~positive] = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / count
    value = float(placement[positive].mean())
    sizes: list[float] = []
    deviations = placement - value
    patients = []
    for side in (positive, ~positive):
        slides_of = np.bincount(cases[side])
        with_slides = int((slides_of > 0).sum())
        patients.append(with_slides)
        deviations[side] *= np.sqrt(with_slides / max(1, with_slides - 1)) / side.sum()
        kish = side.sum() ** 2 / np.square(slides_of).sum()
        sizes.append(float(side.sum() if 0 < value < 1 else kish))  # step 3
    return ClassAuc(
        value, sizes[0], sizes[1], np.bincount(cases, deviations).astype(np.float64), min(patients), min(count, rest)
    )


def estimate_auc(classes: Sequence[ClassAuc | None]) -> Estimate:
    """Estimate the mean area over classes.

    Args:
        classes: the areas of the classes; a single one for two classes.
    """
    areas = [area for area in classes if area is not None]
    if len(areas) < len(classes):
        return without_interval(np.nan, "")
    value = float(np.mean([area.value for area in areas]))
    if min(area.patients for area in areas) < 2:
        return without_interval(value, _TOO_FEW)

    def standard_error(area: float) -> float:
        return float(np.mean([each.standard_error(area) for each in areas]))

    factor = 1.0
    if 0 < value < 1:  # steps 2 and 4
        observed = float(np.sqrt(np.square(np.mean([area.by_patient for area in areas], axis=0)).sum()))
        factor = max(observed / standard_error(value), len(areas) ** -0.5)
        fewest = min(areas, key=lambda area: area.patients)
        quantiles = np.atleast_1d(stats.t.ppf(TAILS[1], [fewest.patients - 1, fewest.slides - 1]))
        factor *= float(quantiles[0] / quantiles[1])
    reach = float(stats.norm.ppf(TAILS[1])) * factor

    def end(sign: int, low: float, high: float) -> float:
        return float(brentq(lambda area: sign * (area - value) - reach * standard_error(area), low, high))

    return Estimate(
        value=value,
        low=end(-1, 0.0, min(value, 1 - _EDGE)) if value > 0 else 0.0,
        high=end(1, max(value, _EDGE), 1.0) if value < 1 else 1.0,
        method="score",
    )
