"""Patches and features on a GPU: with fakes of cupy and of ONNX Runtime's CUDA provider, and on a real GPU."""

from __future__ import annotations

import gc
import importlib
import shutil
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from hagmil.errors import BundleError, EnvironmentLacks
from hagmil.runtime.bench import measure
from hagmil.runtime.inference.adaptive import AdaptiveOutcome, run_adaptive
from hagmil.runtime.inference.cascade import StageOutcome, run_cascade, run_stage
from hagmil.runtime.inference.device import Gpu as GpuDevice
from hagmil.runtime.inference.device import Host, device_of, to_host
from hagmil.runtime.inference.encode import EncodeOptions, encode_patches
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.patches.geometry import plan_stages
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.patches.stream import PatchBatch
from hagmil.runtime.sessions import open_session
from hagmil.runtime.slides.open import open_slide
from tests.fakes.cuda_driver import install_gpu
from tests.fakes.gpu import Gpu
from tests.fakes.onnxruntime import CALLED, fake_onnxruntime
from tests.fakes.recorded import find, parameter_names
from tests.fakes.tensorrt import fake_tensorrt_rtx
from tests.runtime.calibrated import calibrated
from tests.runtime.small_bundle import backbone_graph, stage_graph


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A machine with a GPU, cupy, and an ONNX Runtime with CUDA."""
    gpu = Gpu()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(gpu))
    install_gpu(monkeypatch, gpu)
    return gpu


@pytest.fixture
def cupy(gpu: Gpu) -> ModuleType:  # noqa: ARG001
    """The fake cupy module."""
    return sys.modules["cupy"]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The graph of a stage with features of length three."""
    onnx.save(stage_graph(), tmp_path / "stage.onnx")
    return tmp_path / "stage.onnx"


def bag(patches: int, seed: int = 0) -> NDArray[np.float32]:
    """float32 (patches, 3)."""
    return np.random.default_rng(seed).random((patches, 3), np.float32)


def on_host(outputs: dict[str, Any]) -> dict[str, list[float]]:
    """Outputs as lists, for exact comparison."""
    return {name: to_host(array).tolist() for name, array in outputs.items()}


def test_signatures_of_the_fake_onnx_runtime_match_the_real_one() -> None:
    real, fake = importlib.import_module("onnxruntime"), fake_onnxruntime(Gpu())
    for path in CALLED:
        names = parameter_names(find(fake, path))
        wanted = parameter_names(find(real, path))
        assert names == wanted[: len(names)], path
        assert all(free for _, free in wanted[len(names) :]), path


# Sessions.


def test_gpu_arrays_are_not_copied_through_the_host(gpu: Gpu, cupy: ModuleType, stage: Path) -> None:
    session, wanted = open_session(stage, provider="cuda"), open_session(stage)
    assert (session.on_device, wanted.on_device) == (True, False)
    bags = [bag(4, 1), bag(9, 2)]
    arrays = [cupy.asarray(one) for one in bags]
    copies = (gpu.copies_to_device, gpu.copies_to_host)
    results = [session.run({"features": array}) for array in arrays]
    assert (gpu.copies_to_device, gpu.copies_to_host) == copies
    for one, result in zip(bags, results, strict=True):  # the second run did not overwrite the first results
        assert all(isinstance(array, cupy.ndarray) for array in result.values())
        assert on_host(result) == on_host(wanted.run({"features": one}))


@pytest.mark.usefixtures("gpu")
def test_host_arrays_give_host_arrays(stage: Path) -> None:
    outputs = open_session(stage, provider="cuda").run({"features": bag(5)})
    assert all(isinstance(array, np.ndarray) for array in outputs.values())
    assert on_host(outputs) == on_host(open_session(stage).run({"features": bag(5)}))


def test_a_run_waits_for_pending_work_of_the_callers_stream(cupy: ModuleType, stage: Path) -> None:
    session = open_session(stage, provider="cuda")
    with cupy.cuda.Stream(non_blocking=True) as stream:  # not the stream of the thread that makes the run
        array = cupy.ndarray((5, 3), np.float32)
        array.set(bag(5), stream=stream)
        outputs = session.run({"features": array})
    assert on_host(outputs) == on_host(open_session(stage).run({"features": bag(5)}))


def test_the_memory_of_an_output_is_freed_with_its_array(gpu: Gpu, cupy: ModuleType, stage: Path) -> None:
    array = cupy.asarray(bag(5))
    free = gpu.free_bytes()
    attention = open_session(stage, provider="cuda").run({"features": array})["attention"]
    gc.collect()
    assert attention.get().tolist() == on_host(open_session(stage).run({"features": bag(5)}))["attention"]
    del attention
    gc.collect()
    assert gpu.free_bytes() == free


