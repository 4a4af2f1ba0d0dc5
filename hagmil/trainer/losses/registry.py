"""The losses of heads: those of this package, and losses of other packages (entry points ``hagmil.losses``).

A package adds a loss with an entry point whose name is the loss and whose object is a :class:`Loss`:

    [project.entry-points."hagmil.losses"]
    my-loss = "my_package:LOSS"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hagmil._models import FrozenModel
from hagmil.errors import UsageError
from hagmil.trainer.losses.heads import (
    ClamLossConfig,
    CrossEntropyConfig,
    DsmilLossConfig,
    clam_loss,
    cross_entropy_loss,
    dsmil_loss,
)
from hagmil.trainer.models.entry_points import LOSSES, load_provided, provided_names


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of one bag.

    Args:
        config: its configuration, the section ``loss`` without ``name``; every key needs a default and a description.
        compute: maps the training output of the model, the label (an int), the model and the configuration to a scalar.
    """

    config: type[FrozenModel]
    compute: Callable[[Any, int, Any, Any], Tensor]


_BUILT_IN = {
    "cross_entropy": Loss(CrossEntropyConfig, cross_entropy_loss),
    "clam": Loss(ClamLossConfig, clam_loss),
    "dsmil": Loss(DsmilLossConfig, dsmil_loss),
}


def loss_names() -> tuple[str, ...]:
    """Names of all losses: those of this package, then those of other packages."""
    return (*_BUILT_IN, *(name for name in provided_names(LOSSES) if name not in _BUILT_IN))


def find_loss(name: str) -> Loss:
    """Find a loss by its name.

    Raises:
        UsageError: neither this package nor an installed package has this loss, or it cannot be loaded.
    """
    loss = _BUILT_IN.get(name) or load_provided(LOSSES, name)
    if loss is None:
        raise UsageError(f'no loss "{name}"; it must be one of {", ".join(loss_names())}', code="configuration")
    if not isinstance(loss, Loss):
        raise UsageError(f'the entry point of loss "{name}" must be a Loss, not {type(loss).__name__}')
    return loss
