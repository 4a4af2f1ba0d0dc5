"""Building TensorRT engines; TensorRT-RTX builds them without a GPU."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from hagmil._files import atomic_path
from hagmil._tensorrt import builder
from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.flavour import Flavour, choose_flavour, load_flavour, resolve_capabilities
from hagmil._tensorrt.profiles import Range, backbone_profile, bag_profiles, bundle_profiles, parse_range
from hagmil.bundle import EnginePrecision, Manifest, ShapeRange, file_entries, manifest_schema, open_bundle
from hagmil.bundle import write_manifest as write
from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.export import tensorrt
from hagmil.export.graph import save
from hagmil.export.parity.stages import stage_graph
from hagmil.export.pipeline import ExportReport
from hagmil.export.stage_half_precision import ReducedPrecision
from hagmil.export.tensorrt import BUILD_LOG_NAME, EngineOptions, add_engines, engine_target
from tests.export import shared
from tests.export.checkpoints import CERTAINTY, additive_model
from tests.export.graphs import BAGS, EXAMPLES, example, example_graph
from tests.fakes.bundles import FEATURES, write_small_bundle
from tests.fakes.cuda_driver import install_gpu
from tests.fakes.gpu import Gpu
from tests.fakes.tensorrt import BuilderFlag, HardwareCompatibilityLevel, MemoryPoolType, fake_tensorrt

GraphOf = Callable[[str, EnginePrecision], Path]
pytestmark = pytest.mark.timeout(900)  # builds engines of full-size blocks
MEMORY_MB = {
    "tiny backbone": {"fp32": 16.3, "fp16": 12.8},
    "resnet50-trunc": {"fp32": 540, "fp16": 270},
    "ViT, small": {"fp32": 9.5, "fp16": 9.0},
    "ViT-S/16, 4 blocks": {"fp32": 223, "fp16": 77.5},
    "IAT, small": {"fp32": 37.1, "fp16": 30.8},
    "IAT, 2 blocks": {"fp32": 851, "fp16": 487},
    "HMIL": {"fp32": 126.5, "fp16": 85.6},
}
"""GPU memory of an engine, for 64 patches of a backbone or a bag of 10,000."""
TESTED = [name for name in EXAMPLES if name not in ("ViT-S/16", "IAT, full")]  # a few full-size blocks of each suffice


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> GraphOf:
    """Returns the graph file of an example, exported once."""
    folder = tmp_path_factory.mktemp("graphs")

    def graph(name: str, precision: EnginePrecision) -> Path:
        path = folder / f"{sorted(EXAMPLES).index(name)}.{precision}.onnx"
        if not path.is_file():
            save(example_graph(name, precision), path)
        return path

    return graph


@pytest.fixture
def rtx() -> Flavour:
    """The real TensorRT-RTX."""
    return load_flavour("tensorrt-rtx")


@pytest.fixture
def data_centre(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A machine with a GPU of capability 9.0 and a fake TensorRT instead of TensorRT-RTX."""
    gpu = Gpu(capability="90")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install_gpu(monkeypatch, gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(gpu))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    return gpu


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    """A bundle of the smallest graphs."""
    return write_small_bundle(tmp_path / "bundle")


# Every kind of model.


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", TESTED)
def test_an_engine_is_built_without_a_gpu(
    name: str, precision: EnginePrecision, graph_of: GraphOf, rtx: Flavour
) -> None:
    graph = graph_of(name, precision)
    engine = build_engine(rtx, BuildRequest(graph, example(name).profiles, ("8.9",)))

    assert engine.precision == precision
    assert engine.layers > 10
    weights_bytes = sum(len(one.raw_data) for one in onnx.load(graph).graph.initializer)
    assert len(engine.data) > weights_bytes  # the engine contains all weights
    assert engine.memory_bytes is not None
    assert engine.memory_bytes / 1e6 == pytest.approx(MEMORY_MB[name][precision], rel=0.1)


