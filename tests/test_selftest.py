"""The file of the self-test."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagmil.errors import BundleError
from hagmil.selftest import SelfTestCase, read_selftest, write_selftest


def _cases() -> list[SelfTestCase]:
    patches = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    bag = np.ones((3, 2), np.float32)
    return [
        SelfTestCase("backbone", {"patches": patches}, {"features": np.ones((1, 2), np.float32)}, 1e-3, 1e-4),
        SelfTestCase("a.b-c", {"features": bag}, {"logits": bag[0], "attention": bag[:, 0]}, 1e-2, 0.0),
        SelfTestCase(
            "additive", {"features": bag}, {"evidence": np.arange(6, dtype=np.float32).reshape(3, 2).T}, 0.1, 0.0
        ),
    ]


def test_read_selftest_returns_the_cases_in_the_written_order(tmp_path: Path) -> None:
    write_selftest(tmp_path / "selftest.npz", _cases())

    read = read_selftest(tmp_path / "selftest.npz")

    assert [case.model for case in read] == ["backbone", "a.b-c", "additive"]
    for case, wanted in zip(read, _cases(), strict=True):
        assert (case.absolute, case.relative) == (wanted.absolute, wanted.relative)
        for arrays, expected in ((case.inputs, wanted.inputs), (case.outputs, wanted.outputs)):
            assert arrays.keys() == expected.keys()
            for name in arrays:
                assert arrays[name].dtype == expected[name].dtype
                np.testing.assert_array_equal(arrays[name], expected[name])


def test_equal_cases_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.npz", "other.npz"):
        write_selftest(tmp_path / name, _cases())

    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_a_damaged_or_missing_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "selftest.npz").write_bytes(b"nothing")

    with pytest.raises(BundleError, match="cannot be read"):
        read_selftest(tmp_path / "selftest.npz")
    with pytest.raises(BundleError, match="cannot be read"):
        read_selftest(tmp_path / "absent.npz")


def _write(path: Path, **arrays: Any) -> Path:
    """A self-test with one complete case, and with these arrays in place of its own."""
    case = {
        "a/tolerance": np.zeros(2),
        "a/input/features": np.ones((3, 2), np.float32),
        "a/output/logits": np.ones(2, np.float32),
    }
    chosen = {name: array for name, array in {**case, **arrays}.items() if array is not None}
    np.savez_compressed(path, **chosen)
    return path


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a/tolerance": np.array([0.0, 1e9])}, "tolerance 1000000000.0 is outside 0 to 0.1"),
        ({"a/tolerance": np.array([-1e-3, 0.0])}, "tolerance -0.001 is outside 0 to 0.1"),
        ({"a/tolerance": np.array([np.nan, 0.0])}, "tolerance nan is outside 0 to 0.1"),
        ({"a/tolerance": np.zeros(3)}, "cannot be read"),
        ({"a/output/logits": None}, "has no inputs or no outputs"),
        ({"a/output/logits": np.ones(0, np.float32)}, "has no inputs or no outputs"),
        ({"a/input/features": None}, "has no inputs or no outputs"),
        ({"a/output/logits": np.array(["text"])}, "is not a complete array of numbers"),
        ({"a/output/logits": np.array([{}])}, "is not a complete array of numbers"),
    ],
)
def test_a_case_counts_only_with_inputs_outputs_and_tolerances_in_bounds(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    assert len(read_selftest(_write(tmp_path / "good.npz"))) == 1
    with pytest.raises(BundleError, match=words) as caught:
        read_selftest(_write(tmp_path / "bad.npz", **arrays))
    assert caught.value.code == "selftest_invalid"


def test_a_self_test_that_expands_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(17):
            archive.writestr(f"a/input/{index}.npy", bytes(16 << 20))
    with pytest.raises(BundleError, match="at most 268,435,456 are read"):
        read_selftest(tmp_path / "bomb.npz")


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "claim.npz", "w") as archive:
        archive.writestr("a/input/features.npy", header.getvalue() + bytes(64))
    with pytest.raises(BundleError, match="is not a complete array"):
        read_selftest(tmp_path / "claim.npz")
