"""Patches of slides for the calibration of an int8 backbone and for its comparison with float32.

1. Resolve the arguments to slides. The slide of a feature file is found by name and digest: among the given slides,
   beside the feature file, in the parent folder and in the other folders of the parent.
2. Shuffle the slides with a fixed seed and use the first :data:`MAX_SLIDES`.
3. Distribute the number of patches evenly over slides and stages; if one has too few patches, the next provides more.
4. For a stage of a slide, draw tissue patches of the coarsest stage and then patches among their descendants. Every
   fifth patch is held out for the comparison; the others are for calibration.
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
MAX_SLIDES = 32
FEATURES_SUFFIX = ".h5"

_SEED = 8
_BATCH = 16
_HELD_OUT_EVERY = 5
_MAX_COARSE_PATCHES = 256  # bounds the memory independently of the slide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibrationSlide:
    """A slide to draw patches from.

    Args:
        request: the slide.
        tissue: tissue parameters of its feature file; None for those of the checkpoint.
    """

    request: SlideRequest
    tissue: TissueParameters | None = None


@dataclass(frozen=True, slots=True)
class SlidePatches:
    """Patches of slides; implements :class:`hagmil.export.int8.backbone.CalibrationPatches`.

    Args:
        slides: the slides, in the order to draw from them.
        progress: called after each batch.
    """

    slides: tuple[CalibrationSlide, ...]
    progress: Progress

    @property
    def what(self) -> str:
        """Description of the slides."""
        return f"{len(self.slides)} calibration slide{'' if len(self.slides) == 1 else 's'}"

    def calibration(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Yield calibration patches in batches."""
        return self._read(wanted, CALIBRATION_PATCHES, "calibration patches", held_out=False)

    def held_out(self, wanted: PatchRequirements) -> Iterator[NDArray[np.uint8]]:
        """Yield other patches of the same slides in batches."""
        return self._read(wanted, HELD_OUT_PATCHES, "patches to compare", held_out=True)

    def _read(
        self, wanted: PatchRequirements, count: int, words: str, *, held_out: bool
    ) -> Iterator[NDArray[np.uint8]]:
        """Steps 3 and 4; slides that cannot be used are skipped with a warning."""
        read, stages = 0, len(wanted.stages)
        for index, slide in enumerate(self.slides):
            try:
                with _OpenSlide(slide, wanted, index) as opened:
                    for stage in range(stages):
                        share = count * (index * stages + stage + 1) // (len(self.slides) * stages)
                        for batch in opened.read(stage, share - read, held_out=held_out):
                            read += len(batch)
                            self.progress(words, read, count)
                            yield batch
            except SlideError as error:
                _log.warning('slide "%s" is not used for calibration: %s', slide.request.given, error.message)
        self.progress(words, count, count)
        if not read:
            raise UsageError(f"no tissue patch could be read from {self.what}; pass other slides with --calibration")


def calibration_slides(arguments: Sequence[str]) -> tuple[CalibrationSlide, ...]:
    """Resolve the values of ``--calibration`` to slides (steps 1 and 2).

    Args:
        arguments: files, folders or globs of slides or of feature files (``.h5``).

    Returns:
        At most :data:`MAX_SLIDES` slides, shuffled with a fixed seed.

    Raises:
        UsageError: no slide was found.
        DataError: a feature file is damaged.
    """
    features, rest = _split(arguments)
    given = [CalibrationSlide(request) for request in (slide_requests(rest) if rest else ())]
    resolved, missing = _resolve(features, [slide.request.path for slide in given])
    slides = list({slide.request.path.absolute(): slide for slide in (*given, *resolved)}.values())
    if not slides:
        raise UsageError(
            f"{missing[0]}{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "pass the slides too: --calibration FEATURES --calibration SLIDES"
        )
    for line in missing:
        _log.warning("%s; it is skipped", line)
    return tuple(slides[place] for place in _shuffled(len(slides))[:MAX_SLIDES])  # step 2


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split arguments into feature files and others."""
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
                raise UsageError(f'feature file "{absent[0]}" does not exist; run hagmil extract')
            features += named
        else:
            rest.append(argument)
    return features, rest


def _resolve(features: Sequence[Path], given: Sequence[Path]) -> tuple[list[CalibrationSlide], list[str]]:
    """Step 1: find the slides of feature files; also return a message for each that was not found."""
    found: list[CalibrationSlide] = []
    missing: list[str] = []
    for place in _shuffled(len(features)):
        if len(found) == MAX_SLIDES:
            break
        path = features[place]
        header = read_header(path)
        slide = _slide_of(path, header, given)
        if slide is None:
            digest = f" (sha256 {header.slide_sha256[:12]}...)" if header.slide_sha256 else ""
            missing.append(f'slide "{header.slide_name}"{digest} of feature file "{path}" was not found near it')
        else:
            spacing_um = header.slide_spacing_um if header.spacing_source == "override" else None
            request = SlideRequest(header.slide_id, str(slide), slide, spacing_um)
            found.append(CalibrationSlide(request, header.tissue))
    return found, missing


def _slide_of(features: Path, header: FeatureHeader, given: Sequence[Path]) -> Path | None:
    """Find the slide of a feature file: the first file with its name and digest."""
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


class _OpenSlide:
    """An open slide with the tissue patches of its coarsest stage.

    Args:
        slide: the slide.
        wanted: the patches to read.
        index: index of the slide, part of the random seed.

    Raises:
        SlideError: the slide cannot be read, or does not fit the stages.
    """

    def __init__(self, slide: CalibrationSlide, wanted: PatchRequirements, index: int) -> None:
        self._index = index
        self._slide: Slide = open_slide(slide.request.path, spacing_um=slide.request.spacing_um)
        try:
            tissue = slide.tissue or wanted.tissue
            layout = lay_out(self._slide, wanted.stages, wanted.patch_px, tissue)
            self._plan, self._coarse = layout.plan, layout.coords
        except BaseException:
            self._slide.close()
            raise

    def __enter__(self) -> _OpenSlide:
        return self

    def __exit__(self, *_error: object) -> None:
        self._slide.close()

    def read(self, stage: int, count: int, *, held_out: bool) -> Iterator[NDArray[np.uint8]]:
        """Yield at most ``count`` patches of a stage in batches: uint8 (batch, patch_px, patch_px, 3)."""
        coords = self._coords(stage)
        is_held_out = np.arange(len(coords)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        chosen = coords[is_held_out if held_out else ~is_held_out][:count]
        stream = stream_patches(self._slide, self._plan[stage], chosen, batch_size=_BATCH, threads=1)
        with closing(stream) as batches:
            for batch in batches:
                yield batch.patches.copy()  # the stream reuses its memory

    def _coords(self, stage: int) -> NDArray[np.int64]:
        """Step 4: int64 (patches, 2), level-0 top-left (x, y), in a fixed random order."""
        rng = np.random.default_rng((_SEED, self._index, stage))
        coords = rng.permutation(self._coarse)[:_MAX_COARSE_PATCHES]
        for coarse, fine in zip(self._plan[:stage], self._plan[1 : stage + 1], strict=True):
            coords = children(coords, coarse.patch_level0, coarse.patch_level0 // fine.patch_level0)
        return rng.permutation(coords)
