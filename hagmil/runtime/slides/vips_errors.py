"""Detect damaged tiles by the text in libvips's error buffer.

libvips has one error buffer per process. Decoding a damaged tile may leave a warning in the buffer without raising an
error. With several threads, the text may come from another thread's read, and another thread may clear it. A read is
therefore suspect if the buffer contains text afterwards, or if any thread took text from it in the meantime. The caller
repeats a suspect read while no other thread decodes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyvips


class ErrorBuffer:
    """The error buffer of libvips, and how often any thread has taken text from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken = 0

    def take(self) -> str:
        """Clear the buffer and return its text."""
        with self._lock:
            text: bytes = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
            if text:
                pyvips.vips_lib.vips_error_clear()
                self.taken += 1
            return text.decode("utf-8", "replace")

    def count_taken(self) -> None:
        """Count text that pyvips took from the buffer when it raised an error."""
        with self._lock:
            self.taken += 1


class DecodeLock:
    """Allows either many threads or one exclusive thread to decode."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decoding = 0
        self._exclusive = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Decode in parallel with other threads."""
        with self._changed:
            while self._exclusive:
                self._changed.wait()
            self._decoding += 1
        try:
            yield
        finally:
            with self._changed:
                self._decoding -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Decode while no other thread decodes, so that any text in the error buffer is this thread's."""
        with self._changed:
            while self._exclusive:
                self._changed.wait()
            self._exclusive = True
        try:
            with self._changed:
                while self._decoding:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()


error_buffer = ErrorBuffer()
decode_lock = DecodeLock()


def fetch_region(region: pyvips.Region, x: int, y: int, width: int, height: int) -> pyvips.ffi.buffer:
    """Return the bytes of a rectangle, as ``Region.fetch`` does.

    When pyvips raises an error it clears the error buffer, and other threads cannot notice. This function takes and
    counts the text in one step.

    Raises:
        pyvips.Error: libvips cannot decode the rectangle.
    """
    size = pyvips.ffi.new("size_t *")
    pixels = pyvips.vips_lib.vips_region_fetch(region.pointer, x, y, width, height, size)
    if pixels == pyvips.ffi.NULL:
        raise pyvips.Error("unable to fetch from region", error_buffer.take() or "no reason given")
    return pyvips.ffi.buffer(pyvips.ffi.gc(pixels, pyvips.glib_lib.g_free), size[0])
