"""Checks that the files of a bundle or backbone are its own, and that its graphs refer to nothing else.

A digest proves the bytes that were read when the folder was opened. A link lets another program change them later
through another path, so listed files are regular files without links from elsewhere.
"""

from __future__ import annotations

import posixpath
import stat
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from hagmil.bundle.graph_references import GraphReferences, graph_references
from hagmil.errors import BundleError

_PACKAGE = Path(__file__).resolve().parents[1]


def file_problems(folder: Path, names: Collection[str]) -> dict[str, BundleError]:
    """Find listed files that are missing, not regular files of the folder, or have hard links from elsewhere.

    Files of the installed package are exempt from the check for hard links, since package managers link them from
    their cache.

    Args:
        folder: folder of the bundle or backbone; it may itself be reached through a link.
        names: plain relative paths.

    Returns:
        An error for each such file (codes ``file_missing`` and ``linked_file``), by its name.
    """
    real = folder.resolve()
    problems: dict[str, BundleError] = {}
    inodes: dict[str, tuple[int, int]] = {}
    links: dict[str, int] = {}
    for name in names:
        try:
            found = (folder / name).lstat()
        except OSError:
            problems[name] = BundleError(f'"{folder}": file {name} is missing', code="file_missing")
            continue
        if not stat.S_ISREG(found.st_mode) or (folder / name).resolve() != real / name:
            problems[name] = _linked(folder / name, "is a link or not a regular file")
            continue
        inodes[name], links[name] = (found.st_dev, found.st_ino), found.st_nlink
    listed = Counter(inodes.values())
    for name, inode in inodes.items():
        if links[name] > listed[inode] and not real.is_relative_to(_PACKAGE):
            problems[name] = _linked(folder / name, "has a hard link elsewhere, through which it can be changed")
    return problems


def check_listed_files(folder: Path, names: Collection[str]) -> None:
    """Check that listed files are regular files of a folder without links from elsewhere; see :func:`file_problems`.

    Raises:
        BundleError: the first problem.
    """
    for problem in file_problems(folder, names).values():
        raise problem


def check_references(folder: Path, graph: str, listed: Collection[str], domains: Collection[str]) -> GraphReferences:
    """Check that a graph refers only to listed files and listed operators.

    Args:
        folder: folder of the bundle or backbone.
        graph: path of the ONNX file in the folder.
        listed: paths of all listed files.
        domains: listed domains of operators; the standard domain is always allowed.

    Returns:
        What the graph refers to.

    Raises:
        BundleError: the graph is not ONNX (``graph_invalid``), has weights in a file that is not listed
            (``unlisted_file``), or has operators of a domain that is not listed (``unlisted_operators``).
    """
    references = graph_references(folder / graph)
    for name in sorted(references.data_files):
        if posixpath.join(posixpath.dirname(graph), name) not in listed:
            raise BundleError(
                f'"{folder / graph}" has weights in the file {name!r}, which is not listed with a digest; '
                "export it again",
                code="unlisted_file",
            )
    unlisted = sorted(references.domains - set(domains))
    if unlisted:
        raise BundleError(
            f'"{folder / graph}" has operators of {", ".join(map(repr, unlisted))}, which are neither standard '
            "operators of ONNX nor listed; export it again",
            code="unlisted_operators",
        )
    return references


def _linked(path: Path, problem: str) -> BundleError:
    return BundleError(f'"{path}" {problem}; copy the folder with its files (cp -rL)', code="linked_file")
