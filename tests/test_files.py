import csv

import pytest

from lightning_merge.errors import OutputExistsError
from lightning_merge.files import claim_folder, read_json, write_csv, write_json, write_whole


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def half(partial):
        partial.write_text("ne")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(target, half)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_the_temporary_file_keeps_the_ending(tmp_path):
    seen = []
    write_whole(tmp_path / "figure.png", lambda partial: (seen.append(partial), partial.touch()))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "ü"}}
    assert read_json(write_json(tmp_path / "deep" / "x.json", value)) == value


def test_csv_has_the_columns_of_all_rows(tmp_path):
    path = write_csv(tmp_path / "x.csv", [{"a": 1}, {"a": 2, "b": "x,y"}])
    with path.open() as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x,y"}]


def test_a_folder_with_results_is_refused_unless_told_otherwise(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"results\.csv.*--overwrite"):
        claim_folder(tmp_path, ("results.csv",), overwrite=False)
    assert claim_folder(tmp_path, ("results.csv",), overwrite=True) == tmp_path
    assert claim_folder(tmp_path, ("other.csv",), overwrite=False) == tmp_path
    assert (tmp_path / "results.csv").read_text() == "mine"


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="is a file"):
        claim_folder(tmp_path / "file", (), overwrite=True)
