"""Check that the images of a TIFF file can be read as 8-bit grey or RGB pixels.

Every level is checked, not only the first: readers decode a level by its own tags, and a level of another format below
an ordinary level 0 would be misread or decoded to garbage.
"""

from __future__ import annotations

from pathlib import Path

from hagmil.errors import SlideFailed, SlideRejected
from hagmil.runtime.slides.tiff_pyramid import same_shape
from hagmil.runtime.tiles.jpeg_colours import find_contradiction
from hagmil.runtime.tiles.tiff_tags import TiffDirectory, TiffError

_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_SAMPLE_FORMATS = {_SIGNED: "signed", _FLOAT: "floating-point"}
_GREY, _RGB, _YCBCR = (0, 1), 2, 6
_PHOTOMETRICS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab",
    10: "ITULab", 32803: "colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_CHANNELS = {"grey": (1,), "RGB": (3, 4), "YCbCr": (3,)}
_SEPARATE = 2
_OLD_JPEG = 6
_COMPRESSIONS_WITH_YCBCR = frozenset({7, 33003, 33005, 34712})
"""JPEG and JPEG 2000 (two numbers of Aperio, one of others), whose decoders convert YCbCr to RGB."""


def check_pages(path: Path, directories: tuple[TiffDirectory, ...]) -> None:
    """Check that the pages of a file are one pyramid.

    Args:
        path: the file, for messages.
        directories: the pages of the file, at least one.

    Raises:
        SlideRejected: the channels are stored in separate pages (code ``pixel_format``).
        SlideFailed: the first page is a small image before larger ones (code ``unreadable``). Readers would take it
            for level 0, at a scale that its resolution tag does not give.
    """
    first, others = directories[0], directories[1:]
    size = (first.width, first.height)
    if first.samples == 1 and any((page.width, page.height) == size and not page.reduced for page in others):
        raise SlideRejected(
            f'slide "{path.name}" stores its channels or focal planes in separate pages; convert it to RGB',
            code="pixel_format",
        )
    larger = [page for page in (*others, *first.subdirectories) if _is_larger(page, first)]
    if any(not first.tiled or (page.tiled and same_shape(page, first)) for page in larger):
        raise SlideFailed(
            f'slide "{path.name}" starts with a small image before the large one; convert it to a tiled pyramid',
            code="unreadable",
        )


def check_levels(path: Path, levels: tuple[TiffDirectory, ...]) -> None:
    """Check that the pixels of every level are 8-bit grey, RGB or RGBA.

    Args:
        path: the file, for messages.
        levels: the images that may be read as levels, finest first.

    Raises:
        SlideRejected: a level has pixels of another format, or a colour slide has a grey level (code
            ``pixel_format``).
    """
    for index, level in enumerate(levels):
        problem = _problem(level)
        if not problem and _is_grey(level) != _is_grey(levels[0]):
            problem = f"{_name(level.photometric)} pixels, but level 0 has {_name(levels[0].photometric)} pixels"
        if problem:
            raise SlideRejected(
                f'slide "{path.name}" has {problem} at level {index}; convert it to 8-bit RGB', code="pixel_format"
            )


def check_colours(path: Path, levels: tuple[TiffDirectory, ...]) -> None:
    """Check that the TIFF tags and the JPEG streams of every level agree on the colours; see ``jpeg_colours``.

    Args:
        path: the file.
        levels: the images that may be read as levels, finest first.

    Raises:
        SlideRejected: they contradict each other (code ``pixel_format``).
    """
    for index, level in enumerate(levels):
        try:
            problem = find_contradiction(path, level)
        except (TiffError, OSError):
            continue  # reading this level raises the error
        if problem:
            raise SlideRejected(
                f'slide "{path.name}" has {problem} at level {index}, so that its colours are uncertain; '
                "export it again, or correct the tag (tiffset -s 262)",
                code="pixel_format",
            )


def _problem(level: TiffDirectory) -> str:
    """Describe why the pixels of a level cannot be read; empty if they can."""
    if set(level.bits) != {8} or level.sample_format not in (_UNSIGNED, _UNDEFINED):
        bits = "/".join(str(bits) for bits in sorted(set(level.bits)))
        kind = _SAMPLE_FORMATS.get(level.sample_format, "")
        return f"{kind} {bits}-bit pixels".strip()
    if level.compression == _OLD_JPEG:
        return "old-style JPEG compression (6), which is not supported,"
    name = _name(level.photometric)
    if level.samples not in _CHANNELS.get(name, ()):
        return f"{level.samples}-channel {name} pixels (photometric {level.photometric}), neither grey nor RGB,"
    if level.photometric == _YCBCR and level.compression not in _COMPRESSIONS_WITH_YCBCR:
        return f"YCbCr pixels (photometric 6) that are not JPEG (compression {level.compression})"
    if level.photometric == _YCBCR and level.planar == _SEPARATE:
        return "YCbCr pixels (photometric 6) in separate planes"
    return ""


def _is_larger(page: TiffDirectory, other: TiffDirectory) -> bool:
    return page.width > other.width and page.height > other.height


def _is_grey(level: TiffDirectory) -> bool:
    return level.photometric in _GREY


def _name(photometric: int) -> str:
    return _PHOTOMETRICS.get(photometric, "unknown")
