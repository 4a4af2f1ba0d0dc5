"""The file of the self-test."""

from __future__ import annotations

from pathlib import Path

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
    ]


def test_read_selftest_returns_the_cases_in_the_written_order(tmp_path: Path) -> None:
    write_selftest(tmp_path / "selftest.npz", _cases())

    read = read_selftest(tmp_path / "selftest.npz")

    assert [case.model for case in read] == ["backbone", "a.b-c"]
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
