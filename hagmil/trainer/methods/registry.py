"""The two methods by their configurations."""

from __future__ import annotations

from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.config.training import HagMilConfig, TrainingConfig
from hagmil.trainer.data.cohort import Cohort
from hagmil.trainer.methods.base import Method
from hagmil.trainer.methods.hag_mil import HagMil
from hagmil.trainer.methods.hmil import Hmil


def new_method(config: TrainingConfig, cohort: Cohort, group: ProcessGroup = SINGLE_PROCESS) -> Method:
    """The method that a configuration asks for, with fresh weights from torch's generator.

    Args:
        config: of either kind.
        cohort: what it shall be trained on.
        group: the processes that train together.

    Raises:
        UsageError: the cohort has other stages than the method works with.
    """
    if isinstance(config, HagMilConfig):
        return HagMil(config, cohort.stages, cohort.feature_dim, len(cohort.classes), group)
    return Hmil(config, cohort.stages, cohort.feature_dim, group)
