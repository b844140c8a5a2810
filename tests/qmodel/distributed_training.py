"""Trains under a strategy and saves the weights: the process that test_distribution starts.

python -m tests.qmodel.distributed_training KIND OUTPUT QUANTIZER

QUANTIZER "any" trains an AnyPrecisionModel; "gradients" quantizes activations and gradients with ranges known
beforehand, without calibration. The gradients are rounded to nearest: each replica has noise of its own.

KIND is one, mirrored (two logical CPU devices) or workers (this process is one of those in TF_CONFIG).
"""

import contextlib
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from tests import models


def strategy_of(kind: str):
  """The strategy; None for one device."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(
      cpu, [tf.config.LogicalDeviceConfiguration()] * (2 if kind == "mirrored" else 1))
  if kind == "workers":
    return tf.distribute.MultiWorkerMirroredStrategy()
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if kind == "mirrored" else None


def main(kind: str, output: str, quantizer: str) -> None:
  """Trains the same network on the same batches of 8 in any kind."""
  strategy = strategy_of(kind)
  with strategy.scope() if strategy else contextlib.nullcontext():
    model = kq.rewrite(models.build("conv_bn_relu"), [kq.standardize, kq.fold_batch_norm])
    (x,) = models.sample_inputs(model, images=32)
    if quantizer == "any":
      qmodel = kq.AnyPrecisionModel(model, (2, 8), distill=None, eight_bits="^dense$").calibrate(x)
    elif quantizer == "gradients":
      specs = [kq.TensorSpec(quantizer="in_hindsight", rounding=rounding) for rounding in (None, "nearest")]
      rule = kq.Rule(activations=specs[0], gradients=specs[1])
      qmodel = kq.insert_quantizers(model, kq.QuantConfig((rule,)))
    else:
      config = kq.QuantConfig.preset("w4a4").with_quantizers(weights=quantizer, activations=quantizer)
      qmodel = kq.calibrate(kq.insert_quantizers(model, config), x)
    rate = 1e-5 if quantizer == "any" else 0.05  # LSQ's steps of 8 bits are lost at 0.002
    qmodel.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse")
  y = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
  batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  watch = [kq.QuantizedTraining()] if quantizer == "gradients" else []
  qmodel.fit(batches.with_options(options), epochs=2, verbose=0, callbacks=watch)
  np.savez(output, *(variable.numpy() for variable in qmodel.weights if "measures" not in variable.name))
  _, encodings = kq.finalize(qmodel.at(2) if quantizer == "any" else qmodel)
  assert len(encodings)


if __name__ == "__main__":
  main(*sys.argv[1:])
