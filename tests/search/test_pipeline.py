"""What is skipped is said: in the report, or by absl's log step by step. Networks can share statistics."""

import numpy as np
import pytest

import kquant as kq
from kquant.core.records import Report
from kquant.ptq.layerwise.bias_correction import SHARED_REASON
from kquant.search.pipeline import Calibrated, read
from tests import models


def test_the_report_names_a_shared_layer_whose_bias_was_corrected_otherwise():
  model = models.build("nested_shared")
  report = kq.quantize(model, models.sample_inputs(model), config="w4a8", recipe=kq.Recipe(bias="iterative"),
                       effort=None).report
  assert [(s.layer, s.reason) for s in report.skips if s.pass_name == "correct_bias"] == [
      ("shared", SHARED_REASON)]
  assert "shared" in str(report) and SHARED_REASON in str(report)


def test_there_is_nothing_to_name_without_shared_layers_or_with_nearest_integers():
  for name, way in (("mobile_block", kq.Recipe(rounding="closed_form")), ("nested_shared", None)):
    model = models.build(name)
    report = kq.quantize(model, models.sample_inputs(model), config="w4a8", recipe=way, effort=None).report
    assert not [skip for skip in report.skips if skip.pass_name in ("round_weights", "correct_bias")]


def test_step_by_step_the_log_names_it_once(caplog):
  model = kq.rewrite(models.build("nested_shared"), [kq.standardize, kq.fold_batch_norm])
  images = models.sample_inputs(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, "w4a8"), images)
  kq.correct_bias(qmodel, model, images, method="local")
  assert not caplog.messages
  kq.correct_bias(qmodel, model, images, method="iterative")
  assert [message for message in caplog.messages if "correct_bias" in message] == [
      f"correct_bias: layer 'shared' is {SHARED_REASON}."]


@pytest.mark.parametrize("range_name", ["minmax", "mse", "cross_entropy"])
def test_the_statistics_of_one_network_serve_those_of_other_weight_bits(range_name):
  model = models.build("mobile_block")
  images = models.sample_inputs(model)

  def network(bits, *statistics):
    config = kq.QuantConfig(rules=(kq.Rule(match="^logits$", activations=kq.TensorSpec(range=range_name)),
                                   kq.Rule(weights=kq.TensorSpec(bits=bits))))
    return Calibrated(read(model, config), config, images, Report(), *statistics)

  eight, alone = network(8), network(4)
  for _ in range(2):  # setting ranges leaves statistics as they are
    shared = network(4, eight.statistics)
    assert shared.statistics is eight.statistics
    for one, other in zip(shared.qmodel.get_weights(), alone.qmodel.get_weights(), strict=True):
      np.testing.assert_array_equal(one, other)
