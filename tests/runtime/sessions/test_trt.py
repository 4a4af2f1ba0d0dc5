"""TensorRT engines in the runtime: execution on a fake of the API, loading, rejection and rebuilding."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.cache import default_cache
from hagmil._tensorrt.flavour import choose_flavour
from hagmil._tensorrt.profiles import Range, backbone_profile, bag_profiles
from hagmil.bundle import open_bundle, write_manifest
from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.export.tensorrt import EngineOptions, add_engines
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.engines import engine_fitness
from hagmil.runtime.sessions.trt import TensorRtSession
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS, STAGE_INPUTS, stage_outputs
from tests.fakes.bundles import FEATURES, PATCH_PX, write_small_bundle
from tests.fakes.cuda_driver import install_gpu
from tests.fakes.cupy import fake_cupy
from tests.fakes.gpu import Gpu
from tests.fakes.recorded import (
    CUPY_ATTRIBUTES,
    CUPY_NAMES,
    find,
    parameter_names,
    read_records,
    recorded_tensorrt,
)
from tests.fakes.signatures import differences
from tests.fakes.tensorrt import fake_tensorrt, fake_tensorrt_rtx

FLAVOURS = ("tensorrt", "tensorrt-rtx")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
FAKES = {"tensorrt": fake_tensorrt, "tensorrt-rtx": fake_tensorrt_rtx}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A machine with a GPU of compute capability 8.9 and cupy, without TensorRT and with an empty cache."""
    gpu = Gpu()
    install_gpu(monkeypatch, gpu)
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return gpu


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    """A bundle without engines."""
    return write_small_bundle(tmp_path / "bundle")


def install(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, flavour: str, **versions: str) -> ModuleType:
    """Install the fake of a flavour."""
    fake = FAKES[flavour](gpu, **versions)
    monkeypatch.setitem(sys.modules, MODULES[flavour], fake)
    return fake


