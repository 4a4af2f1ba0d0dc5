"""Encoding gives features in the order of the patches, and splits batches that are too large for the device."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hagmil.errors import EnvironmentLacks
from hagmil.runtime.inference.encode import EncodeOptions, default_batch_size, encode_patches, reader_threads
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.patches.geometry import plan_stages
from hagmil.runtime.patches.reader import read_patch
from hagmil.runtime.patches.stream import stream_patches
from hagmil.runtime.slides.open import open_slide


class MeanColour:
    """A backbone whose features are the mean colour of a patch, with memory for ``room`` patches in a batch."""

    provider = "test"
    on_device = False
    input_shapes = {"patches": ("batch", "height", "width", 3)}  # noqa: RUF012 - as in the protocol

    def __init__(self, room: int = 1000, code: str = "out_of_memory") -> None:
        self.room, self.code = room, code
        self.batches: list[int] = []
        self.last: list[bool] = []

    def run(self, inputs: dict[str, NDArray[np.generic]], *, last: bool = False) -> dict[str, NDArray[np.generic]]:
        patches = inputs["patches"]
        if len(patches) > self.room:
            raise EnvironmentLacks("too large", code=self.code)
        self.batches.append(len(patches))
        self.last.append(last)
        return {"features": patches.mean(axis=(1, 2)).astype(np.float32)}


def encode(path: Path, backbone: MeanColour, options: EncodeOptions) -> tuple[NDArray[np.float32], list[int]]:
    """Features of 35 patches, and the numbers of encoded patches that were reported as progress."""
    reported: list[int] = []
    with open_slide(path) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", 0.5)], 60)
        features = encode_patches(
            slide,
            geometry,
            COORDS,
            backbone,
            3,
            options,
            clock=StepClock(),
            progress=lambda _, done, all_: reported.append(done) if all_ == len(COORDS) else None,
        )
        expected = [read_patch(slide, geometry, x, y).mean(axis=(0, 1)) for x, y in COORDS.tolist()]
    np.testing.assert_allclose(features, expected, rtol=1e-6)
    return features, reported


COORDS = np.random.default_rng(5).permutation(
    np.stack(np.meshgrid(np.arange(7) * 60, np.arange(5) * 60, indexing="ij"), axis=-1).reshape(-1, 2)
)


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (8, 2), (35, 3), (64, 2)])
def test_features_are_in_the_order_of_the_coordinates(pyramid_path: Path, batch_size: int, threads: int) -> None:
    backbone = MeanColour()
    _, reported = encode(pyramid_path, backbone, EncodeOptions(batch_size=batch_size, reader_threads=threads))
    assert reported == np.cumsum(backbone.batches).tolist()
    assert backbone.last == [False] * (len(backbone.batches) - 1) + [True]
    assert max(backbone.batches) == min(batch_size, 35)


def test_a_batch_too_large_for_the_device_is_halved_until_it_fits(
    pyramid_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = MeanColour(room=5)
    with caplog.at_level(logging.WARNING):
        encode(pyramid_path, backbone, EncodeOptions(batch_size=16))
    assert max(backbone.batches) == 4
    assert sum(backbone.batches) == 35
    assert backbone.last == [False] * (len(backbone.batches) - 1) + [True]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with a batch of 16 patches; retrying with 8",
        "out of memory with a batch of 8 patches; retrying with 4",
    ]


@pytest.mark.parametrize(("patch_px", "on_a_cpu"), [(512, 16), (256, 16), (224, 20), (128, 64), (64, 64)])
def test_a_batch_on_a_cpu_has_about_a_million_pixels(patch_px: int, on_a_cpu: int) -> None:
    assert default_batch_size(MeanColour(), patch_px) == on_a_cpu


@pytest.mark.parametrize(("cores", "for_a_device"), [(1, 2), (2, 2), (4, 3), (8, 7), (16, 8), (96, 8)])
def test_all_cores_but_one_read_for_a_gpu_and_two_threads_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch, cores: int, for_a_device: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    backbone = MeanColour()
    assert reader_threads(EncodeOptions(), backbone) == 2
    backbone.on_device = True
    assert reader_threads(EncodeOptions(), backbone) == for_a_device
    assert reader_threads(EncodeOptions(reader_threads=1), backbone) == 1


@pytest.mark.parametrize(("asked", "threads"), [(None, 2), (5, 5)])
def test_the_setting_determines_the_number_of_reader_threads(
    monkeypatch: pytest.MonkeyPatch, pyramid_path: Path, asked: int | None, threads: int
) -> None:
    found: list[object] = []

    def _stream(*args: Any, **options: Any) -> Any:
        found.append(options["threads"])
        return stream_patches(*args, **options)

    monkeypatch.setattr("hagmil.runtime.inference.encode.stream_patches", _stream)
    encode(pyramid_path, MeanColour(), EncodeOptions(reader_threads=asked))
    assert found == [threads]


def test_a_device_without_memory_for_one_patch_is_an_error(pyramid_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="too large"):
        encode(pyramid_path, MeanColour(room=0), EncodeOptions(batch_size=4))


def test_other_errors_are_not_retried(pyramid_path: Path) -> None:
    backbone = MeanColour(room=5, code="device_lost")
    with pytest.raises(EnvironmentLacks):
        encode(pyramid_path, backbone, EncodeOptions(batch_size=16))
    assert backbone.batches == []
