"""Manifest sections ``tested`` and ``certainty``: where the verdict held, and when a verdict counts as sure."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hagmil._models import FrozenModel, Within
from hagmil.spec import PatchCount, PositiveCount, Share

TOP_ROWS = 32
"""Rows with the highest attention that the second reading of a bag uses."""


class TestedKeep(FrozenModel):
    """The verdicts of the tested slides with one number of kept patches."""

    keep: PatchCount | None = Field(description="patches kept at every stage but the last; null: all patches")
    slides: PositiveCount
    right: Share = Field(description="share of slides whose verdict is the label")
    auc: Share | None = Field(description="area under the ROC curve, mean over classes; null if undefined")
    agreement: Share = Field(description="share of slides with the verdict of all patches")
    patches_read: Annotated[float, Within(0, 2**53)] = Field(description="patches of all stages, mean over slides")
    margins: dict[str, Annotated[float, Within(-(10**9), 10**9)] | None] = Field(
        description="by class: median over its slides of the logit of the class minus the highest other logit; null "
        "without a slide"
    )


class TestedSize(FrozenModel):
    """The verdicts of the tested slides of one range of sizes."""

    smallest_bag: PatchCount = Field(description="patches of the coarsest stage, smallest slide")
    largest_bag: PatchCount = Field(description="patches of the coarsest stage, largest slide")
    keeps: tuple[TestedKeep, ...] = Field(min_length=1, description="in order of the kept patches, all patches last")


class Tested(FrozenModel):
    """Numbers of kept patches, bag sizes and slides with which a bundle was tested (``hagmil eval --keeps``)."""

    part: Literal["train", "val", "test"] = Field(description="part of the split that the slides are from")
    slides: PositiveCount
    smallest_bag: PatchCount = Field(description="patches of the coarsest stage, smallest slide")
    largest_bag: PatchCount = Field(description="patches of the coarsest stage, largest slide")
    keeps: tuple[TestedKeep, ...] = Field(min_length=1, description="in order of the kept patches, all patches last")
    sizes: tuple[TestedSize, ...] = Field(default=(), description="the same for ranges of slide sizes, small to large")
    held_from: PatchCount | None = Field(
        description="smallest tested number of kept patches from which on the verdict of every slide is that of all "
        "patches; null if there is none",
    )


class Certainty(FrozenModel):
    """When the adaptive cascade calls a verdict sure, and the slides on which this is based."""

    threshold: Annotated[float, Within(0, 10**6)] = Field(
        description="smallest margin of a sure verdict: highest minus second highest logit, before the temperature",
    )
    method: Literal["quantile", "risk"] = Field(
        description="quantile: a heuristic, a quantile of the margins of the slides; risk: conformal risk control"
    )
    level: float = Field(gt=0, lt=1, description="the quantile, or the bound of the share of sure and wrong verdicts")
    keeps: tuple[PatchCount, ...] = Field(
        min_length=2, description="numbers of kept patches in ascending order, in which they run"
    )
    top_rows: PatchCount = Field(default=TOP_ROWS, description="rows of the second reading, by attention")
    slides: PositiveCount
    smallest_bag: PatchCount = Field(description="patches of the coarsest stage, smallest slide")
    largest_bag: PatchCount = Field(description="patches of the coarsest stage, largest slide")
    unsure: Share = Field(description="share of these slides whose verdict is not sure")
    sure_right: Share | None = Field(description="share of the sure verdicts that are right; null without")

    @model_validator(mode="after")
    def _check_keeps(self) -> Certainty:
        if any(before >= after for before, after in pairwise(self.keeps)):
            raise ValueError("keeps must grow, because the cascade stops at the first number that is enough")
        return self
