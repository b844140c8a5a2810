"""The default effort: it watches its result on held-back images, and does more where it must."""

import dataclasses

import numpy as np
import pytest

import kquant as kq
from kquant.core.records import Closeness, Report
from kquant.search import automatic as automatic_file
from tests import models


def run(images=64, name="mobile_block", **options):
  model = models.build(name)
  return kq.quantize(model, models.sample_inputs(model, images=images), **options)


def test_it_stops_where_the_fast_recipe_is_good_enough():
  report = run(tolerance=10.0).report
  assert report.closeness.good and not report.trials
  assert (report.closeness.images, report.closeness.held_back) == (8, True)
  assert "trials" not in report.seconds and report.seconds["watch"] > 0


def test_it_tries_more_where_it_is_not_and_says_what_was_reached():
  fast, more = (run(config="w4a8", tolerance=tolerance) for tolerance in (-100.0, 100.0))
  assert not fast.report.trials
  assert {trial.method for trial in more.report.trials} == {"joint", "mse"}
  assert more.report.closeness.sqnr_db >= fast.report.closeness.sqnr_db
  assert not more.report.closeness.good and "NOT good enough (100 dB asked)" in str(more.report)


def test_images_held_back_are_in_nothing_that_is_chosen(monkeypatch):
  model, used = models.build("mobile_block"), []
  images = models.sample_inputs(model, images=64)
  quantized, with_effort = automatic_file.quantized, automatic_file.with_effort

  def watched(graph, config, calibration, report, **more):
    used.append(calibration[0])
    return quantized(graph, config, calibration, report, **more)

  def tried(config, steps, network, report, **more):
    used.append(network.images[0])
    return with_effort(config, steps, network, report, **more)

  monkeypatch.setattr(automatic_file, "quantized", watched)
  monkeypatch.setattr(automatic_file, "with_effort", tried)
  kq.quantize(model, images, config="w4a8", tolerance=100.0)
  assert len(used) >= 2 and {len(array) for array in used} == {56}
  assert all((array == used[0]).all() for array in used)


def test_what_the_user_decides_is_not_tried():
  report = run(config="w4a8", tolerance=100.0, recipe=kq.Recipe(rounding="nearest", ranges="minmax")).report
  assert {trial.method for trial in report.trials} == {"joint"}


def test_few_images_are_judged_by_and_nothing_more_is_tried():
  report = run(images=8, config="w4a8", tolerance=100.0).report
  assert (report.closeness.images, report.closeness.held_back) == (8, False) and not report.trials
  assert "8 calibration images" in str(report)


def test_without_images_there_is_nothing_to_watch():
  model = models.build("mobile_block")
  result = kq.quantize(model, kq.InputRange(-1, 1))
  assert result.report.closeness is None


def test_the_same_seed_gives_the_same_integers():
  first, second = (run(config="w4a8", tolerance=20.0, seed=3).encodings.integers for _ in range(2))
  for name, values in first.items():
    np.testing.assert_array_equal(second[name], values)


@pytest.mark.parametrize("sqnr, agreement, words", [
    (20.0, 0.975,
     "SQNR 20.0 dB, the same answer on 97.5 % of 16 held-back images: good enough (18 dB asked)"),
    (17.9, None, "SQNR 17.9 dB of 16 held-back images: NOT good enough (18 dB asked)")])
def test_what_is_said_of_it(sqnr, agreement, words):
  closeness = Closeness(sqnr, agreement, 16, True, 18.0)
  assert str(dataclasses.replace(closeness, images=4)).endswith("dB asked); so few images say little")
  assert str(closeness) == words
  report = Report()
  report.closeness = closeness
  assert report.to_json()["closeness"]["good"] == (sqnr >= 18)
