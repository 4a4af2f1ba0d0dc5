"""Mutants of slides: how many are read as if they were whole, although their pixels or geometry differ.

``python -m tests.faults.mutated_slides 2000 long`` runs the long form and writes the table of docs/reliability.md to
standard error. It runs in a process of its own, because libvips must not have threads when the children are forked.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.overview import read_overview
from tests.conftest import REPOSITORY
from tests.faults import mutations
from tests.faults.mutations import FAULTS
from tests.runtime.slide_files import JPEG, TiffPage, aperio_pages, picture, write_tiff

DATA = REPOSITORY / "tests" / "data" / "slides"
KINDS = ("read as before", "read with other pixels or geometry", "refused", *FAULTS)
_MOST_PX = 2560


def _tiff(path: Path) -> None:
    pixels = picture(320, 256)
    pages = [
        TiffPage(pixels, 64, JPEG, resolution=(20_000, 20_000)),
        TiffPage(pixels[::2, ::2], 64, JPEG, reduced=True, resolution=(10_000, 10_000)),
    ]
    write_tiff(path, pages)


def _svs(path: Path) -> None:
    write_tiff(path, aperio_pages(picture(480, 480)))


def _dicom(path: Path) -> None:
    shutil.copy(DATA / "boxes_0.dcm", path)


def _ndpi(path: Path) -> None:
    shutil.copy(DATA / "fluorescence.ndpi", path)


SLIDES: dict[str, Callable[[Path], None]] = {"TIFF": _tiff, "SVS": _svs, "DICOM": _dicom, "NDPI": _ndpi}


def content_of(path: Path) -> str:
    """Digest of the geometry, spacing, levels and overview of a slide."""
    digest = hashlib.sha256()
    with open_slide(path) as slide:
        digest.update(repr((slide.levels, slide.spacing_um)).encode())
        for level in slide.levels:
            size = min(level.width, _MOST_PX), min(level.height, _MOST_PX)
            digest.update(slide.read_region(level.index, 0, 0, *size).tobytes())
        if slide.spacing_um is not None:
            digest.update(read_overview(slide, 8.0).pixels.tobytes())
    return digest.hexdigest()


def one_byte_changed(data: bytes, seed: int, *, text: bool = False) -> bytes:  # noqa: ARG001 - as in mutate
    """Change one byte at any place of a file."""
    chance = random.Random(seed)
    changed = bytearray(data)
    changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
    return bytes(changed)


def mutate_slide(kind: str, folder: Path, count: int, *, one_byte: bool = False) -> dict[str, int]:
    """Number of mutants by kind of ending.

    Args:
        kind: a format of ``SLIDES``.
        folder: an empty folder.
        count: number of mutants.
        one_byte: change one byte at any place, instead of the mutations of :mod:`tests.faults.mutations`.
    """
    path = folder / f"slide.{kind.lower()}"
    SLIDES[kind](path)
    whole = _in_child(lambda: content_of(path))
    found = dict.fromkeys(KINDS, 0)
    with mock.patch.object(mutations, "mutate", one_byte_changed if one_byte else mutations.mutate):
        ended = mutations.endings(path, lambda: content_of(path), count=count)
    for ending in ended:
        if ending.kind == "read":
            found["read as before" if ending.detail == whole else "read with other pixels or geometry"] += 1
        else:
            found[ending.kind] += 1
            if ending.kind in FAULTS:
                sys.stderr.write(f"{kind}: mutant {ending.seed}: {ending.kind}: {ending.detail}\n")
    return found


def _in_child(read: Callable[[], str]) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, read().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    assert text, "the slide itself cannot be read"
    return text


def table(found: dict[str, dict[str, int]]) -> str:
    """The table of docs/reliability.md."""
    lines = [f"| format | mutants | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for kind, counted in found.items():
        total = sum(counted.values())
        cells = [f"{counted[name]} ({counted[name] / total:.1%})" if counted[name] else "0" for name in KINDS]
        lines.append(f"| {kind} | {total:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(count: int, *, long: bool = False) -> None:
    """Mutate a slide of every format; write the counts as JSON, and the table to standard error.

    Args:
        count: number of mutants of each slide.
        long: also change single bytes.
    """
    found = {}
    for kind in SLIDES:
        for one_byte in (False, True) if long else (False,):
            with tempfile.TemporaryDirectory() as folder:
                name = f"{kind}, one byte changed" if one_byte else kind
                found[name] = mutate_slide(kind, Path(folder), count, one_byte=one_byte)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stderr.write(table(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), long=sys.argv[2:] == ["long"])
