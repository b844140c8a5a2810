"""The two answers at the head of the page, in words."""

import dataclasses
import types

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.analysis.page import verdicts
from kquant.core.records import Closeness

NEAR = {"images": 200, "float": {"top1": 0.814}, "quantized": {"top1": 0.81}, "agreement": 0.98,
        "sqnr_db": 21.0}
FAR = {"images": 200, "float": {"top1": 0.814}, "quantized": {"top1": 0.478}, "agreement": 0.506,
       "sqnr_db": 1.4}
CERTIFICATE = {
    "exact": True, "accumulators": {"proved": True},
    "kernel_sets": {name: {"operators": {"ADD": {"elements": 600, "mismatching": 0}}} for name in ("a", "b")}}


def exported(certificate):
  verification = types.SimpleNamespace(images=2, max_lsb=1)
  return types.SimpleNamespace(verification=verification, certificate=certificate)


def test_accuracy_is_told_in_points():
  verdict = verdicts.accuracy(FAR, None, None)
  assert (verdict.good, verdict.answer) == (False, "NOT near the float model")
  assert verdict.words == (
      "On 200 images the integers are right on 47.8 %, the float model on 81.4 %: -33.6 points.",
      "Both give the same answer on 50.6 % of 200 images.", "Output SQNR 1.4 dB.")
  assert verdicts.accuracy(NEAR, None, None).good


@pytest.mark.parametrize("changed", [{"agreement": 0.89}, {"sqnr_db": 9.9}])
def test_one_low_figure_is_enough(changed):
  assert not verdicts.accuracy({**NEAR, **changed}, None, None).good


def test_unknown_figures_are_left_out():
  verdict = verdicts.accuracy({"images": 8, "sqnr_db": 30.0, "agreement": None}, None, None)
  assert verdict.good and verdict.words == ("Output SQNR 30.0 dB.",)


def test_tolerance_decides_too():
  missed = Closeness(12.0, 0.97, 16, held_back=True, tolerance=18.0)
  verdict = verdicts.accuracy(NEAR, missed, None)
  assert not verdict.good and "NOT good enough (18 dB asked)" in verdict.words[-1]


@pytest.mark.parametrize(("whole", "good"), [(0.001, True), (0.5, False)])
def test_an_analysis_alone_decides_and_names_the_worst(whole, good):
  model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
  analysis = dataclasses.replace(kq.analyze(model, np.eye(3, dtype=np.float32)), whole=whole)
  verdict = verdicts.accuracy(None, None, analysis)
  worst = analysis.rows[0]
  assert verdict.good == good and analysis.summary() in verdict.words[0]
  assert (f"the {worst.part} of {worst.name}" in verdict.words[-1]) != good


def test_nothing_measured_is_no_verdict():
  verdict = verdicts.accuracy(None, None, None)
  assert verdict.good is None and verdict.answer == "Not measured"


def test_exactness_claims_what_was_compared():
  plain, certified = verdicts.exactness(exported(None)), verdicts.exactness(exported(CERTIFICATE))
  assert (plain.answer, certified.answer) == ("Holds the chosen integers", "Exact")
  assert any("1,200 elements" in line and "0 differ" in line for line in certified.words)
  for verdict in (plain, certified):
    assert "verified" not in " ".join(verdict.words).lower() and "nothing of accuracy" in verdict.words[-1]
  assert verdicts.exactness(None).good is None
