"""Find the levels of a TIFF pyramid, its spacing and its objective power from the TIFF tags.

The rules are those of OpenSlide, with two intended differences: SubIFDs are levels as well (OpenSlide finds level 0
only), and an image whose shape differs from level 0 is never a level.

1. Aperio: the levels are the tiled pages in file order. Thumbnail, label and macro are stored in strips.
2. Other files with a tiled first page: the first page, and all tiled pages marked as reduced, widest first.
3. If rule 2 finds one level only: the SubIFDs of the first page that are tiled and marked as reduced.
4. A first page that is stored in strips is the only level.
5. A level must be smaller than the previous one and have the shape of level 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hagmil.errors import SlideRejected
from hagmil.runtime.slides.slide import SlideMetadata
from hagmil.runtime.slides.spacing import is_plausible
from hagmil.runtime.tiles.tiff_tags import TiffDirectory
from hagmil.units import Level

APERIO, GENERIC_TIFF = "aperio", "generic-tiff"

_SHAPE_TOLERANCE = 0.01
_RESOLUTION_TOLERANCE = 0.1
_MICRONS_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
_INTERLEAVED = 1
_LIBVIPS_COMPRESSIONS = frozenset({1, 5, 7, 8, 32773, 32946, 50001})
"""None, LZW, JPEG, Deflate (two numbers), PackBits, WebP. The binary package of libvips cannot decode Zstandard."""


def pyramid_levels(directories: tuple[TiffDirectory, ...], vendor: str) -> tuple[TiffDirectory, ...]:
    """Select the images that are levels, finest first.

    Args:
        directories: the pages of the file, at least one.
        vendor: ``aperio`` or ``generic-tiff``.
    """
    candidates = openslide_levels(directories, vendor)
    levels = _decreasing(candidates)
    first = directories[0]
    if first.tiled and vendor != APERIO and len(levels) == 1:
        levels = _decreasing([first, *_widest_first(_reduced(first.subdirectories))])  # rule 3
    return levels


def openslide_levels(directories: tuple[TiffDirectory, ...], vendor: str) -> tuple[TiffDirectory, ...]:
    """Select the images that OpenSlide reads as levels, whatever their shape, finest first.

    Args:
        directories: the pages of the file, at least one.
        vendor: ``aperio`` or ``generic-tiff``.
    """
    first = directories[0]
    if not first.tiled:
        return (first,)  # rule 4
    if vendor == APERIO:
        return tuple(page for page in directories if page.tiled)  # rule 1
    return tuple(_widest_first([first, *_reduced(directories[1:])]))  # rule 2


def read_metadata(levels: tuple[TiffDirectory, ...], vendor: str) -> SlideMetadata:
    """Read the metadata of a slide from its tags, with the values that OpenSlide would report.

    Args:
        levels: the images that are levels, finest first.
        vendor: ``aperio`` or ``generic-tiff``.
    """
    finest = levels[0]
    properties = _aperio_properties(finest.description) if vendor == APERIO else {}
    spacing_um = _number(properties.get("MPP"))
    both_axes = None if spacing_um is None else (spacing_um, spacing_um)
    return SlideMetadata(
        vendor=vendor,
        levels=tuple(
            Level(index, level.width, level.height, _downsample(finest, level)) for index, level in enumerate(levels)
        ),
        spacing_xy_um=both_axes if vendor == APERIO else _resolution_um(finest),
        objective_power=_number(properties.get("AppMag")),
    )


def libvips_can_read(levels: tuple[TiffDirectory, ...]) -> bool:
    """Return whether libvips decodes all levels: supported compression, interleaved channels, no missing tiles.

    Tiles without bytes are glass that was not scanned. libvips fails on them; OpenSlide returns transparent pixels.
    """
    return all(
        level.compression in _LIBVIPS_COMPRESSIONS and level.planar == _INTERLEAVED and not level.missing_tiles
        for level in levels
    )


def _reduced(directories: tuple[TiffDirectory, ...]) -> list[TiffDirectory]:
    return [directory for directory in directories if directory.tiled and directory.reduced]


def _widest_first(directories: list[TiffDirectory]) -> list[TiffDirectory]:
    return sorted(directories, key=lambda directory: -directory.width)


def _decreasing(candidates: Sequence[TiffDirectory]) -> tuple[TiffDirectory, ...]:
    """Apply rule 5."""
    levels = list(candidates[:1])
    for candidate in candidates[1:]:
        smaller = candidate.width < levels[-1].width and candidate.height < levels[-1].height
        if smaller and same_shape(candidate, levels[0]):
            levels.append(candidate)
    return tuple(levels)


def same_shape(image: TiffDirectory, larger: TiffDirectory) -> bool:
    """Return whether two images have the same ratio of width and height. Rounded sides may be off by one pixel."""
    across, down = larger.width / image.width, larger.height / image.height
    rounding = 1 / image.width + 1 / image.height
    return abs(across - down) <= max(across, down) * (_SHAPE_TOLERANCE + rounding)


def check_resolutions(path: Path, levels: tuple[TiffDirectory, ...]) -> None:
    """Check that the resolution tags of the levels agree with the dimensions of the levels.

    The tags of a level must give the spacing of level 0 times the downsample of the level. Many programs copy the tags
    of level 0 to all levels; this is accepted too. Implausible spacings are ignored.

    Args:
        path: the file, for messages.
        levels: the images that are levels, finest first.

    Raises:
        SlideRejected: a level contradicts level 0 (code ``spacing_contradictory``).
    """
    spacings = [_resolution_um(level) for level in levels]
    if spacings[0] is None or not is_plausible(spacings[0]):
        return
    finest_um = spacings[0][0]
    for index, (level, spacing_xy_um) in enumerate(zip(levels, spacings, strict=True)):
        if spacing_xy_um is None or not is_plausible(spacing_xy_um):
            continue
        ratio, downsample = spacing_xy_um[0] / finest_um, _downsample(levels[0], level)
        if all(abs(ratio / wanted - 1) > _RESOLUTION_TOLERANCE for wanted in (1, downsample)):
            raise SlideRejected(
                f'slide "{path.name}" has contradictory resolution tags: '
                f"level {index} has {spacing_xy_um[0]:.4g} um/px and is {downsample:.4g} times "
                f"smaller than level 0, which has {finest_um:.4g} um/px; "
                "pass --spacing-um with the spacing of level 0",
                code="spacing_contradictory",
            )


def _downsample(finest: TiffDirectory, level: TiffDirectory) -> float:
    return (finest.width / level.width + finest.height / level.height) / 2


def _resolution_um(directory: TiffDirectory) -> tuple[float, float] | None:
    microns = _MICRONS_PER_UNIT.get(directory.resolution_unit)
    if microns is None or directory.resolution is None:
        return None
    x, y = directory.resolution
    return microns / x, microns / y


def _aperio_properties(description: str) -> dict[str, str]:
    """Parse the ``key = value`` fields of an Aperio description, which are separated by ``|``."""
    fields = (field.partition("=") for field in description.split("|")[1:])
    return {key.strip(): value.strip() for key, sign, value in fields if sign}


def _number(text: str | None) -> float | None:
    try:
        return float(text.replace(",", ".")) if text is not None else None
    except ValueError:
        return None