def test_insufficient_gpu_memory_is_reported(gpu: Gpu, cupy: ModuleType, stage: Path) -> None:
    session, array = open_session(stage, provider="cuda"), cupy.asarray(bag(5))
    gpu.memory_bytes = 70
    with pytest.raises(EnvironmentLacks, match="out of memory") as caught:
        session.run({"features": array})
    assert caught.value.code == "out_of_memory"


def test_gpu_inputs_of_a_wrong_type_raise_a_bundle_error(cupy: ModuleType, stage: Path) -> None:
    with pytest.raises(BundleError, match=r"stage\.onnx cannot run on these inputs") as caught:
        open_session(stage, provider="cuda").run({"features": cupy.asarray(np.zeros((2, 3), np.uint8))})
    assert caught.value.code == "graph_failed"


def test_host_arrays_run_without_cupy_and_device_of_names_the_package_to_install(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, stage: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    session = open_session(stage, provider="cuda")
    assert session.run({"features": bag(5)})["attention"].shape == (5,)
    with pytest.raises(EnvironmentLacks, match=r"hagmil\[gpu\]"):
        device_of(session)
    assert gpu.copies_to_host == 2


# Devices.


def reused(memory: NDArray[np.uint8], count: int, rows: int, events: list[str]) -> Generator[PatchBatch, None, None]:
    """Batches in the same memory, each overwritten when the next is requested; the last has one row less."""
    try:
        for index in range(count):
            start, stop = index * rows, (index + 1) * rows - (index == count - 1)
            memory[:] = index + 1
            events.append(f"read {index}")
            yield PatchBatch(slice(start, stop), memory[: stop - start])
        memory[:] = 255
    finally:
        events.append("closed")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_batches_are_uploaded_in_advance_and_not_overwritten_too_early(count: int, gpu: Gpu, cupy: ModuleType) -> None:
    device = gpu_device(cupy)
    memory = device.buffers((2, 1, 1, 3))
    assert gpu.is_pinned(memory)
    assert memory.ctypes.data % 64 == 8  # the decoder writes unaligned memory through the cache
    found = cupy.empty((2 * count, 1, 1, 3), np.uint8)
    events: list[str] = []
    for index, batch in enumerate(device.upload_batches(reused(memory, count, 2, events))):
        events.append(f"use {index}")
        found[np.arange(batch.rows.start, batch.rows.stop)] = batch.patches  # executed when the stream is synchronised
    values = np.repeat(np.arange(1, count + 1), 2)[: max(2 * count - 1, 0)]
    gpu.finish()
    assert found.get()[: len(values), 0, 0, 0].tolist() == values.tolist()
    assert gpu.copies_to_device == count
    order = [word for index in range(1, count) for word in (f"read {index}", f"use {index - 1}")]
    assert events == ["read 0", *order, "closed", f"use {count - 1}"][: 2 * count + 1] if count else ["closed"]


def test_uploads_alternate_between_two_arrays(gpu: Gpu, cupy: ModuleType) -> None:
    device = gpu_device(cupy)
    gpu.allocations.clear()
    addresses = [
        batch.patches.data.ptr for batch in device.upload_batches(reused(device.buffers((2, 1, 1, 3)), 6, 2, []))
    ]
    assert addresses == addresses[:2] * 3
    assert gpu.allocations == [6, 6]


def test_closing_early_closes_the_batches_and_completes_uploads(gpu: Gpu, cupy: ModuleType) -> None:
    device, ends = gpu_device(cupy), list[bool]()

    def endless(memory: NDArray[np.uint8]) -> Generator[PatchBatch, None, None]:
        try:
            while True:
                yield PatchBatch(slice(0, 2), memory)
        finally:
            ends.append(gpu.is_idle())

    inner = endless(device.buffers((2, 1, 1, 3)))
    with closing(device.upload_batches(inner)) as batches:
        next(batches)
        assert ends == []
        assert not gpu.is_idle()  # the next batch is being uploaded
    assert ends == [True]


def test_an_error_of_the_reader_is_raised(cupy: ModuleType) -> None:
    def broken(memory: NDArray[np.uint8]) -> Generator[PatchBatch, None, None]:
        yield PatchBatch(slice(0, 2), memory)
        raise OSError("gone")

    device = gpu_device(cupy)
    with pytest.raises(OSError, match="gone"):
        list(device.upload_batches(broken(device.buffers((2, 1, 1, 3)))))


def test_throttle_waits_for_the_work_before_the_previous_call(gpu: Gpu, cupy: ModuleType) -> None:
    device = gpu_device(cupy)
    stream = cupy.cuda.get_current_stream().inner
    done: list[int] = []
    for index in range(3):
        stream.enqueue(lambda index=index: done.append(index))
        device.throttle()
        assert done == list(range(index))
    device.throttle()
    assert done == [0, 1, 2]
    assert gpu.copies_to_host == 0


def test_the_host_copies_nothing() -> None:
    device, array = Host(), np.zeros((2, 3), np.float32)
    batches = reused(device.buffers((2, 1, 1, 3)), 2, 2, [])
    assert device.upload_batches(batches) is batches
    assert device.to_device(array) is array
    assert to_host(array) is array
    assert device.empty((4, 3)).dtype == np.float32


def gpu_device(cupy: ModuleType) -> GpuDevice:
    """The device for cupy arrays."""
    return GpuDevice(cupy)


# Encoding and the cascade.

COORDS = np.random.default_rng(5).permutation(
    np.stack(np.meshgrid(np.arange(7) * 60, np.arange(5) * 60, indexing="ij"), axis=-1).reshape(-1, 2)
)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A backbone whose features are the mean colour of a patch."""
    onnx.save(backbone_graph(), tmp_path / "backbone.onnx")
    return tmp_path / "backbone.onnx"


def encode(path: Path, session: Any, batch_size: int, rows: int = 35) -> Any:
    """Features of patches of one slide, on the device of the session."""
    with open_slide(path) as slide:
        (geometry,) = plan_stages(slide.levels, 0.5, [("only", 0.5)], 60)
        options = EncodeOptions(batch_size=batch_size, reader_threads=2)
        return encode_patches(slide, geometry, COORDS[:rows], session, 3, options, clock=StepClock())


@pytest.mark.parametrize("batch_size", [1, 8, 35, 64])
def test_features_are_collected_on_the_gpu_and_equal_those_of_the_host(
    batch_size: int, gpu: Gpu, cupy: ModuleType, backbone: Path, pyramid_path: Path
) -> None:
    features = encode(pyramid_path, open_session(backbone, provider="cuda"), batch_size)
    assert isinstance(features, cupy.ndarray)
    assert (gpu.copies_to_device, gpu.copies_to_host) == (-(-35 // batch_size), 0)
    assert len(gpu.pinned) == 1
    np.testing.assert_array_equal(features.get(), encode(pyramid_path, open_session(backbone), batch_size))


@pytest.mark.usefixtures("gpu")
def test_no_patches_give_no_features_on_the_gpu(backbone: Path, pyramid_path: Path) -> None:
    assert encode(pyramid_path, open_session(backbone, provider="cuda"), 8, rows=0).shape == (0, 3)


def test_a_batch_too_large_for_the_gpu_is_halved_on_the_gpu(
    gpu: Gpu, backbone: Path, pyramid_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(backbone, provider="cuda")
    run, sizes = session.run, list[int]()

    def small(inputs: dict[str, Any], *, last: bool) -> dict[str, Any]:
        if len(inputs["patches"]) > 5:
            raise EnvironmentLacks("too large", code="out_of_memory")
        sizes.append(len(inputs["patches"]))
        return run(inputs, last=last)

    session.run = small  # type: ignore[method-assign]
    features = encode(pyramid_path, session, 16)
    assert (max(sizes), sum(sizes)) == (4, 35)
    assert "retrying with 4" in caplog.text
    assert gpu.copies_to_device == 3
    np.testing.assert_array_equal(features.get(), encode(pyramid_path, open_session(backbone), 16))


def cascade(path: Path, model: LoadedModel) -> tuple[StageOutcome, ...]:
    """Run the cascade of a bundle on one slide."""
    manifest = model.bundle.manifest
    with open_slide(path) as slide:
        layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        return run_cascade(slide, layout.coords, model, layout.plan, EncodeOptions(batch_size=20), clock=StepClock())


def adaptive(path: Path, model: LoadedModel) -> AdaptiveOutcome:
    """Run the adaptive cascade of a bundle on one slide, with a threshold that makes no verdict sure."""
    manifest = model.bundle.manifest
    with open_slide(path) as slide:
        layout = lay_out(slide, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        options, calibrated_model = EncodeOptions(batch_size=20), calibrated(model, threshold=99)
        return run_adaptive(slide, layout.coords, calibrated_model, layout.plan, options, clock=StepClock())


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_cascade_on_the_gpu_equals_that_of_the_host_and_copies_only_outputs_of_stages(
    provider: str,
    gpu: Gpu,
    small_bundle: Path,
    tissue_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_tensorrt_rtx(gpu))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    model = load_model(bundle, provider=provider, rebuild=True)
    assert all(session.on_device for session in (model.backbone, *model.stages))
    found, wanted = cascade(tissue_path, model), cascade(tissue_path, load_model(bundle))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_array_equal(one.attention, other.attention)
        np.testing.assert_array_equal(one.kept, other.kept)
        np.testing.assert_array_equal(one.outputs["logits"], other.outputs["logits"])
    assert gpu.copies_to_host == sum(len(outcome.outputs) for outcome in found)
    assert gpu.copies_to_device == sum(-(-len(outcome.coords) // 20) for outcome in found)


@pytest.mark.usefixtures("gpu")
def test_an_adaptive_cascade_on_the_gpu_equals_that_of_the_host(small_bundle: Path, tissue_path: Path) -> None:
    found, wanted = (adaptive(tissue_path, load_model(small_bundle, provider=name)) for name in ("cuda", "cpu"))
    np.testing.assert_array_equal(found.stages[-1].coords, wanted.stages[-1].coords)
    assert [reading.keep for reading in found.readings] == [4, 8, 16, 32]
    for one, other in zip(found.readings, wanted.readings, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.top_logits, other.top_logits)


def test_the_bench_measures_sessions_with_arrays_on_the_gpu(
    gpu: Gpu, backbone: Path, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RUN_S", 0.001)
    patches = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    figures = measure.measure_backbone(open_session(backbone, provider="cuda"), patches, 4, 1, 0.0)
    assert figures.patches % 4 == 0
    assert gpu.copies_to_device == 1
    assert measure.measure_model(open_session(stage, provider="cuda"), "2um", 3, 20, 1).patches == 20
    assert gpu.copies_to_device == 2


def test_a_stage_on_the_cpu_accepts_features_on_the_gpu(cupy: ModuleType, stage: Path) -> None:
    with pytest.raises(BundleError, match="cannot run on these inputs"):
        open_session(stage).run({"features": cupy.asarray(bag(6))})
    outputs = run_stage(open_session(stage), cupy.asarray(bag(6)), "2um")
    assert on_host(outputs) == on_host(open_session(stage).run({"features": bag(6)}))


# On a real GPU.


@pytest.fixture
def real_cupy() -> ModuleType:
    """cupy, if it finds a device and ONNX Runtime has CUDA."""
    try:
        found = importlib.import_module("cupy")
        usable = bool(found.cuda.is_available())
    except ImportError:
        pytest.skip("needs cupy")
    if not usable or "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
        pytest.skip("needs a CUDA device and ONNX Runtime's CUDA provider")
    return found


@pytest.mark.gpu
def test_a_real_gpu_gives_the_outputs_of_the_cpu_as_gpu_arrays(real_cupy: ModuleType, stage: Path) -> None:
    session = open_session(stage, provider="cuda")
    array = real_cupy.asarray(bag(4000))
    outputs = [session.run({"features": array * scale}) for scale in (1, 2)]
    for scale, output in zip((1, 2), outputs, strict=True):
        assert all(isinstance(value, real_cupy.ndarray) for value in output.values())
        wanted = open_session(stage).run({"features": bag(4000) * scale})
        for name, value in wanted.items():
            np.testing.assert_allclose(to_host(output[name]), value, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_cupy")
def test_features_of_a_real_gpu_equal_those_of_the_cpu(backbone: Path, pyramid_path: Path) -> None:
    features = encode(pyramid_path, open_session(backbone, provider="cuda"), 8)
    np.testing.assert_allclose(to_host(features), encode(pyramid_path, open_session(backbone), 8), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_cupy")
def test_a_cascade_on_a_real_gpu_keeps_the_patches_that_the_cpu_keeps(small_bundle: Path, tissue_path: Path) -> None:
    found, wanted = (cascade(tissue_path, load_model(small_bundle, provider=name)) for name in ("cuda", "cpu"))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("real_cupy")
def test_an_adaptive_cascade_on_a_real_gpu_gives_the_readings_of_the_cpu(small_bundle: Path, tissue_path: Path) -> None:
    found, wanted = (adaptive(tissue_path, load_model(small_bundle, provider=name)) for name in ("cuda", "cpu"))
    np.testing.assert_array_equal(found.stages[-1].coords, wanted.stages[-1].coords)
    for one, other in zip(found.readings, wanted.readings, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
        np.testing.assert_allclose(one.top_logits, other.top_logits, atol=1e-5)