def remove(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    """Remove a flavour."""
    monkeypatch.setitem(sys.modules, MODULES[flavour], None)


def stage_session(folder: Path, *, patches: tuple[Range, ...] = (Range(1, 30, 100),)) -> TensorRtSession:
    """Build the engine of a stage with the installed flavour, and load it."""
    bundle = write_small_bundle(folder)
    flavour = choose_flavour()
    request = BuildRequest(bundle / "fine.onnx", bag_profiles(FEATURES, patches), ("8.9",))
    engine = folder / "fine.engine"
    engine.write_bytes(build_engine(flavour, request).data)
    return TensorRtSession(engine, flavour, STAGE_INPUTS, stage_outputs("hag-mil"))


def bag(patches: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (patches, FEATURES)."""
    return np.random.default_rng(seed).standard_normal((patches, FEATURES)).astype(np.float32)


def run_onnx(graph: Path, features: Any) -> dict[str, Any]:
    """Run ONNX Runtime on a bag."""
    outputs: dict[str, Any] = open_session(graph).run({"features": features})
    return outputs


def assert_same(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Assert that tensors are equal up to rounding."""
    assert given.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(given[name], array, rtol=1e-5, atol=1e-6)


# The fake has the API of the real library.


def test_names_and_signatures_of_the_fake_match_the_real_tensorrt_rtx() -> None:
    real = importlib.import_module("tensorrt_rtx_bindings")
    assert differences(fake_tensorrt_rtx(Gpu()), real) == []


def test_names_and_signatures_of_the_fake_match_the_recorded_tensorrt() -> None:
    assert differences(fake_tensorrt(Gpu()), recorded_tensorrt()) == []


def test_wrong_names_arguments_and_types_in_a_fake_are_found() -> None:
    real = importlib.import_module("tensorrt_rtx_bindings")
    wrong = ModuleType("wrong")

    class Runtime:
        def deserialize_engine(self, serialized_engine: bytes) -> None:
            """A name that does not exist."""

        def get_engine_validity(self, data: bytes) -> tuple:  # type: ignore[type-arg]  # noqa: ARG002
            """Another argument."""
            return ()

        def load_runtime(self, path: int) -> Runtime:  # noqa: ARG002
            """Another type."""
            return self

        @property
        def get_plugin_registry(self) -> int:
            """A property instead of a method."""
            return 0

    Runtime.__module__ = "tests.fakes.tensorrt"
    wrong.__dict__["Runtime"] = Runtime
    assert len(differences(wrong, real)) == 4


@pytest.mark.parametrize("source", ["recorded", "installed"])
def test_signatures_of_the_fake_cupy_match_cupy(source: str) -> None:
    fake = fake_cupy(Gpu())
    if source == "installed":
        cupy = pytest.importorskip("cupy", reason="needs cupy")
        real = {path: parameter_names(find(cupy, path)) for path in CUPY_NAMES}
        attributes = [path for path in CUPY_ATTRIBUTES if find(cupy, path) is not None]
    else:
        record = read_records()["cupy"]
        real = {path: [tuple(one) for one in names] for path, names in record["names"].items()}
        attributes = record["attributes"]
    for path in CUPY_NAMES:
        names = parameter_names(find(fake, path))
        assert names == real[path][: len(names)], path
        assert all(free for _, free in real[path][len(names) :]), path
    assert set(attributes) == set(CUPY_ATTRIBUTES)
    assert all(find(fake, path) is not None for path in CUPY_ATTRIBUTES)


# Execution.


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_engine_gives_the_outputs_of_its_graph(
    flavour: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, flavour)
    session = stage_session(tmp_path)
    for patches in (1, 2, 30, 100, 7):
        features = bag(patches, patches)
        assert_same(session.run({"features": features}), run_onnx(tmp_path / "fine.onnx", features))


def test_the_backbone_accepts_all_batch_sizes_of_its_profile(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    flavour, graph = choose_flavour(), write_small_bundle(tmp_path) / "backbone.onnx"
    request = BuildRequest(graph, (backbone_profile(PATCH_PX, Range(1, 4, 9)),), ("8.9",))
    engine = tmp_path / "backbone.engine"
    engine.write_bytes(build_engine(flavour, request).data)
    session = TensorRtSession(engine, flavour, BACKBONE_INPUTS, BACKBONE_OUTPUTS)

    assert session.input_shapes == {"patches": ("batch", PATCH_PX, PATCH_PX, 3)}
    for batch in (1, 9):
        patches = np.random.default_rng(batch).integers(0, 256, (batch, PATCH_PX, PATCH_PX, 3), np.uint8)
        assert_same(session.run({"patches": patches}), open_session(graph).run({"patches": patches}))


def test_a_bag_uses_the_first_profile_that_covers_it(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path, patches=(Range(1, 5, 10), Range(11, 20, 40)))
    for patches in (10, 11, 3, 40):
        assert_same(session.run({"features": bag(patches)}), run_onnx(tmp_path / "fine.onnx", bag(patches)))


def test_the_error_of_a_bag_outside_all_profiles_lists_the_profiles(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    with pytest.raises(BundleError, match=r"not built for features \(101, 4\).*\(1, 4\) to \(100, 4\).*--trt-patches"):
        session.run({"features": bag(101)})


def test_device_arrays_are_not_copied_through_the_host(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    cupy = sys.modules["cupy"]
    first, second = bag(20, 1), bag(30, 2)
    on_device = [cupy.asarray(first), cupy.asarray(second)]
    copies = (gpu.copies_to_device, gpu.copies_to_host)

    results = [session.run({"features": array}) for array in on_device]

    assert (gpu.copies_to_device, gpu.copies_to_host) == copies
    for host, result in zip(
        (first, second), results, strict=True
    ):  # the second run did not overwrite the first results
        assert all(isinstance(array, cupy.ndarray) for array in result.values())
        assert_same({name: array.get() for name, array in result.items()}, run_onnx(tmp_path / "fine.onnx", host))


def test_a_run_waits_for_pending_work_of_the_callers_stream(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    cupy, host = sys.modules["cupy"], bag(20)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        array = cupy.ndarray(host.shape, host.dtype)
        array.set(host, stream=stream)  # executed when the stream is synchronised
        result = session.run({"features": array})
        gpu.finish()
        logits = result["logits"].get()
    assert_same({"logits": logits}, {"logits": run_onnx(tmp_path / "fine.onnx", host)["logits"]})


def test_device_buffers_only_grow(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    session.run({"features": bag(50)})
    allocated = len(gpu.allocations)
    for patches in (50, 1, 49):
        session.run({"features": bag(patches)})
    assert len(gpu.allocations) == allocated
    session.run({"features": bag(51)})
    assert len(gpu.allocations) == allocated + 2  # the input and the attention; the logits have the same length


def test_each_thread_has_its_own_context(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    wanted = run_onnx(tmp_path / "fine.onnx", bag(20))
    given: list[dict[str, Any]] = [session.run({"features": bag(20)})]
    threads = [threading.Thread(target=lambda: given.append(session.run({"features": bag(20)}))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 4
    for result in given:
        assert_same(result, wanted)


def test_insufficient_memory_is_reported(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    session = stage_session(tmp_path)
    gpu.memory_bytes = 100
    with pytest.raises(EnvironmentLacks, match="out of GPU memory") as caught:
        session.run({"features": bag(50)})
    assert caught.value.code == "out_of_memory"
    gpu.memory_bytes = 1 << 20
    assert session.run({"features": bag(50)})["attention"].shape == (50,)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"features": np.zeros((3, FEATURES))}, "float32, not float64"),
        ({"patches": np.zeros((3, FEATURES), np.float32)}, "takes features, not patches"),
        ({"features": np.zeros((3, FEATURES + 1), np.float32)}, "not built for"),
        ({"features": np.zeros((0, FEATURES), np.float32)}, "not built for"),
        ({"features": np.zeros((3, FEATURES, 1), np.float32)}, "not built for"),
    ],
)
def test_inputs_that_break_the_contract_are_rejected(
    inputs: dict[str, Any], words: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    with pytest.raises(BundleError, match=words):
        stage_session(tmp_path).run(inputs)


def test_an_engine_whose_tensors_break_the_contract_is_rejected(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    stage_session(tmp_path)
    with pytest.raises(BundleError, match="coarse_logits"):
        TensorRtSession(tmp_path / "fine.engine", choose_flavour(), STAGE_INPUTS, stage_outputs("hmil"))


# Loading: fitting engines, rejected engines, and rebuilding.


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engines_of_a_bundle_run_and_give_their_name_as_provider(
    flavour: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    fake = install(monkeypatch, gpu, flavour)
    add_engines(bundle_dir, EngineOptions(capabilities=("8.9",)))
    model = load_model(bundle_dir, provider="tensorrt")

    title = "TensorRT" if flavour == "tensorrt" else "TensorRT-RTX"
    assert {session.provider for session in (model.backbone, *model.stages)} == {f"{title} {fake.__version__} engine"}
    features = bag(12_000)  # for the second profile of the fine stage
    assert_same(model.stages[1].run({"features": features}), run_onnx(bundle_dir / "fine.onnx", features))


def test_a_bundle_with_an_altered_engine_is_rejected(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    bundle = add_engines(bundle_dir).bundle
    engine = bundle.file(bundle.manifest.engines[1].file)
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(BundleError, match=r"coarse.*\.engine was altered"):
        load_model(bundle_dir, provider="tensorrt")


def other_version(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    install(monkeypatch, gpu, "tensorrt-rtx", version="1.8.0.1")


def other_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    gpu.capability = "120"


def other_flavour(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    remove(monkeypatch, "tensorrt-rtx")
    install(monkeypatch, gpu, "tensorrt")


def no_flavour(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    remove(monkeypatch, "tensorrt-rtx")


def no_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    gpu.capability = ""


def other_graph(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, bundle_dir: Path) -> None:  # noqa: ARG001
    manifest = open_bundle(bundle_dir).manifest
    stale = tuple(entry.model_copy(update={"onnx_sha256": "0" * 64}) for entry in manifest.engines)
    write_manifest(bundle_dir, manifest.model_copy(update={"engines": stale}))


MISFITS = [
    (other_version, "built with version 1.7.1.116, but TensorRT-RTX 1.8.0.1 is in use"),
    (other_gpu, "built for compute capability 8.9, but this GPU has 12.0"),
    (other_flavour, "it was built with tensorrt-rtx, but tensorrt is in use"),
    (no_flavour, "no TensorRT is installed"),
    (no_gpu, "finds no NVIDIA GPU"),
    (other_graph, "built from another fine.onnx"),
]


@pytest.mark.parametrize(("change", "why"), MISFITS)
def test_the_error_of_engines_that_do_not_fit_gives_the_reason(
    change: Any, why: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    add_engines(bundle_dir, EngineOptions(capabilities=("8.9",)))
    change(monkeypatch, gpu, bundle_dir)
    with pytest.raises(EnvironmentLacks, match=why) as caught:
        load_model(bundle_dir, provider="tensorrt")
    assert caught.value.exit_code == 5
    assert ("--rebuild" in caught.value.message) == (change not in (no_flavour, no_gpu))


@pytest.mark.parametrize("change", [other_version, other_gpu, other_flavour, other_graph])
def test_rebuild_builds_engines_that_do_not_fit_only_once(
    change: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt-rtx")
    add_engines(bundle_dir, EngineOptions(capabilities=("8.9",), patches=(Range(1, 7, 99),)))
    change(monkeypatch, gpu, bundle_dir)
    before = {path: path.read_bytes() for path in bundle_dir.rglob("*") if path.is_file()}

    model = load_model(bundle_dir, provider="tensorrt", rebuild=True)

    assert model.stages[1].provider == f"{choose_flavour().title} engine"
    assert_same(model.stages[1].run({"features": bag(99)}), run_onnx(bundle_dir / "fine.onnx", bag(99)))
    with pytest.raises(BundleError, match="not built for"):  # the profiles come from the bundle's engines
        model.stages[1].run({"features": bag(100)})
    assert {path: path.read_bytes() for path in bundle_dir.rglob("*") if path.is_file()} == before
    builds = len(choose_flavour().trt.Builder.last_config)
    load_model(bundle_dir, provider="tensorrt", rebuild=True)
    assert len(choose_flavour().trt.Builder.last_config) == builds
    timings = list(default_cache().glob("timings.*"))
    assert bool(timings) == (choose_flavour().name == "tensorrt")


def test_engines_that_fit_are_not_rebuilt(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path) -> None:
    fake = install(monkeypatch, gpu, "tensorrt-rtx")
    add_engines(bundle_dir)
    builds = len(fake.Builder.last_config)
    load_model(bundle_dir, provider="tensorrt", rebuild=True)
    assert len(fake.Builder.last_config) == builds


def test_a_damaged_engine_in_the_cache_is_rebuilt(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path) -> None:
    fake = install(monkeypatch, gpu, "tensorrt-rtx")
    load_model(bundle_dir, provider="tensorrt", rebuild=True)
    engine, sidecar = (sorted(default_cache().glob(f"fine.*.{ending}"))[0] for ending in ("engine", "json"))
    assert "tensorrt-rtx-1.7.1.116.sm89.fp32" in engine.name
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    builds = len(fake.Builder.last_config)
    load_model(bundle_dir, provider="tensorrt", rebuild=True)
    assert len(fake.Builder.last_config) == builds + 1
    sidecar.write_text("{}")
    load_model(bundle_dir, provider="tensorrt", rebuild=True)
    assert len(fake.Builder.last_config) == builds + 2


def test_the_error_of_rebuilding_without_tensorrt_names_the_package(gpu: Gpu, bundle_dir: Path) -> None:
    assert gpu.capability
    with pytest.raises(EnvironmentLacks, match=r'pip install "hagmil\[tensorrt-rtx\]"'):
        load_model(bundle_dir, provider="tensorrt", rebuild=True)


def test_a_bundle_without_engines_needs_rebuild(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path) -> None:
    install(monkeypatch, gpu, "tensorrt")
    with pytest.raises(EnvironmentLacks, match=r"the bundle has no engines; pass --rebuild .* with --trt") as caught:
        load_model(bundle_dir, provider="tensorrt")
    assert caught.value.code == "engines_missing"


def test_a_single_graph_has_no_engines(bundle_dir: Path) -> None:
    with pytest.raises(UsageError, match="the engines of a bundle, not a single graph; choose cpu or cuda"):
        open_session(bundle_dir / "fine.onnx", provider="tensorrt")


def test_engine_fitness_gives_one_entry_for_each_engine(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    assert engine_fitness(open_bundle(bundle_dir)) == ()
    install(monkeypatch, gpu, "tensorrt-rtx")
    add_engines(bundle_dir, EngineOptions(capabilities=("12.0",)))
    bundle = add_engines(bundle_dir, EngineOptions(capabilities=("8.9",))).bundle

    problems = [fitness.problem for fitness in engine_fitness(bundle)]
    assert problems[:3] == ["it was built for compute capability 12.0, but this GPU has 8.9"] * 3
    assert problems[3:] == [None] * 3
    remove(monkeypatch, "tensorrt-rtx")
    assert all("not installed" in str(fitness.problem) for fitness in engine_fitness(bundle))
    gpu.capability = ""
    assert all("finds no NVIDIA GPU" in str(fitness.problem) for fitness in engine_fitness(bundle))


def test_the_installed_flavour_with_fitting_engines_is_used(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt")
    install(monkeypatch, gpu, "tensorrt-rtx")
    add_engines(bundle_dir, EngineOptions(flavour="tensorrt-rtx"))
    assert load_model(bundle_dir, provider="tensorrt").backbone.provider.startswith("TensorRT-RTX")
    with pytest.raises(UsageError, match="both TensorRT flavours are installed"):
        load_model(bundle_dir, provider="tensorrt", rebuild=True)


def test_a_version_compatible_engine_runs_on_another_version(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt")
    add_engines(bundle_dir, EngineOptions(version_compatible=True))
    install(monkeypatch, gpu, "tensorrt", version="11.9.0.1")
    assert load_model(bundle_dir, provider="tensorrt").backbone.provider == "TensorRT 11.9.0.1 engine"
    install(monkeypatch, gpu, "tensorrt", version="12.0.0.1")
    with pytest.raises(EnvironmentLacks, match="built with version 11"):
        load_model(bundle_dir, provider="tensorrt")


def test_an_engine_for_ampere_and_later_runs_on_other_gpus(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, bundle_dir: Path
) -> None:
    install(monkeypatch, gpu, "tensorrt")
    add_engines(bundle_dir, EngineOptions(hardware_compatibility="ampere_plus"))
    gpu.capability = "90"
    assert load_model(bundle_dir, provider="tensorrt").backbone.provider.startswith("TensorRT")
    gpu.capability = "75"
    with pytest.raises(EnvironmentLacks, match=r"this GPU has 7\.5"):
        load_model(bundle_dir, provider="tensorrt")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_error_of_an_engine_that_cannot_be_loaded_gives_the_reason_of_the_library(
    flavour: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, gpu, flavour)
    stage_session(tmp_path)
    gpu.capability = "120"
    with pytest.raises(
        EnvironmentLacks, match=r"(?i)cannot be loaded by TensorRT.*unsupported_cc.*--rebuild"
    ) as caught:
        TensorRtSession(tmp_path / "fine.engine", choose_flavour(), STAGE_INPUTS, stage_outputs("hag-mil"))
    assert caught.value.code == "engine_refused"


def test_the_error_of_a_real_engine_without_a_gpu_gives_the_reason_of_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(Gpu()))
    with pytest.raises(EnvironmentLacks, match=r"cannot be loaded by TensorRT-RTX.*needs an NVIDIA GPU"):
        stage_session(tmp_path)


@pytest.mark.gpu
def test_a_real_engine_on_a_gpu_gives_the_outputs_of_its_graph(tmp_path: Path) -> None:
    if not has_gpu():
        pytest.skip("needs a CUDA device and cupy")
    bundle_dir = write_small_bundle(tmp_path / "bundle")
    cupy = importlib.import_module("cupy")
    try:
        model = load_model(bundle_dir, provider="tensorrt", rebuild=True, trt_flavour="tensorrt-rtx")
    except EnvironmentLacks as refusal:
        pytest.skip(f"TensorRT-RTX refuses this GPU: {refusal.message}")
    wanted = run_onnx(bundle_dir / "fine.onnx", bag(12_000))
    assert_same(model.stages[1].run({"features": bag(12_000)}), wanted)
    on_device = model.stages[1].run({"features": cupy.asarray(bag(12_000))})
    assert_same({name: cupy.asnumpy(array) for name, array in on_device.items()}, wanted)


def has_gpu() -> bool:
    """Whether cupy finds a device."""
    try:
        return bool(importlib.import_module("cupy").cuda.is_available())
    except ImportError:
        return False
