"""FusedLSTM: an LSTM that a file holds as one operator."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.core.numerics import grid_limits
from kquant.core.target import SUM_STEP

GATES = ("input", "forget", "candidate", "output")
"""In the order of Keras' kernels."""
SUM_RANGE = SUM_STEP * 2**15
"""The products with the input, and the sums that gates read, end at +-8 in the operator."""


@keras.saving.register_keras_serializable("kquant")
class FusedLSTM(keras.layers.Layer):
  """The outputs [batch, steps, units] of an LSTM that starts from zeros; each gate has kernels of its own.

  Its weights are `kernel_<gate>` [features, units], `recurrent_<gate>` [units, units] and `bias_<gate>`
  [units] for each of GATES, and `cell_limit`, what |cell| reaches, which is measured and not trained.

  Args:
    units: of the state.
    state_grid: (scale, zero point) of 8 bits to which the state is rounded behind every step; sums and cell
      then end where those of the operator do. None: everything is as in Keras' LSTM.
  """

  def __init__(self, units: int, *, state_grid: tuple[float, int] | None = None, **kwargs):
    super().__init__(**kwargs)
    self.units = units
    self.state_grid = None if state_grid is None else tuple(state_grid)

  def build(self, input_shape):
    """Adds the weights."""
    for gate in GATES:
      for name, shape, start in (("kernel", (input_shape[-1], self.units), "glorot_uniform"),
                                 ("recurrent", (self.units, self.units), "orthogonal"),
                                 ("bias", (self.units,), "zeros")):
        setattr(self, f"{name}_{gate}", self.add_weight(f"{name}_{gate}", shape, initializer=start))
    self.cell_limit = self.add_weight("cell_limit", (), trainable=False,
                                      initializer=keras.initializers.Constant(SUM_RANGE))
    super().build(input_shape)

  def call(self, inputs):
    """Returns the state behind every step."""
    return self._states(inputs)[0]

  def cells(self, inputs) -> tf.Tensor:
    """Returns the cell behind every step, [batch, steps, units]."""
    return self._states(inputs)[1]

  def call_along(self, inputs, states) -> tf.Tensor:
    """Returns the state behind every step where each step is given the one before it out of `states`.

    Rounding errors of earlier steps, which a network may amplify, then come in by the cell alone.
    """
    return self._states(inputs, one_step_later(states))[0]

  @tf.autograph.experimental.do_not_convert
  def _states(self, inputs, before=None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns states and cells; `before` are the states to read in place of those that it makes."""
    recurrent = self._joined("recurrent")

    def step(product, states):
      h, c = states
      sums = self._held(product + tf.matmul(h, recurrent) if before is None else product, SUM_RANGE)
      enter, keep, candidate, leave = tf.split(sums, len(GATES), -1)
      c = self._held(tf.sigmoid(keep) * c + tf.sigmoid(enter) * tf.tanh(candidate), self.cell_limit)
      h = self._on_grid(tf.sigmoid(leave) * tf.tanh(c))
      return tf.concat([h, c], -1), [h, c]

    products = self._held(tf.matmul(inputs, self._joined("kernel")) + self._joined("bias"), SUM_RANGE)
    if before is not None:
      products += tf.matmul(before, recurrent)
    zeros = tf.zeros_like(products[:, 0, :self.units])
    _, both, _ = keras.backend.rnn(step, products, [zeros, zeros])
    return both[..., :self.units], both[..., self.units:]

  def _joined(self, name: str) -> tf.Tensor:
    return tf.concat([tf.convert_to_tensor(getattr(self, f"{name}_{gate}")) for gate in GATES], -1)

  def _held(self, x: tf.Tensor, limit: float | tf.Variable) -> tf.Tensor:
    return x if self.state_grid is None else tf.clip_by_value(x, -limit, limit)

  def _on_grid(self, x: tf.Tensor) -> tf.Tensor:
    if self.state_grid is None:
      return x
    scale, zero_point = self.state_grid
    qmin, qmax = grid_limits(8, narrow=False)
    return scale * (tf.clip_by_value(tf.round(x / scale) + zero_point, qmin, qmax) - zero_point)

  def compute_output_shape(self, input_shape):
    """Returns [batch, steps, units]."""
    return (*input_shape[:2], self.units)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "units": self.units, "state_grid": self.state_grid}


def one_step_later(states: tf.Tensor) -> tf.Tensor:
  """Returns what each step reads of states [batch, steps, units]: that of the step before, at first zeros."""
  return tf.pad(states[:, :-1], [[0, 0], [1, 0], [0, 0]])
