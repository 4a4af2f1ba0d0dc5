"""Patches of the user's slides, for calibrating and holding a backbone in int8.

1. What was given is resolved to slides. A feature file leads to its slide by name and digest: among the slides that
   were given, beside the file, in the folder above it and in the folders of that one.
2. Slides are put in a seeded order; the first :data:`MOST_SLIDES` are used.
3. The wanted number of patches is shared out evenly over slides and stages; what one cannot give, the next gives.
4. At a stage of a slide, some of the coarsest squares of its tissue are drawn, and squares among their descendants: of
   those every fifth is held out, and the others are for calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagmil.errors import SlideError, UsageError
from hagmil.export.int8.backbone import PatchRequirements
from hagmil.features import FeatureHeader, read_header
from hagmil.progress import Progress
from hagmil.runtime.inputs import SlideRequest, slide_requests
from hagmil.runtime.patches.plan import lay_out
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.patches.stream import stream_patches
from hagmil.runtime.slides.open import open_slide
from hagmil.runtime.slides.slide import Slide
from hagmil.runtime.slides.slide_files import slide_sha256
from hagmil.tissue_parameters import TissueParameters

CALIBRATION_PATCHES = 256
HELD_OUT_PATCHES = 64
MOST_SLIDES = 32
FEATURES_SUFFIX = ".h5"

_SEED = 8
_BATCH = 16
_HELD_OUT_EVERY = 5
_COARSE_SQUARES = 256  # drawn from at most, so that memory does not depend on the slide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibrationSlide:
    """One slide to draw patches from.

    Args:
        request: the slide.
        tissue: parameters of the mask that its features were extracted with; None takes the checkpoint's.
    """

    request: SlideRequest
    tissue: TissueParameters | None = None


@dataclass(frozen=True, slots=True)
class SlidePatches:
    """Patches of slides; see :class:`hagmil.export.int8.backbone.CalibrationPatches`.

    Args:
        slides: the slides, in the order that they are drawn from.
        progress: told how many patches are read.
    """

    slides: tuple[CalibrationSlide, ...]
    progress: Progress

    @property
    def what(self) -> str:
        """The slides, in words."""
        return f"{len(self.slides)} calibration slide{'' if len(self.slides) == 1 else 's'}"

    def calibration(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Patches to calibrate on, in batches."""
        return self._read(wanted, CALIBRATION_PATCHES, "calibration patches", held_out=False)

    def held_out(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Other patches of the same slides, in batches."""
        return self._read(wanted, HELD_OUT_PATCHES, "patches to compare", held_out=True)

    def _read(
        self, wanted: PatchRequirements, count: int, words: str, *, held_out: bool
    ) -> Iterator[NDArray[np.uint8]]:
        """Steps 3 and 4; slides that cannot be used are told of and left out."""
        read, stages = 0, len(wanted.stages)
        for place, slide in enumerate(self.slides):
            try:
                with _Opened(slide, wanted, place) as opened:
                    for stage in range(stages):
                        share = count * (place * stages + stage + 1) // (len(self.slides) * stages)
                        for batch in opened.read(stage, share - read, held_out=held_out):
                            read += len(batch)
                            self.progress(words, read, count)
                            yield batch
            except SlideError as error:
                _log.warning('slide "%s" gives no calibration patches: %s', slide.request.given, error.message)
        self.progress(words, count, count)
        if not read:
            raise UsageError(f"no patch of tissue could be read from {self.what}; give other slides with --calibration")


def calibration_slides(arguments: Sequence[str]) -> tuple[CalibrationSlide, ...]:
    """Resolve ``--calibration`` to slides.

    Args:
        arguments: slides, or feature files (``.h5``): files, folders or globs.

    Returns:
        At most :data:`MOST_SLIDES`, in a seeded order.

    Raises:
        UsageError: nothing was found, or feature files lead to no slide.
        DataError: a feature file is damaged.
    """
    features, rest = _split(arguments)
    given = [CalibrationSlide(request) for request in (slide_requests(rest) if rest else ())]
    resolved, missing = _resolve(features, [slide.request.path for slide in given])
    slides = list({slide.request.path.absolute(): slide for slide in (*given, *resolved)}.values())
    if not slides:
        raise UsageError(
            f"{missing[0]}{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "give the slides too: --calibration FEATURES --calibration SLIDES"
        )
    for line in missing:
        _log.warning("%s; it is left out", line)
    return tuple(slides[place] for place in _shuffled(len(slides))[:MOST_SLIDES])  # step 2


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Feature files, and the arguments that name none."""
    features: list[Path] = []
    rest: list[str] = []
    for argument in arguments:
        path = Path(argument)
        inside = sorted(path.glob(f"*{FEATURES_SUFFIX}")) if path.is_dir() else []
        if inside:
            features += inside
        elif argument.endswith(FEATURES_SUFFIX):
            named = [request.path for request in slide_requests([argument])]
            absent = [path for path in named if not path.is_file()]
            if absent:
                raise UsageError(f'features "{absent[0]}" do not exist; run hagmil extract')
            features += named
        else:
            rest.append(argument)
    return features, rest


def _resolve(features: Sequence[Path], given: Sequence[Path]) -> tuple[list[CalibrationSlide], list[str]]:
    """Step 1: the slides of feature files, and a line for each that was not found; no more than can be used."""
    found: list[CalibrationSlide] = []
    missing: list[str] = []
    for place in _shuffled(len(features)):
        if len(found) == MOST_SLIDES:
            break
        path = features[place]
        header = read_header(path)
        slide = _slide_of(path, header, given)
        if slide is None:
            digest = f" (sha256 {header.slide_sha256[:12]}...)" if header.slide_sha256 else ""
            missing.append(f'features "{path}" name slide "{header.slide_name}"{digest}, which is not near them')
        else:
            spacing_um = header.slide_spacing_um if header.spacing_source == "override" else None
            request = SlideRequest(header.slide_id, str(slide), slide, spacing_um)
            found.append(CalibrationSlide(request, header.tissue))
    return found, missing


def _slide_of(features: Path, header: FeatureHeader, given: Sequence[Path]) -> Path | None:
    """The slide that a feature file names: the first file of that name whose digest is the header's."""
    above = features.absolute().parent.parent
    near = [features.parent, above, *sorted(path for path in above.iterdir() if path.is_dir())]
    candidates = [path for path in given if path.name == header.slide_name]
    candidates += [folder / header.slide_name for folder in near]
    for path in candidates:
        if path.is_file() and header.slide_sha256 in ("", slide_sha256(path)):
            return path
    return None


def _shuffled(count: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(_SEED).permutation(count)]


class _Opened:
    """A slide, open, with the squares of its tissue.

    Args:
        slide: the slide.
        wanted: which patches.
        place: of the slide among all, which seeds what is drawn.

    Raises:
        SlideError: it cannot be read, or does not fit the stages.
    """

    def __init__(self, slide: CalibrationSlide, wanted: PatchRequirements, place: int) -> None:
        self._place = place
        self._slide: Slide = open_slide(slide.request.path, spacing_um=slide.request.spacing_um)
        try:
            tissue = slide.tissue or wanted.tissue
            layout = lay_out(self._slide, wanted.stages, wanted.patch_px, tissue)
            self._plan, self._coarse = layout.plan, layout.coords
        except BaseException:
            self._slide.close()
            raise

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_error: object) -> None:
        self._slide.close()

    def read(self, stage: int, count: int, *, held_out: bool) -> Iterator[NDArray[np.uint8]]:
        """At most ``count`` patches of a stage, in batches: uint8 (batch, patch_px, patch_px, 3)."""
        coords = self._squares(stage)
        is_held_out = np.arange(len(coords)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        chosen = coords[is_held_out if held_out else ~is_held_out][:count]
        stream = stream_patches(self._slide, self._plan[stage], chosen, batch_size=_BATCH, threads=1)
        with closing(stream) as batches:
            for batch in batches:
                yield batch.patches.copy()  # the stream reads into the same memory again

    def _squares(self, stage: int) -> NDArray[np.int64]:
        """Step 4: int64 (squares, 2) in a seeded order, the same for both uses."""
        rng = np.random.default_rng((_SEED, self._place, stage))
        coords = rng.permutation(self._coarse)[:_COARSE_SQUARES]
        for coarse, fine in zip(self._plan[:stage], self._plan[1 : stage + 1], strict=True):
            coords = children(coords, coarse.patch_level0, coarse.patch_level0 // fine.patch_level0)
        return rng.permutation(coords)
