"""A metric with its 95 % interval, or with the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from hagmil._models import FrozenModel

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
UNDEFINED = "the slides leave the metric undefined"
Method = Literal["clopper-pearson", "mover", "score", "bca"]


class Estimate(FrozenModel):
    """One metric and its interval."""

    value: float | None = Field(description="null if the slides leave it undefined")
    low: float | None = Field(default=None, description="lower end of the 95 % interval; null without one")
    high: float | None = Field(default=None, description="upper end of the interval")
    method: Method | None = Field(default=None, description="of the interval, see docs/evaluation.md")
    no_interval: str | None = Field(default=None, description="why there is no interval; null with one")


def without_interval(value: float, reason: str) -> Estimate:
    """Return an estimate without interval.

    Args:
        value: the metric; NaN if it is undefined.
        reason: why there is no interval; replaced if the metric is undefined.
    """
    if value != value:
        return Estimate(value=None, no_interval=UNDEFINED)
    return Estimate(value=value, no_interval=reason)


def reasons(estimates: Mapping[str, Estimate]) -> dict[str, list[str]]:
    """Group the metrics that are defined and have no interval by the reason.

    Args:
        estimates: by name of the metric.

    Returns:
        The names of the metrics for each reason.
    """
    found: dict[str, list[str]] = {}
    for name, estimate in estimates.items():
        if estimate.value is not None and estimate.no_interval is not None:
            found.setdefault(estimate.no_interval, []).append(name)
    return found
