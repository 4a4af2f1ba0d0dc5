"""Manifest sections ``tested`` and ``certainty``: where the verdict held, and when a verdict counts as sure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hagmil._models import FrozenModel

TOP_ROWS = 32
"""Rows with the highest attention that the second reading of a bag uses."""


class TestedKeep(FrozenModel):
    """The verdicts of the tested slides with one number of kept patches."""

    keep: int | None = Field(ge=1, description="patches kept at every stage but the last; null: all patches")
    slides: int = Field(ge=1)
    right: float = Field(ge=0, le=1, description="share of slides whose verdict is the label")
    auc: float | None = Field(ge=0, le=1, description="area under the ROC curve, mean over classes; null if undefined")
    agreement: float = Field(ge=0, le=1, description="share of slides with the verdict of all patches")
    patches_read: float = Field(ge=0, description="patches of all stages, mean over slides")
    margins: dict[str, float | None] = Field(
        description="by class: median over its slides of the logit of the class minus the highest other logit; null "
        "without a slide"
    )


class TestedSize(FrozenModel):
    """The verdicts of the tested slides of one range of sizes."""

    smallest_bag: int = Field(ge=1, description="patches of the coarsest stage, smallest slide")
    largest_bag: int = Field(ge=1, description="patches of the coarsest stage, largest slide")
    keeps: tuple[TestedKeep, ...] = Field(min_length=1, description="in order of the kept patches, all patches last")


class Tested(FrozenModel):
    """Numbers of kept patches, bag sizes and slides with which a bundle was tested (``hagmil eval --keeps``)."""

    part: Literal["train", "val", "test"] = Field(description="part of the split that the slides are from")
    slides: int = Field(ge=1)
    smallest_bag: int = Field(ge=1, description="patches of the coarsest stage, smallest slide")
    largest_bag: int = Field(ge=1, description="patches of the coarsest stage, largest slide")
    keeps: tuple[TestedKeep, ...] = Field(min_length=1, description="in order of the kept patches, all patches last")
    sizes: tuple[TestedSize, ...] = Field(default=(), description="the same for ranges of slide sizes, small to large")
    held_from: int | None = Field(
        ge=1,
        description="smallest tested number of kept patches from which on the verdict of every slide is that of all "
        "patches; null if there is none",
    )


class Certainty(FrozenModel):
    """When the adaptive cascade calls a verdict sure, and the slides on which this is based."""

    threshold: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="smallest margin of a sure verdict: highest minus second highest logit, before the temperature",
    )
    method: Literal["quantile", "risk"] = Field(
        description="quantile: a heuristic, a quantile of the margins of the slides; risk: conformal risk control"
    )
    level: float = Field(gt=0, lt=1, description="the quantile, or the bound of the share of sure and wrong verdicts")
    keeps: tuple[int, ...] = Field(min_length=2, description="numbers of kept patches, in the order in which they run")
    top_rows: int = Field(default=TOP_ROWS, ge=1, description="rows of the second reading, by attention")
    slides: int = Field(ge=1)
    smallest_bag: int = Field(ge=1, description="patches of the coarsest stage, smallest slide")
    largest_bag: int = Field(ge=1, description="patches of the coarsest stage, largest slide")
    unsure: float = Field(ge=0, le=1, description="share of these slides whose verdict is not sure")
    sure_right: float | None = Field(ge=0, le=1, description="share of the sure verdicts that are right; null without")
