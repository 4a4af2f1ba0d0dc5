"""The files of a slide: their digest, and whether they change while the slide is read.

A slide is one file, except for:

- MRXS: the ``.mrxs`` file and all files of the folder with its stem;
- DICOM: all files of the series in the same folder;
- VMS and VMU: the index file and the files in the same folder that it names.

The digest identifies the content of a slide and must be quick for files of gigabytes on network storage:

1. A slide of one file of at most 64 MiB: the SHA-256 of the file.
2. Otherwise, the SHA-256 of a line ``hagmil-slide-digest 1 SIZE SIZE ...`` with the sizes of the files in the order of
   their paths, followed by their bytes: all bytes if the files have at most 64 MiB together, else step 3.
3. Of larger slides, 256 KiB at the start and at the end of each file, and 64 blocks of 256 KiB at equal distances over
   all files. A change between the blocks that keeps the sizes is not detected.

File names and times are not part of the digest, so that a copy of a slide has the same digest.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hagmil.errors import SlideError, SlideFailed
from hagmil.runtime.slides.openslide_reader import dicom_series

WHOLE_BYTES = 64 << 20
BLOCK_BYTES = 256 << 10
BLOCKS = 64

_DICOM_MAGIC_AT, _DICOM_MAGIC = 128, b"DICM"
_DICOM_HEADER_BYTES = 64 << 10
_INDEX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one version of a file from another without reading it.

    Args:
        path: the file.
        device: number of its file system.
        inode: number of the file; a file that replaces another by renaming has another number.
        size: bytes.
        mtime_ns: time of the last change, in nanoseconds.
    """

    path: Path
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Return the present state; None if the file is missing or is not a regular file."""
        try:
            found = path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class SlideFiles:
    """The files of a slide as they were before it was opened.

    Args:
        path: the slide.
        states: the state of each file, by path; none if the slide is missing or is not a regular file.
    """

    path: Path
    states: tuple[FileState, ...]

    @classmethod
    def of(cls, path: Path) -> SlideFiles:
        """Find the files of a slide.

        Raises:
            SlideFailed: no path of a file contains a NUL (code ``not_found``).
        """
        if "\0" in str(path):
            raise SlideFailed(f'slide "{path}" does not exist: its path contains a NUL', code="not_found")
        own = FileState.of(path)
        if own is None:
            return cls(path, ())
        others = (FileState.of(file) for file in _companions(path))
        states = [own, *(state for state in others if state is not None)]
        return cls(path, tuple(sorted(states, key=lambda state: state.path)))

    def sha256(self) -> str:
        """Return the digest of the slide; see the module's description.

        Raises:
            SlideFailed: a file is missing or cannot be read (code ``not_found`` or ``unreadable``).
        """
        if not self.states:
            raise SlideFailed(f'slide "{self.path}" does not exist or is not a file', code="not_found")
        try:
            return _digest(self.states)
        except OSError as error:
            problem = f'slide "{self.path}" cannot be read: {error.strerror}'
            raise SlideFailed(problem, code="unreadable") from error

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Run a block that reads the slide, and require that the files are unchanged at its end.

        Raises:
            SlideFailed: a file was changed or replaced (code ``slide_changed``), also if the block raises an error of
                the slide, since the change explains it.
        """
        try:
            yield
        except SlideError as error:
            self._require_unchanged(error)
            raise
        self._require_unchanged(None)

    def _require_unchanged(self, cause: SlideError | None) -> None:
        for state in self.states:
            if FileState.of(state.path) != state:
                raise SlideFailed(
                    f'slide "{self.path.name}" was changed or replaced while it was read ("{state.path.name}"); '
                    "run it again when the file is complete",
                    code="slide_changed",
                ) from cause


def slide_sha256(path: Path) -> str:
    """Return the digest of a slide; see :class:`SlideFiles`."""
    return SlideFiles.of(path).sha256()


def _companions(path: Path) -> list[Path]:
    """The other files of a slide."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".mrxs":
            return list(path.with_suffix("").iterdir())
        if suffix in (".vms", ".vmu"):
            return _named_files(path)
        if _has_dicom_magic(path):
            return files_of_series(path)
    except OSError:  # the reader of the format reports what is missing
        return []
    return []


def _named_files(index: Path) -> list[Path]:
    """The files that the index of a VMS or VMU slide names: lines ``key=file name``."""
    with index.open("rb") as file:
        lines = file.read(_INDEX_BYTES).decode("utf-8", "replace").splitlines()
    names = {line.partition("=")[2].strip() for line in lines} - {"", index.name}
    return [index.with_name(name) for name in names if "/" not in name and "\0" not in name and name not in (".", "..")]


def _has_dicom_magic(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_DICOM_MAGIC_AT)
        return file.read(len(_DICOM_MAGIC)) == _DICOM_MAGIC


def files_of_series(path: Path) -> list[Path]:
    """The other DICOM files of the folder whose header contains the series' number."""
    series = dicom_series(path)
    if series is None:
        return []
    found = []
    for other in path.parent.iterdir():
        if other.name != path.name and FileState.of(other) is not None:
            with other.open("rb") as file:
                header = file.read(_DICOM_HEADER_BYTES)
            if header[_DICOM_MAGIC_AT:].startswith(_DICOM_MAGIC) and series.encode() in header:
                found.append(other)
    return found


def _digest(states: tuple[FileState, ...]) -> str:
    digest = hashlib.sha256()
    total = sum(state.size for state in states)
    if len(states) > 1 or total > WHOLE_BYTES:
        digest.update(f"hagmil-slide-digest 1 {' '.join(str(state.size) for state in states)}\n".encode())
    start, block = 0, memoryview(bytearray(BLOCK_BYTES))
    for state in states:
        with state.path.open("rb") as file:
            for offset in _offsets(start, state.size, total):
                file.seek(offset)
                digest.update(block[: file.readinto(block)])
        start += state.size
    return digest.hexdigest()


def _offsets(start: int, size: int, total: int) -> Iterable[int]:
    """Where the blocks of a file that are hashed begin. ``start`` is the file's place among all files."""
    if total <= WHOLE_BYTES:
        return range(0, size, BLOCK_BYTES)
    places = (round(index * (total - BLOCK_BYTES) / (BLOCKS - 1)) - start for index in range(BLOCKS))
    inside = {place for place in places if 0 <= place < size}
    return sorted({0, max(0, size - BLOCK_BYTES), *inside})