@pytest.mark.parametrize(("rows", "megabytes"), [("transformer", 29.3), ("independent", 10.2)])
def test_an_engine_of_an_additive_stage_is_built(rows: str, megabytes: float, tmp_path: Path, rtx: Flavour) -> None:
    save(shared.stage_graph(additive_model(rows, 24), 24, "hag-mil", "fp16"), tmp_path / "fine.onnx")
    engine = build_engine(rtx, BuildRequest(tmp_path / "fine.onnx", bag_profiles(24, BAGS), ("8.9",)))
    assert engine.precision == "fp16"
    assert engine.memory_bytes is not None
    assert engine.memory_bytes / 1e6 == pytest.approx(megabytes, rel=0.1)


def test_a_bf16_graph_is_built(graph_of: GraphOf, rtx: Flavour) -> None:
    request = BuildRequest(graph_of("HMIL", "bf16"), example("HMIL").profiles, ("8.0",))
    assert build_engine(rtx, request).precision == "bf16"


def test_fp16_graphs_are_built_for_turing(graph_of: GraphOf, rtx: Flavour) -> None:
    request = BuildRequest(graph_of("IAT, small", "fp16"), example("IAT, small").profiles, ("7.5",))
    assert build_engine(rtx, request).precision == "fp16"


def test_an_fp32_graph_for_turing_is_refused_with_a_remedy(graph_of: GraphOf, rtx: Flavour) -> None:
    request = BuildRequest(graph_of("IAT, small", "fp32"), example("IAT, small").profiles, ("7.5",))
    with pytest.raises(BundleError, match=r"FP32 GEMM is not supported.*export with --precision fp16"):
        build_engine(rtx, request)


def test_one_engine_can_be_built_for_all_generations(graph_of: GraphOf, rtx: Flavour) -> None:
    capabilities = resolve_capabilities(rtx, ())
    assert capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    build_engine(rtx, BuildRequest(graph_of("HMIL", "fp16"), example("HMIL").profiles, capabilities))


def test_reduced_precision_keeps_float32_inputs_and_outputs_and_the_model() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.seen: torch.dtype | None = None

        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            self.seen = rows.dtype
            doubled = self.linear(rows)
            return doubled, doubled * 2

    model, rows = Doubled(), torch.randn(3, 4)
    half = ReducedPrecision(model)
    once, twice = half(rows)
    assert (once.dtype, twice.dtype) == (torch.float32, torch.float32)
    assert vars(half.module)["seen"] is torch.float16
    assert model.linear.weight.dtype == torch.float32
    torch.testing.assert_close(once, model(rows)[0], rtol=0, atol=5e-3)


# Errors of TensorRT.


def test_a_graph_that_cannot_be_parsed_is_refused_with_its_node_and_a_remedy(tmp_path: Path, rtx: Flavour) -> None:
    class OneAxis(nn.Module):
        def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
            attention = torch.softmax(features[:, 0], dim=0)
            return features.mean(dim=0), attention

    graph = tmp_path / "fine.onnx"
    save(stage_graph(OneAxis(), FEATURES, "hag-mil"), graph)
    wanted = r'"fine.onnx" cannot be parsed by TensorRT-RTX .* at node "node_softmax" \(Softmax\).*keep two axes'
    with pytest.raises(BundleError, match=wanted):
        build_engine(rtx, BuildRequest(graph, bag_profiles(FEATURES, (Range(1, 2, 3),)), ("8.9",)))


def test_an_unsupported_operator_is_named(tmp_path: Path, rtx: Flavour) -> None:
    graph = tmp_path / "odd.onnx"
    value = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", 4, 4])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["patches"])
    node = helper.make_node("Det", ["features"], ["logits"], name="the_odd_one")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [value], [result]), ir_version=10), graph)
    shapes = ShapeRange(minimum=(1, 4, 4), optimum=(2, 4, 4), maximum=(3, 4, 4))
    with pytest.raises(BundleError, match=r'node "the_odd_one" \(Det\): UNSUPPORTED_NODE; TensorRT does not support'):
        build_engine(rtx, BuildRequest(graph, ({"features": shapes},), ("8.9",)))


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path, rtx: Flavour) -> None:
    (tmp_path / "none.onnx").write_bytes(b"hello")
    with pytest.raises(BundleError, match=r'"none\.onnx" is not an ONNX graph'):
        build_engine(rtx, BuildRequest(tmp_path / "none.onnx", (backbone_profile(8),), ("8.9",)))


