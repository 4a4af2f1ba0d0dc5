"""The callback through which long operations report progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of the current step, the number of finished items and the total number of items."""


def no_progress(_step: str, _done: int, _total: int) -> None:
    """Discard a progress report."""
