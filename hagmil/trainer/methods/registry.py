"""Create a method from its configuration."""

from __future__ import annotations

from hagmil.trainer.compute.distributed import SINGLE_PROCESS, ProcessGroup
from hagmil.trainer.config.training import HagMilConfig, HmilTrainingConfig, TrainingConfig
from hagmil.trainer.data.cohort import Cohort
from hagmil.trainer.methods.base import Method
from hagmil.trainer.methods.hag_mil import HagMil
from hagmil.trainer.methods.head import HeadMethod
from hagmil.trainer.methods.hmil import Hmil


def new_method(config: TrainingConfig, cohort: Cohort, group: ProcessGroup = SINGLE_PROCESS) -> Method:
    """Create the method of a configuration, with initial weights drawn from torch's global generator.

    Args:
        config: configuration of any kind.
        cohort: the training cohort.
        group: the processes that train together.

    Raises:
        UsageError: the method does not support the stages of the cohort.
    """
    if isinstance(config, HagMilConfig):
        return HagMil(config, cohort.stages, cohort.feature_dim, len(cohort.classes), group)
    if isinstance(config, HmilTrainingConfig):
        return Hmil(config, cohort.stages, cohort.feature_dim, group)
    return HeadMethod(config, cohort.stages, cohort.feature_dim, len(cohort.classes), group)
