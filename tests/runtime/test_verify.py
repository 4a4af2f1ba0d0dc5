"""Verification finds every kind of fault in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from hagmil.bundle import SELFTEST_NAME, EngineEntry, ShapeRange, file_entries, open_bundle, write_manifest
from hagmil.errors import EnvironmentLacks, UsageError
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.onnx import available_providers
from hagmil.runtime.verify import Check, VerifyReport, verify_bundle
from hagmil.selftest import SelfTestCase, write_selftest
from tests.runtime.small_bundle import additive_stage_graph, write_small_bundle

STAGES = ("2um", "1um", "0.5um")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle whose self-test passes."""
    folder = write_small_bundle(tmp_path / "bundle")
    _write_selftest(folder)
    return folder


def _write_selftest(folder: Path, *, off: float = 0.0, without: str | None = None) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, dict[str, Any]] = {name: {"features": rng.random((5, 3), np.float32)} for name in STAGES}
    inputs["backbone"] = {"patches": rng.integers(0, 256, (2, 16, 16, 3), np.uint8)}
    cases = []
    for name, arrays in inputs.items():
        outputs = open_session(folder / f"{name}.onnx", threads=1).run(dict(arrays))
        wanted = {key: np.asarray(value, np.float32) + np.float32(off) for key, value in outputs.items()}
        if name != without:
            cases.append(SelfTestCase(name, arrays, wanted, 1e-3, 0.0))
    write_selftest(folder / SELFTEST_NAME, cases)
    _sign(folder)


def _sign(folder: Path, **changes: Any) -> None:
    """Write a manifest with the digests of the present files."""
    manifest = open_bundle(folder, verify=False).manifest
    write_manifest(folder, manifest.model_copy(update={"files": file_entries(folder), **changes}))


def _failed(report: VerifyReport) -> list[Check]:
    assert not report.passed
    return [check for check in report.checks if check.state == "failed"]


def test_a_good_bundle_passes_every_check(bundle: Path) -> None:
    report = verify_bundle(bundle, threads=1)

    assert report.passed
    assert report.bundle_sha256 == open_bundle(bundle).sha256
    assert {check.state for check in report.checks} == {"ok"}
    assert [check.subject for check in report.checks if check.part == "graph"] == [
        "backbone.onnx", "2um.onnx", "1um.onnx", "0.5um.onnx",
    ]  # fmt: skip
    assert len([check for check in report.checks if check.part == "self-test"]) == 7
    assert VerifyReport.model_validate_json(report.model_dump_json()) == report


def test_altered_and_missing_files_are_reported_and_nothing_is_run(bundle: Path) -> None:
    (bundle / "2um.onnx").write_bytes(b"other")
    (bundle / "1um.onnx").unlink()
    report = verify_bundle(bundle)

    assert [check.subject for check in _failed(report)] == ["1um.onnx", "2um.onnx"]
    assert [check.part for check in report.checks if check.state == "skipped"] == ["graph", "self-test"]


def test_an_invalid_manifest_is_a_failed_check(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{}")
    (check,) = _failed(verify_bundle(bundle))

    assert check.part == "manifest"
    assert "is not valid" in check.detail


def test_a_failed_self_test_states_the_difference(bundle: Path) -> None:
    _write_selftest(bundle, off=0.01)
    checks = _failed(verify_bundle(bundle))

    assert {check.part for check in checks} == {"self-test"}
    assert checks[0].subject == "backbone features"
    assert "off by 1.0e-02, 1.0e-03 allowed" in checks[0].detail


def test_a_graph_without_a_self_test_case_fails(bundle: Path) -> None:
    _write_selftest(bundle, without="1um")
    (check,) = _failed(verify_bundle(bundle))

    assert (check.subject, check.detail) == ("1um", "the self-test has no case for it")


def test_a_bundle_without_a_self_test_fails(tmp_path: Path) -> None:
    (check,) = _failed(verify_bundle(write_small_bundle(tmp_path / "bundle")))

    assert check.subject == SELFTEST_NAME


def _set_input(model: onnx.ModelProto, axes: list[str | int]) -> None:
    entry = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, axes)
    model.graph.input[0].CopyFrom(entry)


