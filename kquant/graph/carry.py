"""The layer that hands a state to the next run of a network."""

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("kquant")
class CarryState(keras.layers.Layer):
  """Called with [state, entered]: passes the state on, which the next run gets as the input `entered`.

  So both have one grid.
  """

  def call(self, inputs):
    """Returns the state."""
    return tf.identity(inputs[0])

  def compute_output_shape(self, input_shape):
    """Returns the shape of the state."""
    return input_shape[0]
