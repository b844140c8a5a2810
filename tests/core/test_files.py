"""written_whole: all files or none, whatever ends the block."""

import pytest

from kquant.core.files import written_together, written_whole


def test_files_get_their_names_together(tmp_path):
  with written_whole(tmp_path / "a.txt", tmp_path / "b.txt") as (first, second):
    first.write_text("1")
    second.write_text("2")
    assert not (tmp_path / "a.txt").exists()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_block_that_fails(tmp_path, error):
  (tmp_path / "a.txt").write_text("old")
  with pytest.raises(error), written_whole(tmp_path / "a.txt", tmp_path / "b.txt") as (first, second):
    first.write_text("1")
    second.write_text("2")
    raise error
  assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
  assert (tmp_path / "a.txt").read_text() == "old"


def test_a_missing_folder_is_named_first(tmp_path):
  with pytest.raises(FileNotFoundError, match="make the folder .*nowhere"), written_whole(
      tmp_path / "nowhere" / "a.txt"):
    raise AssertionError("the block was entered")


def test_files_of_several_folders_move_together(tmp_path):
  (tmp_path / "other").mkdir()
  (tmp_path / "a.txt").write_text("old")
  with written_together() as staged:
    first, second = staged(tmp_path / "a.txt"), staged(tmp_path / "other" / "b.json")
    first.write_text("1")
    second.write_text("2")
    second.with_suffix(".npz").write_text("3")
    assert (tmp_path / "a.txt").read_text() == "old"
  assert (tmp_path / "a.txt").read_text() == "1"
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "b.json", "b.npz", "other"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_moves_when_one_fails(tmp_path, error):
  with pytest.raises(error), written_together() as staged:
    staged(tmp_path / "a.txt").write_text("1")
    raise error
  assert not list(tmp_path.iterdir())
