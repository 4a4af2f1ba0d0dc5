"""TensorBoard log of losses and metrics by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hagmil._optional import require


class TensorboardLog:
    """Writer of values by epoch into a TensorBoard folder."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Write the values of one epoch and flush them to disk; None is left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()


@contextmanager
def open_tensorboard_log(folder: Path, *, epochs_done: int) -> Iterator[TensorboardLog]:
    """Open a TensorBoard folder for writing.

    Args:
        folder: the folder; created if it is missing.
        epochs_done: number of finished epochs; values of later epochs are discarded, since these are trained again.

    Raises:
        EnvironmentLacks: TensorBoard is not installed.
    """
    require("tensorboard", extra="train")
    writer = require("torch.utils.tensorboard", extra="train").SummaryWriter(folder, purge_step=epochs_done + 1)
    try:
        yield TensorboardLog(writer)
    finally:
        writer.close()
