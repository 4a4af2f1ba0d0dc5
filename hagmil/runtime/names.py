"""Safe names of folders for slides, and text that can be stored for names that are not Unicode."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

LONGEST_BYTES = 180
"""Longest name: a temporary file adds about 50 bytes, and file systems allow 255."""

_UNSTORABLE = re.compile("[\ud800-\udfff]")
_UNSAFE = re.compile("[/\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE_START = re.compile(r"^[-=+@. ]+")
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
)
_OUTPUTS = frozenset({"results.csv"})


def safe_name(text: str, longest_bytes: int = LONGEST_BYTES) -> str:
    """Turn any text into the name of a folder that is safe on every system. Safe names stay as they are.

    Control characters, ``/`` and bytes that are not UTF-8 become ``_``, as do leading dashes, dots, spaces and
    characters that start a formula in spreadsheets. Trailing dots and spaces are removed. Names that Windows reserves
    and the name of the table of results get a leading ``_``. Names of more than ``longest_bytes`` are cut off.
    """
    name = _UNSAFE_START.sub("_", _UNSAFE.sub("_", text))
    name = name.encode()[:longest_bytes].decode(errors="ignore").rstrip(". ") or "_"
    reserved = name.partition(".")[0].lower() in _RESERVED or name.lower() in _OUTPUTS
    return f"_{name}" if reserved else name


def path_digest(path: Path) -> str:
    """Return eight hexadecimal digits that tell paths apart."""
    return hashlib.sha256(str(path.absolute()).encode(errors="surrogatepass")).hexdigest()[:8]


def storable(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8 (``\\xff``), so that the name can be stored as text."""
    return _UNSTORABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"  # PEP 383
