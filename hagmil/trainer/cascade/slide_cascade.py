"""The cascade of deployment on the features of one slide, with any number of kept patches.

1. The bag of the coarsest stage has all its rows. It does not depend on the number of kept patches, so its model runs
   once.
2. The stage model gets its bag. At each stage but the last, the rows with the highest attention are kept, in order of
   rank.
3. The children of the kept rows are the bag of the next stage. The last stage gives the verdict.

The models are given as a function from the number of a stage and its bag to the outputs. It runs PyTorch for
checkpoints and ONNX Runtime for bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hagmil.errors import BundleError, DataError
from hagmil.spec import ATTENTION, Kind
from hagmil.trainer.data.cohort import CohortSlide, CohortStage, read_bag
from hagmil.trainer.methods.selection import child_rows, keep_highest
from hagmil.trainer.models.registry import output_specs

StageOutputs = Mapping[str, NDArray[np.float32]]
"""Outputs of a stage model, by the names of the contract's tensors."""

StageRunner = Callable[[int, NDArray[np.float32]], StageOutputs]
"""Maps the number of a stage (coarse to fine) and its bag, float32 (patches, dim), to the outputs."""


@dataclass(frozen=True, slots=True)
class CascadeRun:
    """One run of the cascade on one slide.

    Args:
        outputs: outputs of every stage, coarse to fine.
        bags: bag of every stage, float32 (patches, dim).
    """

    outputs: tuple[StageOutputs, ...]
    bags: tuple[NDArray[np.float32], ...]

    @property
    def patches_read(self) -> int:
        """Patches of all stages."""
        return sum(len(bag) for bag in self.bags)


class SlideCascade:
    """The cascade of one slide; the features are read once for all numbers of kept patches.

    Args:
        slide: the slide.
        stages: stages of the features, coarse to fine.
        run: runs the stage models.

    Raises:
        DataError: features cannot be read or are not finite.
        BundleError: outputs of the coarsest model are not finite.
    """

    def __init__(self, slide: CohortSlide, stages: Sequence[CohortStage], run: StageRunner) -> None:
        self.slide, self._stages, self._run = slide, stages, run
        self._features = read_bag(slide).features
        self._coarsest = self._stage(0, None)  # step 1

    @property
    def transitions(self) -> int:
        """Number of stages that keep patches: all but the last."""
        return len(self._stages) - 1

    @property
    def coarse_patches(self) -> int:
        """Patches of the coarsest stage."""
        return len(self._features[0])

    @property
    def most_kept(self) -> int:
        """The smallest number of kept patches with which every patch is read; 0 with a single stage."""
        return max((len(bag) for bag in self._features[:-1]), default=0)

    def run(self, keeps: Sequence[int | None]) -> CascadeRun:
        """Run the cascade.

        Args:
            keeps: patches kept at each stage but the last, coarse to fine; None keeps all.

        Raises:
            DataError: features are not finite.
            BundleError: outputs of a model are not finite.
        """
        found = [self._coarsest]
        rows: Tensor | None = None
        for index, keep in enumerate(keeps):
            attention = found[-1][0][ATTENTION.name]
            kept = keep_highest(torch.from_numpy(np.array(attention)), len(attention) if keep is None else keep)
            factor = self._stages[index].factor
            assert factor is not None  # the last stage keeps nothing
            rows = child_rows(kept if rows is None else rows[kept], factor)  # step 3
            found.append(self._stage(index + 1, rows))
        outputs, bags = zip(*found, strict=True)
        return CascadeRun(outputs, bags)

    def run_last(self, bag: NDArray[np.float32]) -> StageOutputs:
        """Run the model of the last stage on a bag.

        Args:
            bag: float32 (patches, dim).

        Raises:
            BundleError: outputs of the model are not finite.
        """
        last = len(self._stages) - 1
        outputs = self._run(last, bag)
        _check_finite(outputs, bag, self._where(last))
        return outputs

    def _stage(self, index: int, rows: Tensor | None) -> tuple[StageOutputs, NDArray[np.float32]]:
        """Step 2: the outputs of a stage and its bag."""
        bag = self._features[index]
        features = (bag if rows is None else bag[rows]).to(torch.float32, copy=True).numpy()
        outputs = self._run(index, features)
        _check_finite(outputs, features, self._where(index))
        return outputs, features

    def _where(self, index: int) -> str:
        return f'slide "{self.slide.slide_id}", stage {self._stages[index].name}'


def models_runner(models: Sequence[nn.Module], kind: Kind, *, device: str = "cpu") -> StageRunner:
    """Return a function that runs stage models in PyTorch.

    Args:
        models: one for each stage, coarse to fine, in evaluation mode and on the device.
        kind: kind of the models.
        device: torch device of the models.
    """
    names = [[spec.name for spec in output_specs(model, kind)] for model in models]

    def run(index: int, features: NDArray[np.float32]) -> StageOutputs:
        with torch.inference_mode():
            values = models[index](torch.from_numpy(features).to(device))
        return {name: value.float().cpu().numpy() for name, value in zip(names[index], values, strict=True)}

    return run


def _check_finite(outputs: StageOutputs, features: NDArray[np.float32], where: str) -> None:
    bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
    if not bad:
        return
    if not np.isfinite(features).all():
        raise DataError(f"{where}: the features contain values that are not finite; extract the slide again")
    raise BundleError(f"{where}: the model's {', '.join(bad)} contain values that are not finite", code="not_finite")
