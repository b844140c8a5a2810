"""What TensorBoard reads, written without its package."""

import tensorflow as tf


def write_scalar(name: str, value: float, *, step: int) -> None:
  """Writes a number into the event file at work (`tf.summary`)."""
  _write(name, tf.constant(float(value)), "scalars", step)


def write_text(name: str, text: str, *, step: int) -> None:
  """Writes Markdown into the event file at work."""
  _write(name, tf.constant(text), "text", step)


def _write(name: str, tensor: tf.Tensor, plugin: str, step: int) -> None:
  kind = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
  tf.summary.write(name, tensor, step=step, metadata=tf.compat.v1.SummaryMetadata(plugin_data=kind))
