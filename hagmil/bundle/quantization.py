"""Manifest section ``quantization``: an int8 backbone compared with its float32 graph."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hagmil._models import FrozenModel, Within
from hagmil.spec import Count, PositiveCount, Share

Rate = Annotated[float, Within(1e-6, 10**9)]
Cosine = Annotated[float, Within(-1, 1)]
RelativeError = Annotated[float, Within(0, 10**6)]


class Throughput(FrozenModel):
    """Patches per second of a backbone in float32 and in int8, measured alternately in one process."""

    fp32_patches_per_s: Rate
    int8_patches_per_s: Rate
    batch: PositiveCount
    threads: PositiveCount
    processor: str = Field(description="processor of the machine on which this was measured")

    @property
    def gain(self) -> float:
        """Rate of int8 divided by the rate of float32; below 1 if int8 is slower."""
        return self.int8_patches_per_s / self.fp32_patches_per_s


class Quantization(FrozenModel):
    """How a backbone was quantised to int8, its agreement with the float32 graph, and its speed."""

    scheme: Literal["static QDQ, uint8 activations, int8 weights per channel"] = (
        "static QDQ, uint8 activations, int8 weights per channel"
    )
    reduced_range: bool = Field(description="weights have 7 bits, which makes sums of products exact on every CPU")
    first_product: Literal["int8", "fp32"] = Field(
        description="precision of the first matrix product; fp32 if that reduces the error by a quarter or more"
    )
    calibration: str = Field(description="description of the slides from which patches were drawn")
    calibration_patches: PositiveCount
    compared_patches: PositiveCount = Field(
        description="other patches of the same slides, on which features were compared"
    )
    least_cosine: Cosine = Field(description="smallest cosine between the features of a patch in int8 and in float32")
    allowed_cosine: Cosine
    relative_error: RelativeError = Field(
        description="norm of the difference divided by the norm of the features, all patches"
    )
    allowed_relative_error: RelativeError
    compared_slides: str | None = Field(
        default=None, description="description of the slides whose verdicts were compared"
    )
    verdicts: Count = Field(default=0, description="slides with a verdict from the float32 models")
    equal_verdicts: Count = 0
    kept_alike: dict[str, Share] = Field(
        default_factory=dict, description="share of kept patches that are equal, by stage"
    )
    allowed_alike: Share
    throughput: Throughput
