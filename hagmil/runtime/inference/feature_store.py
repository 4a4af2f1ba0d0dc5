"""Features of the patches of one stage that were encoded so far, so that no patch is read twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.inference.device import Device


class FeatureStore:
    """Assembles bags of one stage, and encodes only patches that no earlier bag had.

    Args:
        encode: reads and encodes patches, int64 (n, 2) to float32 (n, dim) on the device.
        device: the memory of the features.
    """

    def __init__(self, encode: Callable[[NDArray[np.int64]], Any], device: Device) -> None:
        self._encode, self._device = encode, device
        self._blocks: list[Any] = []  # features, float32 (n, dim) each
        self._places: dict[tuple[int, int], tuple[int, int]] = {}  # (x, y) -> (block, row)

    def __len__(self) -> int:
        """The number of patches that were encoded."""
        return len(self._places)

    def bag(self, coords: NDArray[np.int64]) -> Any:
        """The features of patches, in the order of ``coords``.

        Args:
            coords: int64 (patches, 2), level-0 top-left corners (x, y), at least one, all different.

        Returns:
            float32 (patches, dim), on the device.
        """
        keys = [(x, y) for x, y in coords.tolist()]
        new = np.array([row for row, key in enumerate(keys) if key not in self._places], np.int64)
        if len(new):
            self._places |= {keys[row]: (len(self._blocks), index) for index, row in enumerate(new.tolist())}
            self._blocks.append(self._encode(coords[new]))
        if len(new) == len(keys):
            return self._blocks[-1]
        places = np.array([self._places[key] for key in keys], np.int64)  # (patches, 2)
        bag = self._device.empty((len(keys), self._blocks[0].shape[1]))
        for index, block in enumerate(self._blocks):
            rows = np.flatnonzero(places[:, 0] == index)
            if len(rows):
                bag[rows] = block[places[rows, 1]]
        return bag
