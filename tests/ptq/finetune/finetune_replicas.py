"""Fine-tunes a small network on one and on two replicas, logical CPU devices; prints what came out."""

import json

import tensorflow as tf

import kquant as kq
from tests.ptq.finetune.test_finetuning import calibrated


def tuned(qmodel, folded, inputs, devices: list[str]) -> dict:
  """Returns the losses and the biases and ranges of the network trained on those devices."""
  strategy = tf.distribute.MirroredStrategy(devices)
  with strategy.scope():
    result = kq.finetune(qmodel, folded, inputs, settings=kq.FinetuneSettings(epochs=2, batch_size=16))
  variables = {v.name: v.numpy().tolist() for v in qmodel.weights if v.shape.rank == 1}
  return {"replicas": strategy.num_replicas_in_sync, "losses": result.losses, **variables}


def main() -> None:
  """Prints the two results as JSON."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  qmodel, folded, inputs = calibrated(images=64)
  start, results = qmodel.get_weights(), []
  for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    qmodel.set_weights(start)
    results.append(tuned(qmodel, folded, inputs, devices))
  print(json.dumps(results))


if __name__ == "__main__":
  main()
