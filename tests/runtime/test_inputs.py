"""Arguments are resolved to slides with unique ids, in the order given."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from hagmil.errors import UsageError
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.names import safe_name


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_keep_their_order_and_duplicates_are_removed(tmp_path: Path) -> None:
    b, a = tmp_path / "b.svs", tmp_path / "a.svs"
    requests = slide_requests([str(b), str(a), str(b)])
    assert [request.slide_id for request in requests] == ["b", "a"]
    assert [request.given for request in requests] == [str(b), str(a)]


def test_a_missing_file_is_kept(tmp_path: Path) -> None:
    assert slide_requests([str(tmp_path / "gone.svs")])[0].slide_id == "gone"


def test_a_folder_gives_the_slides_directly_inside_it(tmp_path: Path) -> None:
    _touch(tmp_path / "b.SVS", tmp_path / "a.tif", tmp_path / "labels.csv", tmp_path / "deeper" / "c.svs")
    assert [request.slide_id for request in slide_requests([str(tmp_path)])] == ["a", "b"]


def test_a_folder_of_a_dicom_series_gives_one_slide(data_folder: Path) -> None:
    ids = [request.slide_id for request in slide_requests([str(data_folder / "slides")])]
    assert "boxes_0" in ids
    assert "boxes_1" not in ids


def test_a_glob_is_resolved_and_must_match_a_file(tmp_path: Path) -> None:
    _touch(tmp_path / "b.svs", tmp_path / "a.svs")
    assert [request.slide_id for request in slide_requests([str(tmp_path / "*.svs")])] == ["a", "b"]
    with pytest.raises(UsageError, match="no file matches"):
        slide_requests([str(tmp_path / "*.ndpi")])


def test_metadata_of_macos_is_skipped_and_other_suffixes_are_tried(tmp_path: Path) -> None:
    names = ("a.btf", "b.tf8", "c.ptif", "d.czi", "e.svs")
    for name in (*names, "._e.svs", "notes.txt"):
        (tmp_path / name).touch()
    for argument in (str(tmp_path), str(tmp_path / "*.*")):
        found = {request.path.name for request in slide_requests([argument])}
        assert "._e.svs" not in found
        assert set(names) <= found


def test_a_glob_over_a_dicom_series_gives_one_slide(data_folder: Path) -> None:
    found = slide_requests([str(data_folder / "slides" / "boxes_*.dcm")])
    assert [request.path.name for request in found] == ["boxes_0.dcm"]


def test_an_existing_file_with_brackets_in_its_name_is_not_a_glob(tmp_path: Path) -> None:
    _touch(tmp_path / "a[1].svs")
    assert slide_requests([str(tmp_path / "a[1].svs")])[0].slide_id == "a[1]"


def test_slides_with_the_same_stem_get_unique_ids_that_do_not_depend_on_their_order(tmp_path: Path) -> None:
    paths = [str(tmp_path / "x" / "a.svs"), str(tmp_path / "y" / "a.svs")]
    first = {request.given: request.slide_id for request in slide_requests(paths)}
    second = {request.given: request.slide_id for request in slide_requests(paths[::-1])}
    assert first == second
    assert len(set(first.values())) == 2
    assert all(name.startswith("a-") for name in first.values())


def test_a_table_gives_slides_and_their_spacings(tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,path,spacing_um\none,a.svs,0.25\ntwo,b.svs,\n")
    one, two = slide_requests([], table=table, spacing_um=0.5)
    assert (one.slide_id, one.path, one.spacing_um) == ("one", tmp_path / "a.svs", 0.25)
    assert (two.slide_id, two.spacing_um) == ("two", 0.5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slide_id,file\na,a.svs\n", "has no column path"),
        ("slide_id,path\n,a.svs\n", "line 2: slide_id and path must not be empty"),
        ("slide_id,path\n../a,a.svs\n", "is not a valid folder name"),
        ("slide_id,path\nb,b.svs\n..,a.svs\n", r"line 3: slide_id '\.\.' is not a valid folder name"),
        ("slide_id,path\n-..,a.svs\n", "line 2: slide_id .* is not a valid folder name"),
        ('slide_id,path\n"a\nb",a.svs\n', r"slide_id 'a\\nb' is not a valid folder name"),
        ("slide_id,path\nresults.csv,a.svs\n", "is not a valid folder name"),
        (f"slide_id,path\n{'a' * 255},a.svs\n", "at most 180 bytes"),
        ("slide_id,path,spacing_um\na,a.svs,wide\n", 'line 2: spacing_um "wide" is not a number'),
        ("slide_id,path,spacing_um\na,a.svs,-1\n", "above 0"),
        ("slide_id,path\na,a.svs\na,b.svs\n", "slide_id is not unique: a"),
    ],
)
def test_an_invalid_table_is_rejected(tmp_path: Path, text: str, complaint: str) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        slide_requests([], table=table)


def test_no_slides_an_empty_folder_and_a_spacing_of_zero_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no slides given"):
        slide_requests([])
    with pytest.raises(UsageError, match=r"contains no slide .*\*\*.\*\.svs"):
        slide_requests([str(tmp_path)])
    for spacing_um in (0.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="above 0"):
            slide_requests([str(tmp_path / "a.svs")], spacing_um=spacing_um)


@pytest.mark.parametrize(
    "name",
    ["...tif", "a\nb.tif", "-a.tif", "CON.tif", "results.csv.tif", f"{'a' * 251}.tif", os.fsdecode(b"a\xff.tif")],
)
def test_names_that_are_not_safe_get_unique_safe_ids(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / folder / name for folder in "ab"]
    ids = [slide_requests([str(path)])[0].slide_id for path in paths]
    assert len(set(ids)) == 2
    for slide_id in ids:
        assert safe_name(slide_id) == slide_id
        assert len(f".{slide_id}.{'0' * 32}.part.h5".encode()) <= 255


def test_names_that_differ_only_in_case_get_ids_that_differ_in_more() -> None:
    ids = [request.slide_id for request in slide_requests(["a.svs", "A.svs"])]
    assert len({slide_id.casefold() for slide_id in ids}) == 2
