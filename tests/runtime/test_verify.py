"""A bundle held against itself: every kind of fault, found and told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from hagmil.bundle import SELFTEST_NAME, EngineEntry, ShapeRange, file_entries, open_bundle, write_manifest
from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.onnx import available_providers
from hagmil.runtime.sessions.onnx_header import read_onnx_header
from hagmil.runtime.verify import Check, VerifyReport, verify_bundle
from hagmil.selftest import SelfTestCase, write_selftest
from tests.runtime.small_bundle import write_small_bundle

STAGES = ("2um", "1um", "0.5um")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle with a self-test that holds."""
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
    """Write a manifest whose digests are those of the files."""
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


def test_every_file_that_is_wrong_is_told_and_nothing_is_run(bundle: Path) -> None:
    (bundle / "2um.onnx").write_bytes(b"other")
    (bundle / "1um.onnx").unlink()
    report = verify_bundle(bundle)

    assert [check.subject for check in _failed(report)] == ["1um.onnx", "2um.onnx"]
    assert [check.part for check in report.checks if check.state == "skipped"] == ["graph", "self-test"]


def test_a_manifest_that_cannot_be_read_is_a_failed_check(bundle: Path) -> None:
    (bundle / "bundle.json").write_text("{}")
    (check,) = _failed(verify_bundle(bundle))

    assert check.part == "manifest"
    assert "is not valid" in check.detail


def test_a_self_test_that_is_off_says_by_how_much(bundle: Path) -> None:
    _write_selftest(bundle, off=0.01)
    checks = _failed(verify_bundle(bundle))

    assert {check.part for check in checks} == {"self-test"}
    assert checks[0].subject == "backbone features"
    assert "off by 1.0e-02, 1.0e-03 allowed" in checks[0].detail


def test_a_graph_that_the_self_test_leaves_out_is_not_verified(bundle: Path) -> None:
    _write_selftest(bundle, without="1um")
    (check,) = _failed(verify_bundle(bundle))

    assert (check.subject, check.detail) == ("1um", "the self-test holds no case of it")


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
        (lambda model: model.opset_import.add(domain="com.microsoft", version=1), "operators of com.microsoft"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_told(bundle: Path, change: Any, words: str) -> None:
    model = onnx.load(bundle / "1um.onnx")
    change(model)
    onnx.save(model, bundle / "1um.onnx")
    _sign(bundle)
    checks = _failed(verify_bundle(bundle))

    assert checks[0].subject in ("1um.onnx", "all")
    assert any(words in check.detail for check in checks) or "cannot be loaded" in checks[0].detail


def test_another_opset_than_the_manifest_s_is_told(bundle: Path) -> None:
    _sign(bundle, opsets={"1um.onnx": 17})
    (check,) = _failed(verify_bundle(bundle))

    assert check.detail == "opset 20, the manifest says 17"


def test_other_classes_than_the_manifest_s_are_told(bundle: Path) -> None:
    _sign(bundle, classes=("a", "b", "c"))
    checks = _failed(verify_bundle(bundle))

    assert [check.subject for check in checks] == ["2um.onnx", "1um.onnx", "0.5um.onnx"]
    assert "output logits has 2 classes, the manifest says 3" in checks[0].detail


def test_an_engine_of_another_graph_fails_and_one_of_this_graph_for_another_machine_is_noted(bundle: Path) -> None:
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


def test_an_absent_provider_is_no_fault_of_the_bundle(bundle: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentLacks):
        verify_bundle(bundle, provider="cuda")
    with pytest.raises(UsageError):
        verify_bundle(bundle, provider="abacus")


def test_a_backbone_may_fix_the_side_of_its_patches(bundle: Path) -> None:
    model = onnx.load(bundle / "backbone.onnx")
    for side, passed in ((16, True), (32, False)):
        entry = helper.make_tensor_value_info("patches", onnx.TensorProto.UINT8, ["batch", side, side, 3])
        model.graph.input[0].CopyFrom(entry)
        onnx.save(model, bundle / "backbone.onnx")
        _sign(bundle)
        assert verify_bundle(bundle).passed == passed


# The header.


def test_the_header_says_what_the_onnx_package_says(bundle: Path) -> None:
    model = onnx.load(bundle / "1um.onnx")
    model.producer_name = "somebody"
    model.opset_import.add(domain="com.acme", version=3)
    model.graph.doc_string = "x" * 100_000  # a graph that is leapt over
    onnx.save(model, bundle / "1um.onnx")
    header = read_onnx_header(bundle / "1um.onnx")

    assert (header.ir_version, header.producer, header.opset) == (10, "somebody", 20)
    assert header.opsets == {"": 20, "com.acme": 3}


@pytest.mark.parametrize("content", [b"", b"hello, this is no graph", b"\xff" * 40])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "none.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        read_onnx_header(tmp_path / "none.onnx")


def test_a_file_that_is_cut_off_is_refused(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "1um.onnx").read_bytes()
    shutil.copyfile(bundle / "1um.onnx", tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        read_onnx_header(tmp_path / "cut.onnx")
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        read_onnx_header(tmp_path / "absent.onnx")
