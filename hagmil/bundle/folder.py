"""The folder of a bundle: reading, checking and writing its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

from hagmil._files import (
    OutputFolder,
    read_limited,
    reporting_output_errors,
    sha256_of,
    sibling_folder,
    write_text,
)
from hagmil._models import first_problem, read_json
from hagmil.bundle.entries import LARGEST_JSON_BYTES, MANIFEST_NAME, FileEntry
from hagmil.bundle.listed_files import check_listed_files, check_references
from hagmil.bundle.manifest import Manifest
from hagmil.errors import BundleError, UsageError


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle.

    Args:
        path: folder of the bundle.
        manifest: contents of ``bundle.json``.
        sha256: digest of the manifest, which identifies the whole bundle.
    """

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle."""
        return self.path / name

    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs: the backbone's, and those of the stages, coarse to fine."""
        return (self.manifest.backbone.onnx, *(stage.onnx for stage in self.manifest.stages))


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read the manifest of a bundle and check its files.

    Args:
        path: folder of the bundle.
        verify: check that the files are those that the manifest lists: no links, sizes and digests as listed, and no
            graph with weights or operators that are not listed.

    Returns:
        The bundle. Its graphs are not loaded; ``load_model`` does that.

    Raises:
        BundleError: there is no bundle, the manifest is invalid, a file is missing or altered, or a graph has weights
            or operators that the manifest does not list.
    """
    path = Path(path)
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleError(f'"{path}" is not a bundle: it has no {MANIFEST_NAME}', code="bundle_missing")
    try:
        text = read_limited(manifest_path, LARGEST_JSON_BYTES)
        manifest = read_json(Manifest, text)
    except (OSError, ValueError) as error:
        raise BundleError(
            f'bundle "{path}": {MANIFEST_NAME} is not valid: {first_problem(error)}', code="bundle_invalid"
        ) from error
    bundle = Bundle(path=path, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())
    if verify:
        check_bundle(bundle)
    return bundle


def check_bundle(bundle: Bundle) -> None:
    """Check that the files of a bundle are those that its manifest lists; see :func:`open_bundle`.

    Raises:
        BundleError: a file is missing, altered or a link, or a graph has weights or operators that are not listed.
    """
    check_listed_files(bundle.path, bundle.manifest.files)
    for name in bundle.manifest.files:
        check_file(bundle, name)
    for graph in bundle.graphs():
        check_graph_references(bundle, graph)


def file_states(bundle: Bundle) -> dict[str, tuple[int, int, int, int] | None]:
    """Device, inode, size and time of every listed file, to find out whether one was changed; None if it is missing."""
    states: dict[str, tuple[int, int, int, int] | None] = {}
    for name in bundle.manifest.files:
        try:
            found = bundle.file(name).stat()
        except OSError:
            states[name] = None
        else:
            states[name] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return states


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that is renamed to ``target`` when the block succeeds.

    Args:
        target: the folder to write.
        overwrite: replace ``target`` if it exists; otherwise a non-empty ``target`` is an error.

    Yields:
        The folder to write to.

    Raises:
        UsageError: ``target`` exists and is not empty.
        EnvironmentLacks: the folder cannot be written (code ``disk_full`` or ``output_unwritable``).
    """
    if target.is_dir() and not overwrite and any(target.iterdir()):
        raise UsageError(f'"{target}" exists; choose another folder or pass --overwrite', code="exists")
    parent = OutputFolder.open(target.parent)
    with reporting_output_errors(target):
        if target.exists() and not target.is_dir():
            raise FileExistsError(f"{target} is a file")
    with sibling_folder(target) as staging:
        yield staging
        parent.require_present()
        with reporting_output_errors(target):
            _replace(target, staging)


def _replace(target: Path, staging: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    replaced = target.parent / f".{target.name}.{uuid4().hex}.old"
    target.rename(replaced)
    try:
        staging.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    try:
        rmtree(replaced)
    except BaseException:
        rmtree(replaced, ignore_errors=True)
        raise


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return size and digest of every file in a folder except the manifest, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json``; all other files of the folder must be complete."""
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def check_graph_references(bundle: Bundle, graph: str) -> None:
    """Check that one graph of a bundle has only weights and operators that the manifest lists.

    Raises:
        BundleError: it is not ONNX, or has other weights or operators.
    """
    check_references(bundle.path, graph, bundle.manifest.files, bundle.manifest.domains)


def check_file(bundle: Bundle, name: str) -> None:
    """Check size and digest of one file of a bundle; the file exists.

    Raises:
        BundleError: the file was altered.
    """
    path, entry = bundle.file(name), bundle.manifest.files[name]
    if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
        raise BundleError(
            f'bundle "{bundle.path}": file {name} was altered (it does not match its digest in the manifest); '
            "copy or export the bundle again",
            code="digest_mismatch",
        )
