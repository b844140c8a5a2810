"""What the two layers of a quantized Keras model share: the switch of their quantizers."""

import tensorflow as tf
import tf_keras as keras


class Switch:
  """A quantizer's on/off switch: a variable, so that turning it needs no new trace.

  Attributes:
    passes_through: the layer computes in float, whatever the switch says; while a model is built of it
      (`keras_calls.replay`): nothing of that trace is used, and tracing quantizers takes most of its time.
  """

  passes_through = False

  def add_switch(self, on: bool) -> None:
    """Adds the variable `quantizing` to a layer that is being built."""
    self.quantizing = self.add_weight(name="quantizing", shape=(), dtype=tf.bool, trainable=False,
                                      initializer=keras.initializers.Constant(on))