def test_a_profile_that_does_not_fit_the_inputs_is_refused(graph_of: GraphOf, rtx: Flavour) -> None:
    with pytest.raises(BundleError, match=r"has the axes \(-1, 32, 32, 3\) .* its profile has \(1, 64, 64, 3\)"):
        build_engine(rtx, BuildRequest(graph_of("ViT, small", "fp16"), (backbone_profile(64),), ("8.9",)))
    with pytest.raises(BundleError, match="has the inputs patches, but its profile has features"):
        build_engine(rtx, BuildRequest(graph_of("ViT, small", "fp16"), bag_profiles(4, (Range(1, 2, 3),)), ("8.9",)))


def test_a_workspace_that_is_too_small_is_reported(graph_of: GraphOf, rtx: Flavour) -> None:
    profiles = example("ViT, small").profiles
    with pytest.raises(BundleError, match=r"within workspace limit.*increase --trt-workspace-gib"):
        build_engine(rtx, BuildRequest(graph_of("ViT, small", "fp16"), profiles, ("8.9",), workspace_bytes=1 << 20))


# Flavours and capabilities.


@pytest.mark.parametrize("capability", ["9.0", "10.0"])
def test_rtx_names_the_flavour_for_data_centre_gpus(capability: str, rtx: Flavour) -> None:
    with pytest.raises(
        EnvironmentLacks, match=rf'{capability}, only for 7\.5, .*12\.1;.*"hagmil\[tensorrt\]"'
    ) as caught:
        resolve_capabilities(rtx, ("8.9", capability))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("capability", ["89", "sm89", "8.9.1", ""])
def test_an_invalid_compute_capability_is_refused(capability: str, rtx: Flavour) -> None:
    with pytest.raises(UsageError, match=r"write it like 8\.9"):
        resolve_capabilities(rtx, (capability,))


def test_capabilities_are_ascending_and_unique(rtx: Flavour) -> None:
    assert resolve_capabilities(rtx, ("12.0", "8.9", "12.0")) == ("8.9", "12.0")


def test_a_missing_flavour_is_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, small_bundle: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentLacks, match=r'pip install "hagmil\[tensorrt-rtx\]"') as caught:
        add_engines(small_bundle)
    assert caught.value.exit_code == 5
    for name in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(EnvironmentLacks, match=rf'pip install "hagmil\[{name}\]"'):
            engine_target(EngineOptions(flavour=name))


def test_missing_libraries_of_a_flavour_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EnvironmentLacks, match=r"library libnvinfer\.so\.11 of the package \S+ is missing"):
        choose_flavour("tensorrt")


def test_an_unknown_flavour_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="choose one of tensorrt, tensorrt-rtx"):
        choose_flavour("openvino")


def test_options_that_rtx_does_not_support_are_refused_before_the_build(rtx: Flavour) -> None:
    assert rtx.version
    with pytest.raises(UsageError, match="does not support --trt-hardware-compatibility; pass --compute-capability"):
        engine_target(EngineOptions(hardware_compatibility="ampere_plus"))
    with pytest.raises(UsageError, match="does not support --trt-version-compatible"):
        engine_target(EngineOptions(version_compatible=True))


