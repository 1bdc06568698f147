"""A file that a command is to write: looked at before the work, written without a traceback."""

import os

import pytest

from trillion_model.errors import OutputError
from trillion_model.output_files import check_output, write_output


def test_a_file_in_a_directory_is_taken(tmp_path):
    path = tmp_path / "figures.json"
    assert check_output(path) == path and check_output(None) is None
    assert not path.exists()
    write_output(path, "삼백")
    assert path.read_text(encoding="utf-8") == "삼백\n"
    assert check_output(path) == path


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(OutputError, match="is a directory; name a file to write"):
        check_output(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"there is no directory .*nowhere; make it first"):
        check_output(tmp_path / "nowhere" / "figures.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_of_somebody_else(tmp_path):
    path = tmp_path / "figures.json"
    path.touch(mode=0o400)
    with pytest.raises(OutputError, match="no permission"):
        check_output(path)


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        write_output(tmp_path / ("x" * 300), "figures")
