"""Losses and metrics by epoch, for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hagmil._optional import require


class TensorboardLog:
    """Writes numbers by epoch into a TensorBoard folder."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Write numbers of one epoch, and make sure that they are on disk; None is left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()


@contextmanager
def open_tensorboard_log(folder: Path, *, epochs_done: int) -> Iterator[TensorboardLog]:
    """Open a TensorBoard folder to write to.

    Args:
        folder: made if it is missing.
        epochs_done: whatever is there of later epochs is void, since they are trained anew.

    Raises:
        EnvironmentLacks: TensorBoard is not installed.
    """
    require("tensorboard", extra="train")
    writer = require("torch.utils.tensorboard", extra="train").SummaryWriter(folder, purge_step=epochs_done + 1)
    try:
        yield TensorboardLog(writer)
    finally:
        writer.close()
