"""Features and splits in the published layouts are checked and read, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hagmil.errors import DataError
from hagmil.trainer.data.labels import Split
from hagmil.trainer.data.published_features import open_hag_mil_bag, open_hmil_bag
from hagmil.trainer.data.published_splits import LabelledSlide, read_clam_split, read_hmil_list, read_hmil_split

FOLDERS = ("breast_level_2", "breast_level_1_corresponding", "breast_level_0_corresponding")
SPLIT = Split(train=("a", "b", "c"), val=("d",), test=("e", "f"))


class Payload:
    """An object whose pickle creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_the_bag_of_a_cascade_is_read_level_by_level(tmp_path: Path) -> None:
    stages = _write_cascade(tmp_path, (3, 12, 48))
    bag = open_hag_mil_bag(tmp_path / "breast", "slide")
    assert (bag.slide_id, bag.rows, bag.feature_dim) == ("slide", (3, 12, 48), 5)
    for found, expected in zip(bag.load(), stages, strict=True):
        assert torch.equal(found, expected)


def test_the_ending_of_a_slide_name_is_removed(tmp_path: Path) -> None:
    _write_cascade(tmp_path, (1, 4, 16))
    assert open_hag_mil_bag(tmp_path / "breast", "slide.svs").slide_id == "slide"


def test_levels_and_factor_can_be_chosen(tmp_path: Path) -> None:
    _write_cascade(tmp_path, (2, 32), folders=("breast_level_4", "breast_level_2_corresponding"))
    bag = open_hag_mil_bag(tmp_path / "breast", "slide", levels=(4, 2), factor=4)
    assert bag.rows == (2, 32)


@pytest.mark.parametrize("rows", [(3, 11, 44), (3, 12, 47), (3, 12, 12)])
def test_a_wrong_number_of_children_is_an_error_that_names_the_slide(tmp_path: Path, rows: tuple[int, ...]) -> None:
    _write_cascade(tmp_path, rows)
    with pytest.raises(DataError, match=r'slide "slide".*2² times the'):
        open_hag_mil_bag(tmp_path / "breast", "slide")


def test_the_bag_of_a_slide_without_tissue_has_no_rows(tmp_path: Path) -> None:
    _write_cascade(tmp_path, (0, 0, 0))
    bag = open_hag_mil_bag(tmp_path / "breast", "slide")
    assert [tensor.shape for tensor in bag.load()] == [(0, 5)] * 3


def test_a_missing_level_is_an_error_that_names_the_slide_and_the_file(tmp_path: Path) -> None:
    _write_cascade(tmp_path, (3, 12), folders=FOLDERS[:2])
    with pytest.raises(DataError, match=r'slide "slide".*breast_level_0_corresponding'):
        open_hag_mil_bag(tmp_path / "breast", "slide")


def test_different_feature_lengths_of_levels_are_an_error(tmp_path: Path) -> None:
    _write_cascade(tmp_path, (3, 12, 48))
    torch.save(torch.zeros(48, 6), tmp_path / FOLDERS[2] / "pt_files" / "slide.pt")
    with pytest.raises(DataError, match="different lengths"):
        open_hag_mil_bag(tmp_path / "breast", "slide")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_features_are_read_as_float16_or_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.arange(12.0).reshape(4, 3)
    torch.save(features.to(dtype), tmp_path / "slide.pt")
    (loaded,) = open_hmil_bag(tmp_path, "slide").load()
    assert loaded.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    assert torch.equal(loaded.float(), features)


def test_a_leading_axis_of_length_one_is_removed(tmp_path: Path) -> None:
    torch.save(torch.ones(1, 1, 3), tmp_path / "slide.pt")
    bag = open_hmil_bag(tmp_path, "slide")
    assert bag.rows == (1,)
    assert bag.load()[0].shape == (1, 3)


@pytest.mark.parametrize("content", [torch.zeros(3), torch.zeros(2, 3, 4), {"features": torch.zeros(2, 3)}, [1]])
def test_other_content_than_a_bag_is_an_error_that_names_the_slide(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "slide.pt")
    with pytest.raises(DataError, match='slide "slide"'):
        open_hmil_bag(tmp_path, "slide")


def test_integers_are_refused_as_features(tmp_path: Path) -> None:
    torch.save(torch.ones(2, 3, dtype=torch.int64), tmp_path / "slide.pt")
    with pytest.raises(DataError, match="floating-point"):
        open_hmil_bag(tmp_path, "slide").load()


def test_malicious_features_are_refused_and_not_executed(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    torch.save(Payload(target), tmp_path / "slide.pt")
    with pytest.raises(DataError, match="mkdir") as caught:
        open_hmil_bag(tmp_path, "slide")
    assert caught.value.code == "unsafe_pickle"
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        ",train,val,test\n0,a,d,e\n1,b,,f\n2,c,,\n",
        "train,val,test\na,d,e\nb,,f\nc,,\n",
        ",train,val,test\na,True,False,False\nb,True,False,False\nc,True,False,False\n"
        "d,False,True,False\ne,False,False,True\nf,False,False,True\n",
        # Some published tables have a running number, and no column name for the slides.
        ",train,val,test\n0,a,True,False,False\n1,b,True,False,False\n2,c,True,False,False\n"
        "0,d,False,True,False\n0,e,False,False,True\n1,f,False,False,True\n",
    ],
    ids=["columns", "columns without index", "boolean", "boolean with running number"],
)
def test_splits_of_clam_are_read_in_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits_0.csv"
    path.write_text(text)
    assert read_clam_split(path) == SPLIT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column"),
        (",train,val\n0,a,b\n", "no column test"),
        (",train,val,test\na,True,True,False\n", 'slide "a" must be in exactly one part'),
        (",train,val,test\na,False,False,False\n", 'slide "a" must be in exactly one part'),
        (",train,val,test\na,True,False,False\na,False,True,False\n", 'slide "a" must be in exactly one part'),
        (",train,val,test\na,True,False,False\nTrue,False\n", "has no slide"),
        (",train,val,test\n0,a,a,b\n", 'slide "a"'),
    ],
)
def test_a_split_without_exactly_one_part_per_slide_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "splits_0.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_clam_split(path)


