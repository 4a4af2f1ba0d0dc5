"""attention.h5 stores the arrays of each stage."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hagmil.bundle import Hierarchy
from hagmil.errors import DataError
from hagmil.runtime.inference.cascade import StageOutcome
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.results.attention import read_attention, write_attention

HIERARCHY = Hierarchy(coarse=("benign", "malignant"), fine=("a", "b", "c"), fine_to_coarse=(0, 0, 1))


def test_the_attention_of_each_class_of_two_layers_is_stored(tmp_path: Path) -> None:
    outputs = {
        "coarse_attention": np.full((2, 4), 0.25, np.float32),
        "fine_attention": np.eye(3, 4, dtype=np.float32),
    }
    coords = np.arange(8, dtype=np.int64).reshape(4, 2)
    geometry = StageGeometry("only", 0.5, 64, 64, 0, 1.0, False)
    stage = StageOutcome(geometry, coords, outputs, outputs["fine_attention"][1], np.empty(0, np.int64))
    write_attention(tmp_path, [stage], HIERARCHY)

    (read,) = read_attention(tmp_path / "attention.h5")
    np.testing.assert_array_equal(read.coords, coords)
    np.testing.assert_array_equal(read.attention, [0, 1, 0, 0])
    np.testing.assert_array_equal(read.coarse_attention, outputs["coarse_attention"])
    np.testing.assert_array_equal(read.fine_attention, outputs["fine_attention"])
    with h5py.File(tmp_path / "attention.h5") as file:
        assert list(file["only/fine_attention"].attrs["classes"]) == ["a", "b", "c"]


def test_the_evidence_of_additive_models_is_stored(tmp_path: Path) -> None:
    evidence = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = {"attention": np.ones(3, np.float32), "evidence": evidence}
    geometry = StageGeometry("only", 0.5, 64, 64, 0, 1.0, False)
    stage = StageOutcome(geometry, np.zeros((3, 2), np.int64), outputs, outputs["attention"], np.empty(0, np.int64))
    write_attention(tmp_path, [stage])

    (read,) = read_attention(tmp_path)
    np.testing.assert_array_equal(read.evidence, evidence)


def test_another_hdf5_file_is_rejected(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["array"] = [1, 2]
        file.create_group("group")
    with pytest.raises(DataError, match=r"other\.h5.*is not an attention file"):
        read_attention(tmp_path / "other.h5")