def _rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "scores"
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "attention" else name for name in node.output]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: _set_input(model, ["patches", 4]), "input features has 4 dim, the manifest says 3"),
        (lambda model: _set_input(model, [7, 3]), "has axis 7 where the contract has 'patches'"),
        (_rename_output, "outputs logits, scores, not logits, attention"),
    ],
)
def test_a_graph_that_breaks_the_contract_fails(bundle: Path, change: Any, words: str) -> None:
    model = onnx.load(bundle / "1um.onnx")
    change(model)
    onnx.save(model, bundle / "1um.onnx")
    _sign(bundle)
    checks = _failed(verify_bundle(bundle))

    assert checks[0].subject in ("1um.onnx", "all")
    assert any(words in check.detail for check in checks) or "cannot be loaded" in checks[0].detail


def test_evidence_must_sum_to_the_logits_up_to_a_constant(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", readout="additive")
    _write_selftest(bundle)
    report = verify_bundle(bundle, threads=1)
    assert report.passed
    assert [check.subject for check in report.checks if "sum of" in check.subject] == [
        f"{stage} sum of evidence" for stage in STAGES
    ]
    onnx.save(additive_stage_graph("ReduceMean"), bundle / "1um.onnx")
    _write_selftest(bundle)
    (check,) = _failed(verify_bundle(bundle, threads=1))
    assert check.subject == "1um sum of evidence"
    assert "between two bags, 1.0e-03 allowed" in check.detail


def test_a_bundle_with_the_additive_read_out_must_give_evidence(bundle: Path) -> None:
    _sign(bundle, readout="additive")
    checks = _failed(verify_bundle(bundle, threads=1))
    assert checks[0].detail == "outputs logits, attention, not logits, attention, evidence"


def test_a_number_of_classes_that_differs_from_the_manifest_fails(bundle: Path) -> None:
    _sign(bundle, classes=("a", "b", "c"))
    checks = _failed(verify_bundle(bundle))

    assert [check.subject for check in checks] == ["2um.onnx", "1um.onnx", "0.5um.onnx"]
    assert "output logits has 2 classes, the manifest says 3" in checks[0].detail


def test_an_engine_of_another_graph_fails_and_an_engine_for_another_machine_gives_a_note(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    (bundle / "engines" / "a.engine").write_bytes(b"engine")
    graph = open_bundle(bundle).manifest.files["1um.onnx"].sha256
    for sha256, state in ((graph, "note"), ("0" * 64, "failed")):
        _sign(bundle, engines=(_engine(sha256),))
        (check,) = [check for check in verify_bundle(bundle).checks if check.part == "engine"]
        assert check.state == state


def _engine(onnx_sha256: str) -> EngineEntry:
    shapes = ShapeRange(minimum=(1, 3), optimum=(2, 3), maximum=(3, 3))
    return EngineEntry(
        file="engines/a.engine",
        graph="1um.onnx",
        onnx_sha256=onnx_sha256,
        flavour="tensorrt",
        flavour_version="0.0",
        capabilities=("1.0",),
        precision="fp32",
        profiles=({"features": shapes},),
    )


def test_a_missing_provider_is_an_error_and_not_a_failed_check(bundle: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentLacks):
        verify_bundle(bundle, provider="cuda")
    with pytest.raises(UsageError):
        verify_bundle(bundle, provider="abacus")


def test_a_backbone_may_fix_the_patch_size_of_the_bundle(bundle: Path) -> None:
    model = onnx.load(bundle / "backbone.onnx")
    for side, passed in ((16, True), (32, False)):
        entry = helper.make_tensor_value_info("patches", onnx.TensorProto.UINT8, ["batch", side, side, 3])
        model.graph.input[0].CopyFrom(entry)
        onnx.save(model, bundle / "backbone.onnx")
        _sign(bundle)
        assert verify_bundle(bundle).passed == passed


@pytest.mark.parametrize("content", [b"", b"hello, this is not a graph", b"\xff" * 40])
def test_a_file_that_is_not_onnx_fails_the_graph_check(bundle: Path, content: bytes) -> None:
    (bundle / "1um.onnx").write_bytes(content)
    _sign(bundle)
    (check,) = _failed(verify_bundle(bundle))

    assert (check.part, check.subject) == ("graph", "all")
    assert "1um.onnx" in check.detail
    assert "cannot be read as ONNX" in check.detail
