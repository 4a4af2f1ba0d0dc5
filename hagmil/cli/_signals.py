"""SIGINT and SIGTERM end a command with exit code 6 within two seconds.

1. The first signal raises KeyboardInterrupt in the main thread. The command ends in order: it writes what is finished
   and removes its temporary files. Later signals have no effect.
2. Python calls a signal handler only between two instructions of the main thread. A function in C may run for longer,
   and an exception in a function that C calls is lost. A second thread is therefore informed of signals through a pipe.
   If the command has not ended in time, this thread removes the temporary files and ends the process.
"""

from __future__ import annotations

import os
import signal
import threading

TYPE_CHECKING = False  # true for type checkers
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 6

_PATIENCE_S = 1.5


class StopSignals:
    """Handler of the signals that stop a command."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._pipe: tuple[int, int] | None = None

    def watch(self) -> None:
        """Start to handle the signals; does nothing outside the main thread, where Python cannot handle signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = None
        for number in SIGNALS:
            signal.signal(number, self._stop)
        if self._pipe is None:
            self._pipe = os.pipe()
            threading.Thread(target=self._end_in_time, name="hagmil-signals", daemon=True).start()
        os.set_blocking(self._pipe[1], False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def finish(self) -> None:
        """Ignore signals from now on, since the command has ended."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Step 1."""
        if self.received is not None:
            return
        self.received = signal.Signals(number)
        raise KeyboardInterrupt

    def _end_in_time(self) -> NoReturn:
        """Step 2."""
        assert self._pipe is not None
        while os.read(self._pipe[0], 1)[0] not in SIGNALS:
            pass
        threading.Event().wait(_PATIENCE_S)
        from hagmil._files import remove_own_temporaries

        remove_own_temporaries()
        os.write(2, b"error: stopped\n")
        os._exit(EXIT_CODE)


stop_signals = StopSignals()
