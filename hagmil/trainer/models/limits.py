"""Limits of the sizes of models, so that a wrong number in a configuration or checkpoint does not take all memory."""

from __future__ import annotations

from typing import Annotated

from hagmil._models import Within

LARGEST_MODEL = 2**28
"""Largest number of weights of one stage model: 1 GiB in float32."""

LayerWidth = Annotated[int, Within(1, 8192)]
"""Width of a layer."""

Dropout = Annotated[float, Within(0, 0.999)]
"""Share of the values that dropout sets to zero."""

LossWeight = Annotated[float, Within(0, 10**6)]
"""Weight of a loss."""
