"""A quantized model under compile and fit: what trains, what stays, what the file then holds."""

import numpy as np
import pytest

import kquant as kq
import tflite_export
from kquant import QuantConfig, Rule, TensorSpec
from tests import models
from tflite_export.runtime import Runtime

FOLD = [kq.standardize, kq.fold_batch_norm]
LEARNED = {"lsq": {"log_step"}, "lsq_plus": {"log_step", "shift"}}


def config_of(quantizer, bits=4):
  return QuantConfig((Rule(
      weights=TensorSpec(bits=bits, symmetric=True, per_channel=True, quantizer=quantizer),
      activations=TensorSpec(quantizer=quantizer)),))


def calibrated(name, config):
  """Returns (float model, its quantized one, its input)."""
  model = kq.rewrite(models.build(name), FOLD)
  (x,) = models.sample_inputs(model, images=16)
  return model, kq.calibrate(kq.insert_quantizers(model, config), x), x


def tails(variables):
  return {variable.name.split(":")[0].rsplit("/", 1)[-1] for variable in variables}


def fit(qmodel, teacher, x, *, optimizer="adam", **options):
  qmodel.compile(optimizer, "mse")
  return qmodel.fit(x, teacher.predict(x, verbose=0), batch_size=4, verbose=0, shuffle=False, **options)


def trained_file(qmodel, x, path):
  """Exports the trained model, with proof; returns its certificate and the file's outputs for x."""
  final, encodings = kq.finalize(qmodel)
  result = kq.QuantizationResult(final, encodings, qmodel, None)
  written = tflite_export.export(result, path, verify=x[:2], certify=True, io="float32")
  return written.certificate, Runtime(path).run_many([x])[0].reshape(len(x), -1)


@pytest.mark.parametrize("quantizer", LEARNED)
def test_learned_quantizer_trains_and_its_file_is_what_was_trained(quantizer, tmp_path):
  model, qmodel, x = calibrated("mobile_block", config_of(quantizer))
  before = {w.name: w.numpy() for w in qmodel.weights}
  losses = fit(qmodel, model, x, epochs=8).history["loss"]
  assert losses[-1] < 0.7 * losses[0]
  changed = [w for w in qmodel.weights if not np.array_equal(w.numpy(), before[w.name])]
  learned = {name for tail in LEARNED[quantizer] for name in (tail, f"output_{tail}", f"kernel_{tail}",
                                                              f"depthwise_kernel_{tail}")}
  assert tails(changed) <= {"kernel", "depthwise_kernel", "bias"} | learned
  assert all(any(name.endswith(tail) for name in tails(changed)) for tail in LEARNED[quantizer])
  certificate, outputs = trained_file(qmodel, x, tmp_path / "m.tflite")
  assert certificate["exact"]
  steps = 256 * np.abs(outputs - qmodel.predict(x, verbose=0))  # an integer on a tie may fall either way
  assert steps.mean() < 0.5 and steps.max() < 3.1


def test_kernels_of_the_file_are_the_integers_that_were_simulated():
  model, qmodel, x = calibrated("convolutions", config_of("lsq"))
  fit(qmodel, model, x, epochs=3)
  final, encodings = kq.finalize(qmodel)
  for layer in (layer for layer in qmodel.layers if hasattr(layer, "weight_encodings")):
    ((name, quantizer, state),) = layer._quantized
    simulated = quantizer(getattr(layer.layer, name), True, state).numpy()
    np.testing.assert_array_equal(getattr(final.get_layer(layer.name), name).numpy(), simulated)
    np.testing.assert_array_equal(encodings[f"{layer.name}/kernel"].dequantize(
        encodings.integers[f"{layer.name}/kernel"]), simulated)


def test_untrained_learned_quantizers_give_the_files_of_min_max():
  model = kq.rewrite(models.build("mobile_block"), FOLD)
  (x,) = models.sample_inputs(model, images=16)
  found = [kq.finalize(kq.calibrate(kq.insert_quantizers(model, config_of(name)), x))[1]
           for name in ("minmax", "lsq", "lsq_plus")]
  assert found[0] == found[1] == found[2]


def test_fixed_grids_are_not_learned():
  _, qmodel, _ = calibrated("mobile_block", config_of("lsq_plus"))
  assert not qmodel.get_layer("softmax/quantize").trainable_weights
  assert tails(qmodel.get_layer("add/quantize").trainable_weights) == {"output_log_step", "output_shift"}
