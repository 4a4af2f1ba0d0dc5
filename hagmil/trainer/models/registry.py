"""The kinds of models: those of this package, and heads of other packages (entry points ``hagmil.heads``).

A kind says which keys its configuration has and builds its stage models. HAG-MIL and HMIL build one or several models
and depend on the hierarchy of labels; every other kind is a :class:`Head`, one model at one spacing.

A package adds a head with an entry point whose name is the kind and whose object is a :class:`Head`:

    [project.entry-points."hagmil.heads"]
    my-head = "my_package:HEAD"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import nn

from hagmil._models import FrozenModel
from hagmil.bundle import Hierarchy
from hagmil.errors import UsageError
from hagmil.spec import AttentionForm, Kind, Readout, TensorSpec, stage_outputs
from hagmil.trainer.models.additive import AdditiveStageModel
from hagmil.trainer.models.attention_mil import AbmilConfig, AttentionMil, ClamConfig
from hagmil.trainer.models.build import cascade_models, hmil_model
from hagmil.trainer.models.dsmil import Dsmil, DsmilConfig
from hagmil.trainer.models.entry_points import HEADS, load_provided, provided_names
from hagmil.trainer.models.hmil import HmilConfig
from hagmil.trainer.models.iat import IatConfig
from hagmil.trainer.models.pooling import MaxPooling, MeanPooling, PoolingConfig
from hagmil.trainer.models.tile_transformer import TileTransformer, TileTransformerConfig
from hagmil.trainer.models.transmil import TransMil, TransMilConfig


class ModelSizes(NamedTuple):
    """Sizes of the stage models that follow from data and labels.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes of the verdict.
        hierarchy: hierarchy of the labels; None for one layer.
        stages: number of stages.
    """

    feature_dim: int
    classes: int
    hierarchy: Hierarchy | None = None
    stages: int = 1


class ModelKind(Protocol):
    """A kind of models, as checkpoints and trainings use it."""

    @property
    def config(self) -> type[FrozenModel]:
        """The configuration of the stage models: the section ``model``."""
        ...

    @property
    def attention(self) -> AttentionForm:
        """Form of the attention."""
        ...

    def build(self, config: Any, sizes: ModelSizes) -> list[nn.Module]:
        """Build the stage models with initial weights, coarse to fine."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """A kind with one model at one spacing.

    Args:
        config: configuration of the model; every key needs a default and a description.
        model: builds the model from the length of a feature vector, the number of classes and a configuration. Its
            ``forward`` maps float32 (patches, feature_dim) to a named tuple of logits (classes,) and attention. If
            it has a ``forward_training``, the loss gets the result of that instead.
        attention: ``shared``: attention (patches,); ``per_class``: attention (classes, patches).
        loss: name of the loss of a training that names none.
    """

    config: type[FrozenModel]
    model: Callable[[int, int, Any], nn.Module]
    attention: AttentionForm = "shared"
    loss: str = "cross_entropy"

    def build(self, config: Any, sizes: ModelSizes) -> list[nn.Module]:
        """Build the model; see :class:`ModelKind`."""
        return [self.model(sizes.feature_dim, sizes.classes, config)]


class _HagMilKind:
    config = IatConfig
    attention: AttentionForm = "shared"

    def build(self, config: Any, sizes: ModelSizes) -> list[nn.Module]:
        """Build a model for each stage."""
        return list(cascade_models(config, **sizes._asdict()))


class _HmilKind:
    config = HmilConfig
    attention: AttentionForm = "per_class"

    def build(self, config: Any, sizes: ModelSizes) -> list[nn.Module]:
        """Build the only model; HMIL requires a hierarchy."""
        if sizes.hierarchy is None:
            raise ValueError("kind hmil needs a hierarchy")
        return [hmil_model(config, feature_dim=sizes.feature_dim, hierarchy=sizes.hierarchy)]


_BUILT_IN: dict[str, ModelKind] = {
    "hag-mil": _HagMilKind(),
    "hmil": _HmilKind(),
    "mean": Head(PoolingConfig, MeanPooling),
    "max": Head(PoolingConfig, MaxPooling, attention="per_class"),
    "abmil": Head(AbmilConfig, AttentionMil),
    "clam-sb": Head(ClamConfig, AttentionMil, loss="clam"),
    "clam-mb": Head(ClamConfig, AttentionMil.per_class, attention="per_class", loss="clam"),
    "transmil": Head(TransMilConfig, TransMil),
    "dsmil": Head(DsmilConfig, Dsmil, attention="per_class", loss="dsmil"),
    "stamp": Head(TileTransformerConfig, TileTransformer),
}


def kind_names() -> tuple[str, ...]:
    """Names of all kinds: those of this package, then those of other packages."""
    return (*_BUILT_IN, *(name for name in provided_names(HEADS) if name not in _BUILT_IN))


def model_kind(name: str) -> ModelKind:
    """Find a kind by its name.

    Raises:
        UsageError: neither this package nor an installed package has this kind, or it cannot be loaded.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    head = load_provided(HEADS, name)
    if head is None:
        raise UsageError(
            f"kind is {name!r}; it must be one of {', '.join(kind_names())}, or a head of an installed package",
            code="configuration",
        )
    if not isinstance(head, Head):
        raise UsageError(f'the entry point of head "{name}" must be a Head, not {type(head).__name__}')
    return head


def output_specs(model: nn.Module, kind: Kind) -> tuple[TensorSpec, ...]:
    """Outputs of a stage model's ``forward``, in order.

    Args:
        model: the stage model.
        kind: kind of the model.
    """
    readout: Readout = "additive" if isinstance(model, AdditiveStageModel) else "pooled"
    return stage_outputs(kind, readout, model_kind(kind).attention)
