"""Report: stages add up, records are kept, tables are aligned."""

import json

import pytest

from kquant.core.records import Edit, Report, Skip, Trial
from kquant.core.text import text_table


def test_a_table_by_hand():
  rows = [("conv", 8, "-1.5"), ("depthwise", 128, "0.25")]
  assert text_table(("layer", "channels", "gain"), rows) == "\n".join([
      "layer      channels  gain",
      "---------  --------  ----",
      "conv              8  -1.5",
      "depthwise       128  0.25"])


def test_a_column_with_one_word_is_text():
  lines = text_table(("name", "n"), [("a", 1), ("b", "open"), ("c", 1000)]).splitlines()
  assert lines[2:] == ["a     1", "b     open", "c     1000"]


@pytest.mark.parametrize("cell", ["7", "-7", "1,000", "0.25", "12.5 %", 3, -0.5])
def test_numbers_stand_to_the_right(cell):
  assert text_table(("a wide header",), [(cell,)]).splitlines()[2] == str(cell).rjust(13)


@pytest.mark.parametrize("cell", ["", "-", "open", "3x3", "None"])
def test_words_stand_to_the_left(cell):
  assert text_table(("a wide header",), [(cell,)]).split("\n")[2] == cell


def test_no_rows_give_the_header_alone():
  assert text_table(("layer", "why"), []) == "layer  why\n-----  ---"


def test_no_line_ends_in_blanks():
  rows = [("a", "long text", "x"), ("b", "", ""), ("", "", "")]
  assert not [line for line in text_table(("one", "two", "a third"), rows).splitlines()
              if line != line.rstrip()]


def test_stages_add_up_and_count_when_they_fail(monkeypatch):
  ticks = iter([0.0, 2.0, 10.0, 13.0, 20.0, 24.0, 30.0, 31.0])
  monkeypatch.setattr("kquant.core.records.time.perf_counter", lambda: next(ticks))
  report = Report()
  for _ in range(2):
    with report.stage("read"):
      pass
  with pytest.raises(KeyError), report.stage("read"):
    raise KeyError
  with report.stage("write"):
    pass
  assert report.seconds == {"read": 2.0 + 3.0 + 4.0, "write": 1.0}


def test_json_holds_the_records():
  report = Report()
  report.seconds["read"] = 1.23456
  report.add_edits([Edit("bn", "fold", "folded into 'conv'")], [Skip("x", "fold", "is shared")])
  report.add_edits([Edit("d", "standardize", "dropped")], [])
  report.trials.append(Trial("joint", kept=True, images=10, change=1.0, error=0.25, unit="dB", seconds=2.0))
  assert json.loads(json.dumps(report.to_json())) == {
      "seconds": {"read": 1.235},
      "edits": [{"layer": "bn", "pass": "fold", "what": "folded into 'conv'"},
                {"layer": "d", "pass": "standardize", "what": "dropped"}],
      "skipped": [{"layer": "x", "pass": "fold", "reason": "is shared"}],
      "trials": [{"method": "joint", "kept": True, "images": 10, "change": 1.0, "error": 0.25, "unit": "dB",
                  "seconds": 2.0, "epochs": None}], "closeness": None, "narrow": []}
  assert str(report.trials[0]) == "+1.00 dB +- 0.25 on 10 held-back images, 2.0 s"


def test_text_shows_the_skipped_layers_only_where_there_are_some():
  report = Report()
  report.seconds["read"] = 2.0
  assert str(report) == "stage  seconds\n-----  -------\nread      2.00"
  report.add_edits([], [Skip("bn", "fold", "is shared")])
  assert str(report).splitlines()[4:] == [
      "layer  pass  not done because", "-----  ----  ----------------", "bn     fold  is shared"]
