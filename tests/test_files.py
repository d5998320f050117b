import csv
import errno
import os

import pytest

from lightning_merge.errors import OutputExistsError
from lightning_merge.files import (
    claim_folder,
    read_json,
    write_csv,
    write_json,
    write_text,
    write_whole,
    written_together,
)


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


def test_an_error_of_the_disk_names_the_file_that_was_to_be_written(tmp_path):
    def refused(partial):
        raise PermissionError(errno.EACCES, "Permission denied", str(partial))

    with pytest.raises(PermissionError) as error:
        write_whole(tmp_path / "kept.txt", refused)
    assert error.value.filename == str(tmp_path / "kept.txt")


def test_files_that_belong_together_are_there_together_or_not_at_all(tmp_path):
    old, new, link = tmp_path / "old", tmp_path / "deep" / "new", tmp_path / "link"
    old.write_text("before")
    link.symlink_to(old)

    def write(last):
        with written_together() as waiting:
            write_text(new, "1")
            write_text(link, "2")
            write_text(new, "3")
            assert not new.exists()
            assert old.read_text() == "before"
            assert waiting[old].read_text() == "2"
            last()

    with pytest.raises(ZeroDivisionError):
        write(lambda: 1 / 0)
    assert old.read_text() == "before"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {old, link}
    write(lambda: None)
    assert (new.read_text(), old.read_text(), link.is_symlink()) == ("3", "2", True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {old, new, link}


def test_the_temporary_file_keeps_the_ending(tmp_path):
    seen = []
    write_whole(tmp_path / "figure.png", lambda partial: (seen.append(partial), partial.touch()))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path
    # That of the name which it was asked for by, as what writes goes by it.
    (tmp_path / "link.png").symlink_to(tmp_path / "stored")
    write_whole(tmp_path / "link.png", lambda partial: (seen.append(partial), partial.touch()))
    assert seen[1].suffix == ".png"


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


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    real, link = tmp_path / ("n" * 250), tmp_path / "link"
    real.write_text("old")
    real.chmod(0o604)
    link.symlink_to(real)
    write_whole(link, lambda partial: partial.write_text("new"))
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o604
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "to be")
    write_whole(dangling, lambda partial: partial.write_text("new"))
    assert (tmp_path / "to be").read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(OutputExistsError, match="is no file"):
            write_whole(path, lambda partial: partial.write_text("new"))
    assert pipe.exists()


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *both: (seen.append("rename"), rename(*both)))
    write_whole(tmp_path / "a", lambda partial: partial.write_text("x"))
    assert seen == ["sync", "rename", "sync"]
