"""The sections of a training configuration; each key is explained by its description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hagmil._models import FrozenModel, Within
from hagmil.bundle import Hierarchy
from hagmil.spec import MOST_STAGES, ClassNames, PatchCount, PatchPx, SpacingUm
from hagmil.trainer.losses.instance import InstanceLossKind
from hagmil.trainer.models.limits import Dropout, LossWeight

Epochs = Annotated[int, Within(1, 10**6)]
LearningRate = Annotated[float, Within(1e-12, 10)]

Layout = Literal["hdf5", "hag-mil-pt", "hmil-pt"]
"""Layout of feature files: ours, or that of one of the two published codes."""

_PATIENCE = "epochs without a lower validation loss after which training stops; null: never"
_PLATEAU = "schedule of the learning rate; null: the learning rate stays constant"


class DataConfig(FrozenModel):
    """Features, labels and split."""

    features: Path = Field(
        description="hdf5: folder of <slide_id>.h5 files from hagmil extract; hmil-pt: folder of <slide>.pt files; "
        "hag-mil-pt: common beginning of the paths of the folders (f/cam for f/cam_level_2)"
    )
    labels: Path | None = Field(
        default=None,
        description="CSV with the columns slide_id, case_id, label (with a hierarchy, the fine label); null: the "
        "labels are in the pickled lists of HMIL",
    )
    split: Path = Field(description="CSV as written by CLAM, in either form; if fold is set, folder of HMIL's lists")
    fold: Annotated[int, Within(0, 1000)] | None = Field(
        default=None, description="number of the fold in HMIL's pickled lists; null: a CSV"
    )
    layout: Layout = Field(default="hdf5", description="layout of the feature files: hdf5, hag-mil-pt or hmil-pt")
    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="hdf5: names of the stages to train on, coarse to fine; null: all stages in the files",
    )
    levels: tuple[Annotated[int, Within(0, 63)], ...] = Field(
        default=(2, 1, 0),
        min_length=1,
        max_length=MOST_STAGES,
        description="hag-mil-pt: levels of the slide files, coarse to fine",
    )
    spacing_um: tuple[SpacingUm, ...] | None = Field(
        default=None,
        description="for .pt files, which do not contain it: micrometres per pixel of each stage, coarse to fine",
    )
    patch_px: PatchPx | None = Field(
        default=None, description="for .pt files, which do not contain it: side of a patch in pixels"
    )
    prefetch: Annotated[int, Within(0, 1000)] = Field(
        default=1, description="number of bags that a thread reads ahead; 0: no thread"
    )

    @model_validator(mode="after")
    def _check_layout(self) -> DataConfig:
        if self.labels is None and self.fold is None:
            raise ValueError("labels must be given, unless fold is set and split is a folder of HMIL's pickled lists")
        if self.layout == "hdf5":
            if self.spacing_um is not None or self.patch_px is not None:
                raise ValueError("HDF5 files contain spacing_um and patch_px; remove these keys")
            return self
        if self.stages is not None:
            raise ValueError(f"stages are names in HDF5 files; layout {self.layout} has none")
        expected = 1 if self.layout == "hmil-pt" else len(self.levels)
        if self.patch_px is None or self.spacing_um is None or len(self.spacing_um) != expected:
            raise ValueError(
                f"files of layout {self.layout} contain no spacing and no patch size; give patch_px and "
                f"{expected} spacing_um"
            )
        return self


class HierarchyConfig(FrozenModel):
    """Coarse and fine classes; labels.csv contains the fine class."""

    coarse: ClassNames = Field(description="coarse classes in the order of the logits")
    fine: ClassNames = Field(description="fine classes in the order of the logits")
    fine_to_coarse: dict[str, str] = Field(description="coarse class of each fine class")

    @model_validator(mode="after")
    def _check_classes(self) -> HierarchyConfig:
        for layer in (self.coarse, self.fine):
            twice = sorted({name for name in layer if layer.count(name) > 1})
            if twice:
                raise ValueError(f"a class is named twice: {', '.join(twice)}")
        missing = [name for name in self.fine if name not in self.fine_to_coarse]
        if missing:
            raise ValueError(f"fine_to_coarse gives no coarse class for the fine class {', '.join(missing)}")
        not_fine = [name for name in self.fine_to_coarse if name not in self.fine]
        if not_fine:
            raise ValueError(f"fine_to_coarse names {', '.join(not_fine)}, which is not in fine")
        not_coarse = sorted(set(self.fine_to_coarse.values()) - set(self.coarse))
        if not_coarse:
            raise ValueError(f"fine_to_coarse maps to {', '.join(not_coarse)}, which is not in coarse")
        childless = [name for name in self.coarse if name not in self.fine_to_coarse.values()]
        if childless:
            raise ValueError(f"no fine class belongs to the coarse class {', '.join(childless)}")
        return self

    def resolved(self) -> Hierarchy:
        """Return the hierarchy as manifests and checkpoints contain it, with indices in the map."""
        indices = tuple(self.coarse.index(self.fine_to_coarse[name]) for name in self.fine)
        return Hierarchy(coarse=self.coarse, fine=self.fine, fine_to_coarse=indices)


class LossConfig(FrozenModel):
    """Losses of HAG-MIL; the defaults are those of the published recipe."""

    bag_weight: LossWeight = Field(default=0.5, description="weight of the cross entropy of the slide")
    instance_weight: LossWeight = Field(default=0.5, description="weight of CLAM's clustering loss of patches")
    label_smoothing: Dropout = Field(default=0.1, description="of the bag loss, except at the finest stage")
    instance: InstanceLossKind = Field(
        default="cross_entropy", description="instance loss: cross_entropy, svm (smooth top-1) or none"
    )
    k_sample: PatchCount = Field(
        default=8,
        description="number of patches with the highest, and with the lowest attention, for the instance loss",
    )
    subtyping: bool = Field(default=False, description="true if classes exclude one another and none means normal")


class AlignmentConfig(FrozenModel):
    """Alignment losses between the stages of a cascade with a hierarchy (ours, see docs/hierarchy.md)."""

    bag: LossWeight = Field(
        default=0.5,
        description="weight of the loss between fine prediction and coarse label; 0: off",
    )
    instance: LossWeight = Field(
        default=0.1,
        description="weight of the loss between the attention of a stage and that of the next coarser one; 0: off",
    )


class OptimiserConfig(FrozenModel):
    """Adam; HAG-MIL has one optimiser for each stage."""

    learning_rate: LearningRate = Field(default=1e-5, description="learning rate of Adam")
    weight_decay: Annotated[float, Within(0, 10)] = Field(default=1e-5, description="weight decay of Adam")


class HmilOptimiserConfig(FrozenModel):
    """Adam with the defaults of HMIL."""

    learning_rate: LearningRate = Field(default=1e-4, description="learning rate of Adam")
    weight_decay: Annotated[float, Within(0, 10)] = Field(default=0.0, description="weight decay of Adam")


class HeadOptimiserConfig(FrozenModel):
    """Adam with the defaults of CLAM."""

    learning_rate: LearningRate = Field(default=1e-4, description="learning rate of Adam")
    weight_decay: Annotated[float, Within(0, 10)] = Field(default=1e-5, description="weight decay of Adam")


class CascadeConfig(FrozenModel):
    """Number of patches with the highest attention that a stage keeps for the next."""

    keep_train: PatchCount = Field(default=7000, description="kept patches in training")
    keep_random: bool = Field(
        default=False,
        description="true: in place of keep_train, at each step and stage, n^u of n patches, with u uniform on 0..1",
    )
    keep_validation: PatchCount = Field(default=10000, description="kept patches in validation, test and deployment")
    validation_keeps: tuple[PatchCount | Literal["all"], ...] | None = Field(
        default=None,
        min_length=1,
        description="numbers of kept patches, or all, over which the validation loss of the verdict is averaged, such "
        "as [4, 16, all]; null: keep_validation alone",
    )
    teach: LossWeight = Field(
        default=0.0,
        description="weight of the loss by which the finest stage teaches coarser stages which patches to keep; 0: off",
    )
    teach_from: Epochs = Field(default=5, description="first epoch with teaching, counted from 1")


class PlateauConfig(FrozenModel):
    """Lowers the learning rate when the validation loss stops falling."""

    factor: Annotated[float, Within(1e-12, 0.999999)] = Field(
        default=0.1, description="factor by which the learning rate is multiplied"
    )
    patience: Annotated[int, Within(0, 10**6)] = Field(
        default=5, description="epochs without a lower validation loss before it is lowered"
    )
    threshold: Dropout = Field(default=1e-4, description="relative decrease that counts as a lower loss")


class ScheduleConfig(FrozenModel):
    """Number of epochs and order of slides."""

    max_epochs: Epochs = Field(default=200, description="largest number of epochs")
    patience: Epochs | None = Field(default=20, description=_PATIENCE)
    weighted_sampling: bool = Field(default=False, description="sample slides so that all classes are equally frequent")
    plateau: PlateauConfig | None = Field(default=None, description=_PLATEAU)


class HmilScheduleConfig(ScheduleConfig):
    """Number of epochs, order of slides, and batches of bags."""

    max_epochs: Epochs = Field(
        default=200, description="number of epochs, T of the curriculum; cannot be changed when a run is resumed"
    )
    patience: Epochs | None = Field(default=None, description=_PATIENCE)
    plateau: PlateauConfig | None = Field(default=PlateauConfig(), description=_PLATEAU)
    batch_size: Annotated[int, Within(1, 65_536)] = Field(
        default=64, description="slides per step; the last batch of an epoch may be smaller"
    )