def test_pickled_lists_of_hmil_are_read_with_their_labels(tmp_path: Path) -> None:
    _write_lists(tmp_path, train=["a", "b"], val=["c"], test=["d"])
    split, labels = read_hmil_split(tmp_path, 0)
    assert split == Split(("a", "b"), ("c",), ("d",))
    assert labels == dict.fromkeys("abcd", "FEA")
    assert read_hmil_list(tmp_path / "val_splits_0.pkl") == (LabelledSlide("c", "FEA", "/data/c.pt"),)


def test_a_slide_in_two_lists_of_hmil_is_an_error(tmp_path: Path) -> None:
    _write_lists(tmp_path, train=["a", "b"], val=["b"], test=["d"])
    with pytest.raises(DataError, match='slide "b" is in two parts'):
        read_hmil_split(tmp_path, 0)


def test_a_slide_with_two_labels_is_an_error(tmp_path: Path) -> None:
    _write_lists(tmp_path, train=["a"], val=["b"], test=["c"])
    (tmp_path / "train_splits_0.pkl").write_bytes(pickle.dumps([["a", "N", "a.pt"], ["a", "IC", "a.pt"]]))
    with pytest.raises(DataError, match='slide "a" has two labels'):
        read_hmil_split(tmp_path, 0)


def test_a_malicious_split_list_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, target = tmp_path / "train_splits_0.pkl", tmp_path / "owned"
    path.write_bytes(pickle.dumps([["a", "N", Payload(target)]]))
    with pytest.raises(DataError, match="mkdir") as caught:
        read_hmil_list(path)
    assert caught.value.code == "unsafe_pickle"
    assert not target.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n.",  # named, not called
        b"c__main__\nos.system\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # called by INST
        b"(cos\nsystem\nS'true'\no.",  # called by OBJ
        b"cunknown\nClass\n(tR.",
        b"cbuiltins\ngetattr\n(]S'append'\ntR.",
        b"S'os'\nS'system'\n\x93.",  # STACK_GLOBAL
        b"ccollections\nOrderedDict\n)R.",
    ],
)
def test_a_split_list_that_names_a_class_or_function_is_refused(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "train_splits_0.pkl"
    path.write_bytes(program)
    with pytest.raises(DataError, match="it names") as caught:
        read_hmil_list(path)
    assert caught.value.code == "unsafe_pickle"


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"hello",
        b"(lp0\n",  # no end
        b"0.",  # the stack is empty
        b"h\x07.",  # nothing in the memo
        b"I1\nI2\na.",  # an item for a number
        b"\x82\x01.",  # an extension code
        b"\x97.",  # a buffer out of band
        b"S'key'\nQ.",  # a persistent id
        b"](tR.",  # a list, called
        b"]r\xff\xff\xff\xff.",  # the last index of the memo
        b"(" + b")" + b"\x85" * 200_000 + b"\x91.",  # a member so deeply nested that hashing it crashes CPython
        b"}" + b")" + b"\x85" * 200_000 + b"I1\ns.",
    ],
)
def test_a_broken_split_list_is_refused(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "train_splits_0.pkl"
    path.write_bytes(program)
    with pytest.raises(DataError, match="is not a split list"):
        read_hmil_list(path)


@pytest.mark.parametrize("protocol", range(6))
def test_split_lists_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "train_splits_0.pkl"
    path.write_bytes(pickle.dumps([["a", 1, "/x/a.pt"], ("é", "N", "b.pt")], protocol))
    assert read_hmil_list(path) == (LabelledSlide("a", "1", "/x/a.pt"), LabelledSlide("é", "N", "b.pt"))


@pytest.mark.parametrize("content", [3, {"a": 1}, [["a", "N"]], [["a", "N", None]], ["a"]])
def test_other_content_than_a_split_list_is_an_error(tmp_path: Path, content: object) -> None:
    path = tmp_path / "train_splits_0.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="is not a split list"):
        read_hmil_list(path)


def test_a_missing_split_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_hmil_split(tmp_path, 0)


def _write_cascade(folder: Path, rows: tuple[int, ...], folders: tuple[str, ...] = FOLDERS) -> list[Tensor]:
    stages = [torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in rows]
    for name, stage in zip(folders, stages, strict=True):
        (folder / name / "pt_files").mkdir(parents=True)
        torch.save(stage, folder / name / "pt_files" / "slide.pt")
    return stages


def _write_lists(folder: Path, **parts: list[str]) -> None:
    for part, slides in parts.items():
        entries = [[slide_id, "FEA", f"/data/{slide_id}.pt"] for slide_id in slides]
        (folder / f"{part}_splits_0.pkl").write_bytes(pickle.dumps(entries))
