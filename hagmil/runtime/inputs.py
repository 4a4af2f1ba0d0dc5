"""Resolve files, folders, globs or a CSV to slides with unique ids."""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hagmil._tables import TableRow, read_table
from hagmil.errors import UsageError
from hagmil.runtime.names import LONGEST_BYTES, path_digest, safe_name

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".btf", ".tf8", ".tf2", ".ptif", ".ptiff", ".qptiff"}
    | {".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"}
)
"""Suffixes of slides in a folder; a file that is given by its path may have any suffix."""

_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class SlideRequest:
    """One slide of a run.

    Args:
        slide_id: unique in the run and a safe folder name: the file's stem, with a digest of the path if several files
            have the same stem or if the stem is not a safe name.
        given: the path as it was given.
        path: the file to read.
        spacing_um: micrometres per level-0 pixel, which overrides the file's; None uses the file's.
        id_given: whether the id comes from a table of slides; it is then never changed.
    """

    slide_id: str
    given: str
    path: Path
    spacing_um: float | None = None
    id_given: bool = False


def slide_request(slide: str | Path, *, spacing_um: float | None = None) -> SlideRequest:
    """Name one slide file by its stem; the file is not opened.

    Args:
        slide: the file.
        spacing_um: micrometres per level-0 pixel, which overrides the file's.

    Raises:
        UsageError: the spacing is not above 0.
    """
    _check_spacing(spacing_um)
    path = Path(slide)
    return SlideRequest(_slide_id(path), str(slide), path, spacing_um)


def slide_requests(
    arguments: str | Path | Sequence[str | Path], *, table: str | Path | None = None, spacing_um: float | None = None
) -> tuple[SlideRequest, ...]:
    """Resolve files, folders, globs and a table to slides, in the order given, each file once.

    A file that does not exist is kept, so that it gets a row in the results. A folder gives the slides directly inside
    it, sorted by name. A DICOM series consists of several ``.dcm`` files in one folder; the folder gives the first of
    them.

    Args:
        arguments: files, folders or globs.
        table: a CSV with the columns slide_id, path and, optionally, spacing_um; relative paths start at its folder.
        spacing_um: micrometres per level-0 pixel of all slides for which the table has none.

    Raises:
        UsageError: no slide is given, a glob or folder has no slides, or the table is invalid.
    """
    _check_spacing(spacing_um)
    arguments = [arguments] if isinstance(arguments, str | Path) else arguments
    unique: dict[Path, tuple[str, Path]] = {}
    for given, path in (entry for argument in arguments for entry in _expand(str(argument))):
        unique.setdefault(path.absolute(), (given, path))
    files = list(unique.values())
    ids = [_slide_id(path) for _, path in files]
    shared = Counter(slide_id.casefold() for slide_id in ids)  # some file systems ignore upper and lower case
    requests = [
        SlideRequest(unique_id(path) if shared[slide_id.casefold()] > 1 else slide_id, given, path, spacing_um)
        for slide_id, (given, path) in zip(ids, files, strict=True)
    ]
    if table is not None:
        requests += _read_table(Path(table), spacing_um)
    _check_unique(requests)
    if not requests:
        raise UsageError("no slides given; pass files, folders, globs, or --slides CSV")
    return tuple(requests)


def unique_id(path: Path) -> str:
    """Return an id for a slide whose stem is that of another slide: the stem and a digest of the absolute path."""
    digest = path_digest(path)
    return f"{safe_name(path.stem, LONGEST_BYTES - len(digest) - 1)}-{digest}"


def _slide_id(path: Path) -> str:
    return path.stem if safe_name(path.stem) == path.stem else unique_id(path)


def _check_spacing(spacing_um: float | None) -> None:
    if spacing_um is not None and not (math.isfinite(spacing_um) and spacing_um > 0):
        raise UsageError(f"--spacing-um must be a number above 0, not {spacing_um}")


def _expand(argument: str) -> list[tuple[str, Path]]:
    path = Path(argument)
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if _is_slide_name(entry))
        slides = _one_of_each_series(inside)
        if not slides:
            raise UsageError(
                f'folder "{argument}" contains no slide ({", ".join(sorted(SLIDE_SUFFIXES))}); '
                f'to search its subfolders, pass the glob "{path / "**" / "*.svs"}"'
            )
        return [(str(slide), slide) for slide in slides]
    if _GLOB_CHARACTERS & set(argument) and not path.exists():
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            raise UsageError(f'no file matches "{argument}"')
        files = {Path(match): match for match in matches if Path(match).is_file()}
        slides = _one_of_each_series([path for path in files if not _is_finder_metadata(path)])
        return [(files[slide], slide) for slide in slides]
    return [(argument, path)]


def _is_slide_name(path: Path) -> bool:
    return path.suffix.lower() in SLIDE_SUFFIXES and not _is_finder_metadata(path)


def _is_finder_metadata(path: Path) -> bool:
    """Whether a file is one of those that macOS stores beside each file on other file systems."""
    return path.name.startswith("._")


def _one_of_each_series(paths: list[Path]) -> list[Path]:
    """Keep the first file of each DICOM series, and all other files."""
    dicom = [path for path in paths if path.suffix.lower() == ".dcm"]
    if not dicom:
        return paths
    from hagmil.runtime.slides.open import dicom_series  # loads OpenSlide

    seen: set[str] = set()
    first = set()
    for path in dicom:
        series = dicom_series(path)
        if series is None or series not in seen:
            first.add(path)
        if series is not None:
            seen.add(series)
    return [path for path in paths if path.suffix.lower() != ".dcm" or path in first]


def _read_table(table: Path, spacing_um: float | None) -> list[SlideRequest]:
    rows = read_table(table, ("slide_id", "path"), optional=("spacing_um",), error=UsageError)
    return [_table_row(table, row, spacing_um) for row in rows]


def _table_row(table: Path, row: TableRow, spacing_um: float | None) -> SlideRequest:
    line, slide_id, given, text = row.line, row["slide_id"], row["path"], row["spacing_um"]
    if not slide_id or not given:
        raise UsageError(f'"{table}", line {line}: slide_id and path must not be empty')
    plain = slide_id.lstrip("-=+@")  # ids of a table may start with these
    if safe_name(plain) != plain:
        raise UsageError(
            f'"{table}", line {line}: slide_id {slide_id!a} is not a valid folder name; use letters, digits, '
            f'".", "-" and "_", at most {LONGEST_BYTES} bytes'
        )
    try:
        row_spacing_um = float(text) if text else None
    except ValueError as error:
        raise UsageError(f'"{table}", line {line}: spacing_um "{text}" is not a number') from error
    if row_spacing_um is not None and row_spacing_um <= 0:
        raise UsageError(f'"{table}", line {line}: spacing_um must be above 0, not {row_spacing_um}')
    spacing_um = spacing_um if row_spacing_um is None else row_spacing_um
    return SlideRequest(slide_id, given, table.parent / given, spacing_um, id_given=True)


def _check_unique(requests: list[SlideRequest]) -> None:
    repeated = [name for name, count in Counter(request.slide_id for request in requests).items() if count > 1]
    if repeated:
        raise UsageError(f"slide_id is not unique: {', '.join(sorted(repeated))}")
