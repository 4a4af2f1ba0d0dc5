from __future__ import annotations

from pathlib import Path

import pytest

from hagmil.errors import DataError
from hagmil.trainer.data.labels import SlideLabel, read_labels, read_split, shared_cases


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def test_a_split_of_clam_is_read(path: Path) -> None:
    path.write_text(",train,val,test\n0,a,d,e\n1,b,,nan\n2,c,NaN,\n")
    split = read_split(path)
    assert (split.train, split.val, split.test) == (("a", "b", "c"), ("d",), ("e",))
    assert split.part("val") == ("d",)


def test_a_split_without_an_index_and_with_a_byte_order_mark_is_read(path: Path) -> None:
    path.write_bytes("test,train,val\r\n e ,a,d\r\n".encode("utf-8-sig"))
    assert read_split(path).test == ("e",)


def test_missing_cells_end_a_column(path: Path) -> None:
    path.write_text(",train,val,test\n0,a,d,e\n1,b\n")
    assert read_split(path).train == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train,val\na,b\n", "no column test"),
        ("", "no column train, val, test"),
        (",train,val,test\n0,a,a,\n", 'line 2: slide "a" is in val and already in train'),
        (",train,val,test\n0,a,b,\n1,a,,\n", 'line 3: slide "a"'),
    ],
)
def test_an_invalid_split_is_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_split(path)


def test_labels_are_read_and_other_columns_ignored(path: Path) -> None:
    path.write_text("case_id,slide_id,label,site\nc1,s1,tumour,x\nc1,s2,normal,y\n")
    assert read_labels(path) == {
        "s1": SlideLabel("s1", "c1", "tumour"),
        "s2": SlideLabel("s2", "c1", "normal"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\na,x\n", "no column case_id"),
        ("slide_id,case_id,label\n", "no slides"),
        ("slide_id,case_id,label\na,c,x\na,c,x\n", "line 3.*twice"),
        ("slide_id,case_id,label\na,c,\n", "line 2"),
    ],
)
def test_invalid_labels_are_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_missing_files_and_files_that_are_not_text_are_named(path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv"):
        read_labels(path)
    path.write_bytes(b"slide_id,case_id,label\n\xff\xfe,c,x\n")
    with pytest.raises(DataError, match=r"table\.csv"):
        read_labels(path)


def test_patients_in_several_parts_of_a_split_are_found(path: Path) -> None:
    path.write_text(",train,val,test\n0,a,c,d\n1,b,,\n")
    case_of = {"a": "1", "b": "2", "c": "1", "d": "3"}
    labels = {slide: SlideLabel(slide, case, "x") for slide, case in case_of.items()}
    assert shared_cases(read_split(path), labels) == ["1"]
