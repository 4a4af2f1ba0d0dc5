"""The sections of a training's configuration; what each key means stands in its description."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hagmil._models import FrozenModel
from hagmil.bundle import Hierarchy
from hagmil.trainer.losses.instance import InstanceLossKind

Layout = Literal["hdf5", "hag-mil-pt", "hmil-pt"]
"""How features lie on disk: ours, or those of the two published codes."""


class Section(FrozenModel):
    """A part of a configuration: unknown keys are errors, and nothing changes once it is read."""


class DataConfig(Section):
    """Where features, labels and split are, and how they lie there."""

    features: Path = Field(
        description="hdf5: folder of <slide_id>.h5 files, as hagmil extract writes them; hmil-pt: folder of "
        "<slide>.pt files; hag-mil-pt: what the folders' names begin with (f/cam for f/cam_level_2)"
    )
    labels: Path | None = Field(
        default=None,
        description="CSV with the columns slide_id, case_id, label (with a hierarchy the fine label); null where "
        "HMIL's pickled lists hold the labels",
    )
    split: Path = Field(description="CSV of CLAM, of either form; with a fold, a folder of HMIL's pickled lists")
    fold: int | None = Field(default=None, ge=0, description="which of HMIL's pickled lists; null for a CSV")
    layout: Layout = "hdf5"
    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="hdf5: names of the stages to train on, coarse to fine; all that the files hold where null",
    )
    levels: tuple[int, ...] = Field(default=(2, 1, 0), min_length=1, description="hag-mil-pt: coarse to fine")
    spacing_um: tuple[float, ...] | None = Field(
        default=None, description=".pt files do not tell: micrometres per pixel of each stage, coarse to fine"
    )
    patch_px: int | None = Field(default=None, ge=8, description=".pt files do not tell: side of a patch")
    prefetch: int = Field(
        default=1, ge=0, description="bags that a thread reads ahead while the present one is trained on; 0: none"
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DataConfig:
        if self.labels is None and self.fold is None:
            raise ValueError("labels must be given, unless fold names HMIL's pickled lists in split")
        if self.layout == "hdf5":
            if self.spacing_um is not None or self.patch_px is not None:
                raise ValueError("HDF5 files tell spacing_um and patch_px themselves; leave them out")
            return self
        if self.stages is not None:
            raise ValueError(f"stages are names in HDF5 files; layout {self.layout} has none")
        expected = 1 if self.layout == "hmil-pt" else len(self.levels)
        if self.patch_px is None or self.spacing_um is None or len(self.spacing_um) != expected:
            raise ValueError(
                f"layout {self.layout} does not tell spacing or patch size; give patch_px and {expected} spacing_um"
            )
        return self


class HierarchyConfig(Section):
    """Labels in two layers; labels.csv holds the fine one."""

    coarse: tuple[str, ...] = Field(min_length=2, description="in the order of the logits")
    fine: tuple[str, ...] = Field(min_length=2, description="in the order of the logits")
    fine_to_coarse: dict[str, str] = Field(description="for each fine class its coarse class")

    @model_validator(mode="after")
    def _every_class_has_its_place(self) -> HierarchyConfig:
        for layer in (self.coarse, self.fine):
            twice = sorted({name for name in layer if layer.count(name) > 1})
            if twice:
                raise ValueError(f"a class is named twice: {', '.join(twice)}")
        orphans = [name for name in self.fine if name not in self.fine_to_coarse]
        if orphans:
            raise ValueError(f"fine_to_coarse gives no coarse class for the fine class {', '.join(orphans)}")
        strangers = [name for name in self.fine_to_coarse if name not in self.fine]
        if strangers:
            raise ValueError(f"fine_to_coarse names {', '.join(strangers)}, which fine does not")
        unknown = sorted(set(self.fine_to_coarse.values()) - set(self.coarse))
        if unknown:
            raise ValueError(f"fine_to_coarse leads to {', '.join(unknown)}, which coarse does not name")
        childless = [name for name in self.coarse if name not in self.fine_to_coarse.values()]
        if childless:
            raise ValueError(f"no fine class belongs to the coarse class {', '.join(childless)}")
        return self

    def resolved(self) -> Hierarchy:
        """The hierarchy as manifests and checkpoints have it, with numbers for the map."""
        places = tuple(self.coarse.index(self.fine_to_coarse[name]) for name in self.fine)
        return Hierarchy(coarse=self.coarse, fine=self.fine, fine_to_coarse=places)


class LossConfig(Section):
    """Weights and settings of HAG-MIL's losses; the defaults are the published recipe."""

    bag_weight: float = Field(default=0.5, ge=0)
    instance_weight: float = Field(default=0.5, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="at all stages but the finest")
    instance: InstanceLossKind = "cross_entropy"
    k_sample: int = Field(default=8, ge=1, description="patches of highest and of lowest attention each")
    subtyping: bool = Field(default=False, description="classes exclude one another and none means normal")


class AlignmentConfig(Section):
    """Weights of the alignment losses between a cascade's stages (ours, see docs/hierarchy.md); 0 is off."""

    bag: float = Field(default=0.5, ge=0, allow_inf_nan=False, description="fine verdict against coarse label")
    instance: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="attention against the coarser stage's")


class OptimiserConfig(Section):
    """Adam, one for each of HAG-MIL's stages."""

    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)


class HmilOptimiserConfig(Section):
    """Adam, as HMIL uses it."""

    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class CascadeConfig(Section):
    """How many patches of highest attention a stage hands to the next."""

    keep_train: int = Field(default=7000, ge=1)
    keep_validation: int = Field(default=10000, ge=1, description="in validation, test and deployment")


class PlateauConfig(Section):
    """Lower the learning rate where the validation loss no longer falls."""

    factor: float = Field(default=0.1, gt=0, lt=1, description="what the learning rate is multiplied with")
    patience: int = Field(default=5, ge=0, description="epochs without a better loss that are borne with")
    threshold: float = Field(default=1e-4, ge=0, lt=1, description="by what share a better loss must be lower")


class ScheduleConfig(Section):
    """How long to train, and on what order of slides."""

    max_epochs: int = Field(default=200, ge=1)
    patience: int | None = Field(
        default=20, ge=1, description="epochs without a better validation loss, then stop; never where null"
    )
    weighted_sampling: bool = Field(default=False, description="draw slides so that classes are equally frequent")
    plateau: PlateauConfig | None = Field(default=None, description="null: the learning rate stays")


class HmilScheduleConfig(ScheduleConfig):
    """HMIL's: batches of bags, a plateau schedule, and no early stop."""

    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better validation loss, then stop; never where null"
    )
    plateau: PlateauConfig | None = Field(default=PlateauConfig(), description="null: the learning rate stays")
    batch_size: int = Field(default=64, ge=1, description="slides a step; the last batch of an epoch may be smaller")
