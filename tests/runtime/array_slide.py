"""Slides that are arrays in memory, for tests of overviews and tissue masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.slides.overview import read_overview
from hagmil.runtime.slides.slide import Slide, SlideMetadata
from hagmil.runtime.tissue.kernels.protocol import MaskKernels
from hagmil.runtime.tissue.segment import TissueMask, find_tissue
from hagmil.tissue_parameters import TissueParameters
from hagmil.units import Level, Size

GLASS, STROMA = (243, 242, 244), (210, 150, 190)
NO_FILTERS = TissueParameters(median_um=0, closing_um=0, min_object_um2=0, min_hole_um2=0)


def tissue_of(slide: Slide, parameters: TissueParameters, kernels: MaskKernels | None = None) -> TissueMask:
    """The tissue mask of a slide, read as inference reads it."""
    return find_tissue(read_overview(slide, parameters.spacing_um), parameters, kernels)


@dataclass
class ArraySlide:
    """A slide whose levels are arrays in memory; it records the regions that are read."""

    pixels: list[NDArray[np.uint8]]
    spacing_um: float | None = 8.0
    path: Path = Path("made.tif")
    spacing_source: str | None = "metadata"
    objective_power: float | None = None
    vendor: str = "array"
    reads: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    @property
    def metadata(self) -> SlideMetadata:
        spacing_xy_um = None if self.spacing_um is None else (self.spacing_um, self.spacing_um)
        return SlideMetadata(self.vendor, self.levels, spacing_xy_um, self.objective_power)

    @property
    def size(self) -> Size:
        height, width, _ = self.pixels[0].shape
        return Size(width, height)

    @property
    def levels(self) -> tuple[Level, ...]:
        found = []
        for index, pixels in enumerate(self.pixels):
            height, width, _ = pixels.shape
            downsample = (self.size.width / width + self.size.height / height) / 2
            found.append(Level(index, width, height, downsample))
        return tuple(found)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        self.reads.append((level, x, y, width, height))
        result = np.full((height, width, 3), 255, dtype=np.uint8)
        part = self.pixels[level][y : y + height, x : x + width]
        result[: part.shape[0], : part.shape[1]] = part
        return result

    def encoded_tiles(self, level: int) -> None:  # noqa: ARG002 - there are none
        return None

    def fork(self) -> Self:
        return self

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def glass(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GLASS, dtype=np.uint8)


def noisy(pixels: NDArray[np.uint8], deviation: float, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0.0, deviation, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def patterned(height: int, width: int) -> NDArray[np.uint8]:
    """Squares of tissue and glass, a few pixels wide, with noise."""
    generator = np.random.default_rng(5)
    squares = generator.random((-(-height // 12), -(-width // 12))) < 0.5
    tissue = np.kron(squares, np.ones((12, 12), dtype=np.bool_))[:height, :width]
    return noisy(np.where(tissue[..., np.newaxis], STROMA, GLASS).astype(np.uint8), 3.0)
