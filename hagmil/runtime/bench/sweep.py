"""Throughput for several batch sizes, numbers of threads and bag sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hagmil.runtime.bench.measure import Measuring, measure_backbone, measure_model, measure_reading
from hagmil.runtime.bench.report import SweepPoint
from hagmil.runtime.bench.workload import Workload
from hagmil.runtime.inference.loaded_bundle import LoadedModel
from hagmil.runtime.sessions import open_session

BATCHES = (1, 4, 16, 64, 256)
BAGS = (100, 1_000, 10_000)
_MAX_PATCH_BYTES = 512 << 20


def sweep(
    workload: Workload, models: Mapping[str, LoadedModel], patches: NDArray[np.uint8], how: Measuring
) -> Iterator[SweepPoint]:
    """Measure throughput with several settings.

    They are thread counts for reading and for the backbone on the CPU, batch sizes for the backbone of every provider,
    and bag sizes for the finest stage model of every provider.

    Args:
        workload: the patches to read.
        models: the loaded bundle, by provider.
        patches: uint8 (patches, side, side, 3), in memory.
        how: the settings that are not varied.

    Yields:
        One point for each setting.
    """
    yield from _readers(workload, how)
    for provider, model in models.items():
        yield from _batches(provider, model, patches, how.repeats)
        yield from _bags(provider, model, how.repeats)
    if "cpu" in models:
        yield from _threads(models["cpu"], patches, how)


def sweep_size(models: Mapping[str, LoadedModel], patches: NDArray[np.uint8]) -> int:
    """Return the number of points that :func:`sweep` yields."""
    readers_and_cpu = len(thread_counts()) * (2 if "cpu" in models else 1)
    return readers_and_cpu + len(models) * (len(batch_sizes(patches)) + len(BAGS))


def batch_sizes(patches: NDArray[np.uint8]) -> tuple[int, ...]:
    """Return the batch sizes whose patches take at most 512 MiB."""
    return tuple(batch for batch in BATCHES if batch * patches[0].nbytes <= _MAX_PATCH_BYTES)


def thread_counts() -> tuple[int, ...]:
    """Return 1, 2, 4 and so on up to the number of cores, and that number."""
    cores = len(os.sched_getaffinity(0))
    return tuple(sorted({*(1 << power for power in range(cores.bit_length())), 2, cores}))


def _readers(workload: Workload, how: Measuring) -> Iterator[SweepPoint]:
    for threads in thread_counts():
        found = measure_reading(workload, replace(how, readers=threads))
        yield SweepPoint(
            what="read_threads",
            provider=None,
            series="reading",
            value=threads,
            patches_per_s=found.patches_per_s,
            repeats_s=found.repeats_s,
        )


def _batches(provider: str, model: LoadedModel, patches: NDArray[np.uint8], repeats: int) -> Iterator[SweepPoint]:
    for batch in batch_sizes(patches):
        found = measure_backbone(model.backbone, patches, batch, repeats, 0.0)
        yield SweepPoint(
            what="backbone_batch",
            provider=provider,
            series=model.bundle.manifest.backbone.name,
            value=batch,
            patches_per_s=found.patches_per_s,
            repeats_s=found.repeats_s,
        )


def _threads(model: LoadedModel, patches: NDArray[np.uint8], how: Measuring) -> Iterator[SweepPoint]:
    backbone = model.bundle.manifest.backbone
    for threads in thread_counts():
        session = open_session(model.bundle.file(backbone.onnx), threads=threads, many_runs=True)
        found = measure_backbone(session, patches, how.batch, how.repeats, 0.0)
        yield SweepPoint(
            what="backbone_threads",
            provider="cpu",
            series=backbone.name,
            value=threads,
            patches_per_s=found.patches_per_s,
            repeats_s=found.repeats_s,
        )


def _bags(provider: str, model: LoadedModel, repeats: int) -> Iterator[SweepPoint]:
    manifest = model.bundle.manifest
    stage = manifest.stages[-1].name
    for patches in BAGS:
        found = measure_model(model.stages[-1], stage, manifest.backbone.features, patches, repeats)
        yield SweepPoint(
            what="model_patches",
            provider=provider,
            series=stage,
            value=patches,
            patches_per_s=patches / found.seconds,
            repeats_s=found.repeats_s,
        )