@pytest.mark.filterwarnings("error")
def test_rtx_ignores_the_timing_cache_and_logs_it(
    graph_of: GraphOf, rtx: Flavour, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = BuildRequest(
        graph_of("HMIL", "fp16"), example("HMIL").profiles, ("8.9",), timing_cache=tmp_path / "timings"
    )
    with caplog.at_level(logging.INFO):
        build_engine(rtx, request)
    assert "does not use a timing cache" in caplog.text
    assert not (tmp_path / "timings").exists()


def test_the_data_centre_flavour_builds_for_the_present_gpu_only(data_centre: Gpu, small_bundle: Path) -> None:
    entries = [report.entry for report in add_engines(small_bundle).engines]
    assert {(entry.flavour, entry.capabilities) for entry in entries} == {("tensorrt", ("9.0",))}
    with pytest.raises(EnvironmentLacks, match=r"which has compute capability 9\.0, not 8\.9.*tensorrt-rtx"):
        add_engines(small_bundle, EngineOptions(capabilities=("8.9",)))
    data_centre.capability = ""
    with pytest.raises(EnvironmentLacks, match="finds no NVIDIA GPU"):
        add_engines(small_bundle)


@pytest.mark.usefixtures("data_centre")
def test_timings_are_stored_between_builds_by_default(small_bundle: Path, tmp_path: Path) -> None:
    add_engines(small_bundle)
    add_engines(small_bundle)
    kept = tmp_path / "cache" / "hagmil" / "engines" / "timings.tensorrt-11.4.0.106.cache"
    assert kept.read_bytes() == b"6 builds"


@pytest.mark.usefixtures("data_centre")
def test_options_are_passed_to_the_data_centre_flavour(small_bundle: Path, tmp_path: Path) -> None:
    timings = tmp_path / "timings.cache"
    options = EngineOptions(
        workspace_bytes=1 << 30, hardware_compatibility="ampere_plus", version_compatible=True, timing_cache=timings
    )
    report = add_engines(small_bundle, options)

    config = choose_flavour().trt.Builder.last_config[-1]
    assert config._flags == {BuilderFlag.VERSION_COMPATIBLE}  # TF32, on by default, is off
    assert config._level == HardwareCompatibilityLevel.AMPERE_PLUS
    assert config._limits == {MemoryPoolType.WORKSPACE: 1 << 30}
    assert report.engines[0].entry.hardware_compatibility == "ampere_plus"
    assert report.engines[0].entry.version_compatible
    assert timings.read_bytes() == b"3 builds"
    add_engines(small_bundle, options)
    assert timings.read_bytes() == b"6 builds"  # the second build of three engines starts with the timings of the first


def test_tf32_is_off_in_a_real_build(graph_of: GraphOf, rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    configure, configs = builder._configure, []

    def watched(*arguments: Any) -> Any:
        configs.append(configure(*arguments))
        return configs[-1]

    monkeypatch.setattr(builder, "_configure", watched)
    build_engine(rtx, BuildRequest(graph_of("HMIL", "fp32"), example("HMIL").profiles, ("8.9",)))
    assert [config.get_flag(rtx.trt.BuilderFlag.TF32) for config in configs] == [False]


# Profiles.


def test_a_range_is_parsed_as_min_opt_max() -> None:
    assert parse_range("--trt-batch", "1,64,256") == Range(1, 64, 256)
    for wrong in ("1,2", "1,2,3,4", "a,b,c", "", "3,2,1", "0,1,2"):
        with pytest.raises(UsageError):
            parse_range("--trt-batch", wrong)


def test_profiles_cover_the_largest_bag_of_each_stage(tmp_path: Path) -> None:
    profiles = bundle_profiles(open_bundle(write_small_bundle(tmp_path)).manifest)
    assert list(profiles) == ["backbone.onnx", "coarse.onnx", "fine.onnx"]
    assert [_lengths(profile["patches"]) for profile in profiles["backbone.onnx"]] == [(1, 64, 256)]
    assert [_lengths(profile["features"]) for profile in profiles["coarse.onnx"]] == [
        (1, 3_000, 10_000),
        (10_001, 20_000, 40_000),
    ]
    assert [_lengths(profile["features"]) for profile in profiles["fine.onnx"]] == [
        (1, 3_000, 10_000),
        (10_001, 10_001, 20_000),  # four children of each of the 5,000 that the coarse stage keeps
    ]


def test_profiles_cover_the_bags_of_adaptive_runs(tmp_path: Path) -> None:
    manifest = open_bundle(write_small_bundle(tmp_path)).manifest
    coarse = manifest.stages[0].model_copy(update={"keep": 4})
    stages = {"stages": (coarse, *manifest.stages[1:])}
    for certainty, largest in ((None, 4 * 4), (CERTAINTY, 4 * 32)):
        profiles = bundle_profiles(manifest.model_copy(update={**stages, "certainty": certainty}))
        assert [_lengths(profile["features"]) for profile in profiles["fine.onnx"]] == [(1, largest, largest)]


def test_requested_profiles_apply_to_every_stage(tmp_path: Path) -> None:
    manifest = open_bundle(write_small_bundle(tmp_path)).manifest
    profiles = bundle_profiles(manifest, batch=Range(1, 2, 3), patches=(Range(1, 5, 9), Range(10, 20, 30)))
    assert _lengths(profiles["backbone.onnx"][0]["patches"]) == (1, 2, 3)
    for stage in ("coarse.onnx", "fine.onnx"):
        assert [_lengths(profile["features"]) for profile in profiles[stage]] == [(1, 5, 9), (10, 20, 30)]


# Engines in a bundle.


@pytest.fixture(scope="module")
def with_engines(tmp_path_factory: pytest.TempPathFactory, report: ExportReport) -> tensorrt.EnginesReport:
    """A bundle of two stages on the tiny backbone, with engines for two GPUs."""
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(report.bundle.path, folder)
    return add_engines(folder, EngineOptions(capabilities=("8.9", "8.0"), patches=(Range(1, 100, 1_000),)))


def test_the_manifest_lists_engines_with_names_and_digests(with_engines: tensorrt.EnginesReport, rtx: Flavour) -> None:
    bundle = with_engines.bundle
    names = [entry.file for entry in bundle.manifest.engines]
    digest = bundle.manifest.files["coarse.onnx"].sha256[:12]

    assert [entry.graph for entry in bundle.manifest.engines] == ["backbone.onnx", "coarse.onnx", "fine.onnx"]
    assert names[1] == f"engines/coarse.tensorrt-rtx-{rtx.version}.sm80-sm89.fp32.{digest}.engine"
    assert {*names, BUILD_LOG_NAME} <= bundle.manifest.files.keys()
    assert bundle.manifest.files == file_entries(bundle.path)
    assert {entry.capabilities for entry in bundle.manifest.engines} == {("8.0", "8.9")}
    assert _lengths(bundle.manifest.engines[1].profiles[0]["features"]) == (1, 100, 1_000)
    assert all(entry.memory_bytes for entry in bundle.manifest.engines)
    assert [one.file for one in with_engines.engines] == [bundle.manifest.files[name] for name in names]
    jsonschema.validate(json.loads((bundle.path / "bundle.json").read_text()), json.loads(manifest_schema()))


def test_the_build_log_contains_messages_and_no_paths(with_engines: tensorrt.EnginesReport, rtx: Flavour) -> None:
    log = with_engines.bundle.file(BUILD_LOG_NAME).read_text()
    assert log.startswith(f"=== {rtx.title}, compute capability 8.0, 8.9\n")
    for graph in ("backbone.onnx", "coarse.onnx", "fine.onnx"):
        assert f"Input filename:   {graph}" in log
    assert log.count("Engine generation completed") == 3
    assert "VERBOSE" not in log
    assert str(with_engines.bundle.path.parent) not in log


@pytest.mark.parametrize("kind", ["engine", "onnx"])
def test_a_bundle_with_one_flipped_bit_in_an_engine_cannot_be_opened(
    kind: str, with_engines: tensorrt.EnginesReport, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(with_engines.bundle.path, folder)
    assert open_bundle(folder).sha256 == with_engines.bundle.sha256
    victim = sorted(folder.rglob(f"fine.*{kind}"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 0x10
    victim.write_bytes(data)
    with pytest.raises(BundleError, match=r"fine.*was altered") as caught:
        open_bundle(folder)
    assert caught.value.exit_code == 4


def test_engines_for_another_gpu_are_added_and_equal_ones_replaced(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    first = add_engines(folder, EngineOptions(capabilities=("8.9",))).bundle
    second = add_engines(folder, EngineOptions(capabilities=("12.0",))).bundle
    third = add_engines(folder, EngineOptions(capabilities=("8.9",), batch=Range(1, 2, 4))).bundle

    targets = [entry.capabilities for entry in third.manifest.engines]
    assert targets == [("12.0",)] * 3 + [("8.9",)] * 3
    assert _lengths(third.manifest.engines[3].profiles[0]["patches"]) == (1, 2, 4)
    assert len({bundle.sha256 for bundle in (first, second, third)}) == 3
    assert third.manifest.files == file_entries(folder)
    assert third.file(BUILD_LOG_NAME).read_text().count("=== TensorRT-RTX") == 3


def test_engines_of_a_changed_graph_are_removed(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    before = add_engines(folder, EngineOptions(capabilities=("8.9",))).bundle.manifest
    write_small_bundle(tmp_path / "other", gain=2)
    shutil.copyfile(tmp_path / "other" / "fine.onnx", folder / "fine.onnx")
    write(folder, before.model_copy(update={"files": file_entries(folder)}))

    after = add_engines(folder, EngineOptions(capabilities=("12.0",))).bundle.manifest

    assert [entry.graph for entry in after.engines if entry.capabilities == ("8.9",)] == [
        "backbone.onnx",
        "coarse.onnx",
    ]
    assert after.files == file_entries(folder)


def test_a_failed_build_keeps_the_bundle_and_writes_a_log_beside_it(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    before = _contents(folder)
    with pytest.raises(BundleError, match=r"FP32 GEMM.*the complete log is \".*bundle\.build\.log\"") as caught:
        add_engines(folder, EngineOptions(capabilities=("7.5",)))
    assert caught.value.code == "engine_failed"
    assert _contents(folder) == before
    assert "FP32 GEMM" in (tmp_path / "bundle.build.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.build.log"]


def test_the_bundle_can_be_opened_after_an_interruption_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(capabilities=("8.9",))
    before = write_small_bundle(tmp_path / "before")
    add_engines(before, options)
    steps = _count_steps(monkeypatch)
    add_engines(shutil.copytree(before, tmp_path / "whole"), options)
    assert steps.taken == 6  # two manifests, three engines, the log
    for last in range(6):
        folder = shutil.copytree(before, tmp_path / f"cut-{last}")
        steps.stop_after(last)
        with pytest.raises(KeyboardInterrupt):
            add_engines(folder, options)
        open_bundle(folder)
        steps.stop_after(None)
        assert len(add_engines(folder, options).bundle.manifest.engines) == 3


def test_engines_of_an_altered_bundle_are_not_built(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    (folder / "fine.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="was altered"):
        add_engines(folder)


def test_progress_is_reported_per_engine(tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    add_engines(
        write_small_bundle(tmp_path / "bundle"),
        EngineOptions(capabilities=("8.9",)),
        progress=lambda *step: reported.append(step),
    )
    assert reported == [("engines", done, 3) for done in range(4)]


def test_a_manifest_with_an_engine_but_without_its_file_is_refused(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    manifest = add_engines(folder, EngineOptions(capabilities=("8.9",))).bundle.manifest
    files = {name: entry for name, entry in manifest.files.items() if "fine.tensorrt" not in name}
    write(folder, manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match="engines or their graphs not listed in files"):
        open_bundle(folder)


class Steps:
    """Counts the writes of a commit and interrupts it after some of them."""

    def __init__(self) -> None:
        self.taken = 0
        self.last: int | None = None

    def stop_after(self, last: int | None) -> None:
        """Cut the power after so many steps; never where None."""
        self.taken, self.last = 0, last

    def take(self) -> None:
        """Another step, or the cut."""
        if self.last is not None and self.taken == self.last:
            raise KeyboardInterrupt
        self.taken += 1


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()

    def counted_manifest(folder: Path, manifest: Manifest) -> None:
        steps.take()
        write(folder, manifest)

    def counted_path(path: Path) -> object:
        steps.take()
        return atomic_path(path)

    monkeypatch.setattr(tensorrt, "write_manifest", counted_manifest)
    monkeypatch.setattr(tensorrt, "atomic_path", counted_path)
    return steps


def _lengths(shapes: ShapeRange) -> tuple[int, int, int]:
    return shapes.minimum[0], shapes.optimum[0], shapes.maximum[0]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
