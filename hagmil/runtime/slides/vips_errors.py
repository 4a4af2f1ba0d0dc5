"""libvips's error buffer, one for the whole process, made to tell which read it was that met a damaged tile.

A tile that is decoded with a warning leaves text in the buffer and raises nothing. With several threads the
text may be another's, and another may take it away. So a read is under suspicion when the buffer holds text
after it, or when anybody took text meanwhile; it is then done again alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyvips


class ErrorBuffer:
    """libvips's error buffer, which all threads share: what stood in it, and whether anybody took from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.disturbances = 0

    def take(self) -> str:
        """Empty the buffer and return its text."""
        with self._lock:
            text: bytes = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
            if text:
                pyvips.vips_lib.vips_error_clear()
                self.disturbances += 1
            return text.decode("utf-8", "replace")

    def was_taken(self) -> None:
        """Count a text that pyvips took when it raised an error."""
        with self._lock:
            self.disturbances += 1


class Gate:
    """Lets many threads decode at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Decode beside others."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Decode when nobody else does, so that what stands in the error buffer is one's own."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
        try:
            with self._changed:
                while self._inside:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


errors = ErrorBuffer()
gate = Gate()


def fetch_region(region: pyvips.Region, x: int, y: int, width: int, height: int) -> pyvips.ffi.buffer:
    """The bytes of a rectangle, as ``Region.fetch`` gives them.

    pyvips empties the error buffer by itself when it raises, unseen by others; here the text is taken in one
    step with counting it.

    Raises:
        pyvips.Error: libvips says that the rectangle cannot be decoded.
    """
    size = pyvips.ffi.new("size_t *")
    pixels = pyvips.vips_lib.vips_region_fetch(region.pointer, x, y, width, height, size)
    if pixels == pyvips.ffi.NULL:
        raise pyvips.Error("unable to fetch from region", errors.take() or "no reason given")
    return pyvips.ffi.buffer(pyvips.ffi.gc(pixels, pyvips.glib_lib.g_free), size[0])
