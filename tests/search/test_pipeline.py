"""What is skipped is said: in the report of the one-call route, by absl's log step by step."""

import kquant as kq
from kquant.ptq.layerwise.bias_correction import SHARED_REASON
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
