"""MIL bags of handwritten digits with a hierarchy of labels, like the MNIST bags of Ilse et al. 2018 (section 4.3).

The images are part of scikit-learn: 1797 real digits of 8 x 8 pixels (Alpaydin and Kaynak 1998). An instance is an
image; its features are its 64 grey values from 0 to 1.

1. The images of each digit are split into training (60 %), validation (20 %) and test (20 %), without overlap.
2. Six digits are keys: 0, 6, 9 (coarse class "round") and 1, 4, 7 ("straight"). The digits 2, 3, 5, 8 are background.
3. A bag of 10, 15 or 20 images contains one or two keys of the same digit; the rest is background. The fine label is
   that digit, the coarse label its coarse class. A model gets the label of the bag only.
4. Classes and sizes are balanced. The images of each bag are drawn independently, without repetition inside a bag.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

COARSE = ("round", "straight")
FINE = ("0", "6", "9", "1", "4", "7")
FINE_TO_COARSE = (0, 0, 0, 1, 1, 1)
BACKGROUND = (2, 3, 5, 8)
BAG_SIZES = (10, 15, 20)
MAX_KEYS = 2
FEATURES = 64
_SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True, slots=True)
class Bags:
    """Bags of one size.

    Args:
        features: float32 (bags, images, 64).
        labels: int64 (bags,), fine classes.
        keys: bool (bags, images), whether each image is a key; not given to the models.
        images: int64 (bags, images), numbers of the images in the data set.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    keys: NDArray[np.bool_]
    images: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DigitsCohort:
    """Bags of each part, one entry for each bag size."""

    train: tuple[Bags, ...]
    val: tuple[Bags, ...]
    test: tuple[Bags, ...]


def make_cohort(seed: int, *, bags_per_class: tuple[int, int, int] = (30, 20, 50)) -> DigitsCohort:
    """Split the images and make bags.

    Args:
        seed: seed of the split and the bags.
        bags_per_class: bags of each fine class for training, validation and test.
    """
    generator = np.random.default_rng(seed)
    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)
    pools: list[dict[int, NDArray[np.int64]]] = [{}, {}, {}]
    for digit in range(10):  # step 1
        places = generator.permutation(np.flatnonzero(digits.target == digit))
        cuts = np.round(np.cumsum(_SHARES)[:-1] * len(places)).astype(int)
        for pool, share in zip(pools, np.split(places, cuts), strict=True):
            pool[digit] = share
    parts = [_bags(pixels, pool, count, generator) for pool, count in zip(pools, bags_per_class, strict=True)]
    return DigitsCohort(*parts)


def _bags(
    pixels: NDArray[np.float32], pool: dict[int, NDArray[np.int64]], bags_per_class: int, generator: np.random.Generator
) -> tuple[Bags, ...]:
    background = np.concatenate([pool[digit] for digit in BACKGROUND])
    labels = np.repeat(np.arange(len(FINE)), bags_per_class)
    sizes = np.array(BAG_SIZES)[np.arange(len(labels)) % len(BAG_SIZES)]  # step 4
    parts = []
    for size in BAG_SIZES:
        chosen_labels = labels[sizes == size]
        images = np.zeros((len(chosen_labels), size), np.int64)
        keys = np.zeros((len(chosen_labels), size), np.bool_)
        for place, label in enumerate(chosen_labels):  # step 3
            count = int(generator.integers(1, MAX_KEYS + 1))
            chosen = generator.choice(pool[int(FINE[label])], count, replace=False)
            rest = generator.choice(background, size - count, replace=False)
            order = generator.permutation(size)
            images[place] = np.concatenate([chosen, rest])[order]
            keys[place] = (np.arange(size) < count)[order]
        parts.append(Bags(pixels[images], chosen_labels.astype(np.int64), keys, images))
    return tuple(parts)
