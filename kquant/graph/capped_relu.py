"""CappedReLU: min(max(x, 0), cap) with one cap a channel: a ReLU6 whose channels were scaled."""

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("kquant")
class CappedReLU(keras.layers.Layer):
  """min(max(x, 0), caps[c]); `caps` is a weight of shape [channels], not trained.

  Scaling channel c by s turns min(max(x, 0), 6) into min(max(x, 0), 6 s): the function of the network
  stays, and the runtime clamps with one MINIMUM.
  """

  def build(self, input_shape):
    """Adds the caps, at first without effect."""
    self.caps = self.add_weight(name="caps", shape=(input_shape[-1],), trainable=False,
                                initializer=keras.initializers.Constant(float("inf")))
    super().build(input_shape)

  def call(self, inputs):
    """Returns the clamped inputs."""
    return tf.minimum(tf.nn.relu(inputs), tf.cast(self.caps, inputs.dtype))

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape
