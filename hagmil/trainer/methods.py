"""The two methods by their configurations."""

from __future__ import annotations

from hagmil.trainer.cohort import Cohort
from hagmil.trainer.config import HagMilConfig, TrainingConfig
from hagmil.trainer.hag_mil import HagMil
from hagmil.trainer.hmil import Hmil
from hagmil.trainer.method import Method
from hagmil.trainer.ranks import ALONE, Ranks


def new_method(config: TrainingConfig, cohort: Cohort, ranks: Ranks = ALONE) -> Method:
    """The method that a configuration asks for, with fresh weights from torch's generator.

    Args:
        config: of either kind.
        cohort: what it shall be trained on.
        ranks: the processes that train together.

    Raises:
        UsageError: the cohort has other stages than the method works with.
    """
    if isinstance(config, HagMilConfig):
        return HagMil(config, cohort.stages, cohort.feature_dim, len(cohort.classes), ranks)
    return Hmil(config, cohort.stages, cohort.feature_dim, ranks)
