"""The output folder of runs: the results it holds, and the folder names of the slides of a new run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hagmil.errors import DataError, UsageError
from hagmil.runtime.inputs import SlideRequest, unique_id
from hagmil.runtime.names import storable
from hagmil.runtime.results.result import RESULT_NAME, Result, read_result
from hagmil.runtime.results.results_table import TABLE_NAME

_log = logging.getLogger(__name__)


def require_choice(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Require ``resume`` or ``overwrite`` for an output folder that holds results.

    Args:
        out: the folder, which may be missing.
        resume: keep the results that a run would repeat.
        overwrite: replace the results of the slides of a run.

    Raises:
        UsageError: the folder holds results and neither is set (code ``exists``), or both are set.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; pass one of them")
    holds_results = (out / TABLE_NAME).exists() or next(out.glob(f"*/{RESULT_NAME}"), None) is not None
    if holds_results and not (resume or overwrite):
        raise UsageError(
            f'"{out}" holds results; pass --resume to add slides and keep the results that a run would repeat, or '
            "--overwrite to replace the results of these slides",
            code="exists",
        )


def read_results(out: Path) -> dict[str, Result]:
    """Read the results of all earlier runs in an output folder.

    Args:
        out: the folder, which may be missing.

    Returns:
        The results by slide id, sorted. A result that cannot be read, or whose folder was renamed, is left out.
    """
    found: dict[str, Result] = {}
    for path in sorted(out.glob(f"*/{RESULT_NAME}")):
        try:
            result = read_result(path.parent)
        except DataError as error:
            _log.warning("%s; it is left out", error.message)
            continue
        if result.slide_id == path.parent.name:
            found[result.slide_id] = result
        else:
            _log.warning('"%s" has the slide_id "%s" and is left out', path, result.slide_id)
    return found


def with_ids_of(requests: Sequence[SlideRequest], earlier: Mapping[str, Result]) -> tuple[SlideRequest, ...]:
    """Name the slides of a run so that no slide replaces the result of another one with the same file name.

    A slide with an earlier result keeps its id. A new slide whose id is that of another slide gets a unique id. Ids
    from a table of slides are never changed.

    Args:
        requests: the slides, with ids that are unique among them.
        earlier: the earlier results in the output folder by slide id.
    """
    id_of = {str(Path(result.slide).absolute()): slide_id for slide_id, result in earlier.items()}
    id_of |= {result.slide: slide_id for slide_id, result in earlier.items()}
    used = {request.slide_id for request in requests}
    renamed = []
    for request in requests:
        slide_id = request.slide_id
        if not request.id_given:
            known = id_of.get(storable(request.given)) or id_of.get(storable(str(request.path.absolute())))
            if known is not None and known not in used:
                slide_id = known
            elif known is None and slide_id in earlier:
                slide_id = unique_id(request.path)
        used.add(slide_id)
        renamed.append(replace(request, slide_id=slide_id))
    return tuple(renamed)
