"""What a page shows of an allocation: made of plain numbers, without a network."""

import dataclasses
import re

import pytest

import kquant as kq
from kquant.allocation.results import Allocation, AllocationPoint, AllocationRow

_NAME = "conv<script>"


@pytest.fixture
def allocation():
  rows = (AllocationRow(_NAME, "weights", 4, {4: 1e-2, 8: 1e-4}),
          AllocationRow("dense", "weights", 8, {4: 2e-2, 8: 2e-4}),
          AllocationRow("image", "activation", 8, {8: 1e-3}))
  return Allocation(
      config=kq.QuantConfig(), rows=rows, budget=kq.Budget(bytes=2000), bytes=1900, bops=5e6,
      predictions=((0.02, 0.01), (0.01, 0.01)), trial=None, name="small", notes=("No 16 bits.",),
      curve=(AllocationPoint("", 1000, 4e6, 0.1), AllocationPoint("", 3000, 8e6, 0.001)),
      uniform=(AllocationPoint("w4a8", 1000, 4e6, 0.2), AllocationPoint("w8a8", 3000, 8e6, 0.0)),
      proxy=(AllocationPoint("hawq", 2000, 6e6, 0.05),), seconds={"noise": 1.5})


def page_of(allocation, tmp_path):
  return kq.report(tmp_path / "report.html", allocation).read_text()


def test_a_page_of_an_allocation_alone(allocation, tmp_path):
  text = page_of(allocation, tmp_path)
  assert re.findall(r"<h2>(.*?)</h2>", text) == [
      "What does the budget cost?", "Do the predictions hold?", "Noise over budgets", "Bits of each layer",
      "Seconds to allocate"]
  for words in ("small: mixed precision", "1,900 bytes of 2,000 bytes.", "No 16 bits.",
                "<strong>20.0 dB are left</strong>", "the budget costs 10.0 dB", "1.00 times the measured",
                "4 bits: 1, 8 bits: 1", "Activations were not to choose.", "HAWQ-V2", ">w4a8<", ">hawq<",
                ">17.0 dB<"):
    assert words in text, words
  assert "<script" not in text and "http" not in text and text.count("<svg") == 3


def test_activations_have_bars_where_they_were_to_choose(allocation, tmp_path):
  wide = AllocationRow("relu", "activation", 16, {8: 1e-3, 16: 1e-6})
  text = page_of(dataclasses.replace(allocation, rows=(*allocation.rows, wide)), tmp_path)
  assert "8 bits: 1, 16 bits: 1" in text and "not to choose" not in text


def test_predictions_that_are_far_off_are_bad(allocation, tmp_path):
  far = dataclasses.replace(allocation, predictions=((0.02, 0.01), (0.02, 0.01)))
  assert '<section class="verdict bad">' in page_of(far, tmp_path)
  assert '<section class="verdict good">' in page_of(allocation, tmp_path)


def test_latency_and_no_proxy(allocation, tmp_path):
  timed = {field: tuple(dataclasses.replace(point, latency_ms=1.25) for point in getattr(allocation, field))
           for field in ("curve", "uniform")}
  text = page_of(dataclasses.replace(allocation, budget=kq.Budget(latency_ms=2.0), latency_ms=1.5, proxy=(),
                                     **timed), tmp_path)
  assert "1.5 ms of 2 ms" in text and ">1.25<" in text and "HAWQ" not in text


def test_what_makes_no_page_is_refused(allocation, tmp_path):
  with pytest.raises(TypeError, match="got 0 and 2 of them; write a page for each"):
    kq.report(tmp_path / "r.html", allocation, allocation)
  with pytest.raises(TypeError, match="got 0 and 0"):
    kq.report(tmp_path / "r.html")
  with pytest.raises(TypeError, match="got an allocation alone; give what kquant.quantize returned, too"):
    kq.report(tmp_path / "r.html", allocation, judged={})
  assert not list(tmp_path.iterdir())
