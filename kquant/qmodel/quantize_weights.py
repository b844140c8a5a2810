"""QuantizeWeights: the wrapper that runs a layer of a quantized Keras model with fake-quantized weights."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.graph import keras_calls, keras_reader
from kquant.graph.execution import Values
from kquant.graph.nodes import Node
from kquant.qmodel.measures import Measured
from kquant.qmodel.switch import Switch
from kquant.quantizers.gradients import GradientQuantizer
from kquant.quantizers.straight_through import with_gradient_of


@keras.saving.register_keras_serializable("kquant")
class QuantizeWeights(keras.layers.Wrapper, Switch, Measured):
  """Runs a layer with fake-quantized weights; it bears the layer's name.

  Args:
    layer: the layer.
    quantize_config: a tfmot QuantizeConfig that says which of its variables are quantized.
    gradients: a GradientQuantizer of what flows back into its output in training, or its config; None: that
      stays float.
    tracked: whether it has variables for the history of its integers, see `track`.
    rule: where the rule applies that decided; for `kquant.describe`.
  """

  def __init__(self, layer, quantize_config, *, gradients=None, tracked: bool = False, rule: str = "",
               **kwargs):
    super().__init__(layer, **{"name": layer.name, **kwargs})
    self.quantize_config = quantize_config
    self.gradients = GradientQuantizer(**gradients) if isinstance(gradients, dict) else gradients
    self.gradient_variables: dict[str, tf.Variable] = {}
    self.tracked = tracked
    self.rule = rule
    self.histories: dict[str, dict[str, tf.Variable]] = {}

  def build(self, input_shape):
    """Builds the layer, then the variables of each weight quantizer."""
    super().build(input_shape)
    self._quantized = []
    for variable, quantizer in self.quantize_config.get_weights_and_quantizers(self.layer):
      (attribute,) = (name for name, value in vars(self.layer).items() if value is variable)
      self._quantized.append((attribute, quantizer, quantizer.build(variable.shape, attribute, self)))
    self.add_switch(True)
    if self.gradients is not None:
      self.gradient_variables = self.gradients.build(self)
    if self.tracked:
      self.track()
    if self.measured:
      self.measure()

  def track(self) -> None:
    """Adds the variables that follow integers in training; does nothing where they are.

    `histories[attribute]` holds, in the weight's shape: `frozen` (bool), `integers` (int8: of the step
    before; of a frozen weight those that it keeps), `direction` (int8: of its last change, 0 before),
    `frequency` and `average` (float32 moving averages of "it oscillated" and of the integers).
    """
    self.tracked = True
    for name, integers in self.latent_integers().items():
      if name in self.histories:
        continue
      kinds = {"frozen": tf.bool, "integers": tf.int8, "direction": tf.int8, "frequency": tf.float32,
               "average": tf.float32}
      self.histories[name] = {
          kind: self.add_weight(
              name=f"{name}_{kind}", shape=integers.shape, dtype=dtype, trainable=False,
              initializer=_Given(integers) if kind in ("integers", "average") else "zeros")
          for kind, dtype in kinds.items()}

  @property
  def trainable_weights(self) -> list[tf.Variable]:
    """The layer's, then those of its quantizers; none where the wrapper is frozen."""
    own = [variable for variable in self._own_variables() if variable.trainable]
    return [*self.layer.trainable_weights, *own] if self.trainable else []

  @property
  def non_trainable_weights(self) -> list[tf.Variable]:
    """The others, so that freezing changes no order: h5 files know weights by it."""
    own = [variable for variable in self._own_variables() if not variable.trainable]
    if self.trainable:
      return [*self.layer.non_trainable_weights, *own]
    learned = [variable for variable in self._own_variables() if variable.trainable]
    return [*self.layer.weights, *learned, *own]

  def _own_variables(self) -> list[tf.Variable]:
    if not hasattr(self, "quantizing"):  # not built
      return []
    followed = [variable for history in self.histories.values() for variable in history.values()]
    measures = [] if self.measures is None else [self.measures]
    return [*self.range_variables(), self.quantizing, *self.gradient_variables.values(), *followed, *measures]

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None):
    """Returns the layer's output with each quantized weight in the place of its variable."""
    if self.passes_through:
      return self.float_call(inputs)
    outputs = keras_calls.call_with(self.layer, inputs, self.simulated_weights(training))
    return self.with_gradient(outputs, training)

  def with_gradient(self, outputs: tf.Tensor, training) -> tf.Tensor:
    """Returns the outputs; in training what flows back into them is quantized."""
    if not training or self.gradients is None:
      return outputs
    return self.gradients(outputs, self.gradient_variables, watch=self.watch(self.gradient_variables))

  def float_call(self, inputs, training=None):
    """Returns the layer's output with its float weights."""
    return self.layer(inputs)

  def simulated_weights(self, training=False) -> dict[str, tf.Tensor]:
    """Returns {attribute of the layer: quantized weight}."""
    training = training if self.trainable else False
    latent, quantized = self.latent_weights(), {}
    for name, quantizer, state in self._quantized:
      values = quantizer(latent[name], training, state, on=self.quantizing)
      if name in self.histories:
        values = self._with_frozen(values, name, quantizer, state)
      quantized[name] = values
    return quantized

  def _with_frozen(self, values: tf.Tensor, name: str, quantizer, state) -> tf.Tensor:
    """Puts scale * integer in the place of frozen weights; the gradient goes to the scale alone.

    A tensor beyond the grid is quantized to scale * qmax: qmax-ths of it have the scale's gradient, as
    the quantizer defines it.
    """
    history = self.histories[name]
    integers = tf.cast(history["integers"], tf.float32)
    scale, _, qmax = self._grid_of(name, quantizer, state)
    beyond = quantizer(tf.fill(values.shape, 2 * tf.reduce_max(scale) * qmax), False, state)
    frozen = with_gradient_of(scale * integers, beyond * (integers / qmax))
    return tf.where(tf.logical_and(history["frozen"], self.quantizing), frozen, values)

  def _grid_of(self, name: str, quantizer, state) -> tuple[tf.Tensor, int, int]:
    """Returns (scale, to broadcast over the weight, qmin, qmax)."""
    shape = numerics.channel_shape(getattr(self.layer, name).shape, quantizer.axis)
    scale, _ = quantizer.grid(state)
    return tf.reshape(scale, shape), *numerics.grid_limits(quantizer.bits, narrow=quantizer.narrow)

  def latent_integers(self) -> dict[str, tf.Tensor]:
    """Returns {attribute: float64 integers that its weights round to, frozen or not}."""
    latent, integers = self.latent_weights(), {}
    for name, quantizer, state in self._quantized:
      scale, qmin, qmax = self._grid_of(name, quantizer, state)
      rounded = tf.round(tf.cast(latent[name], tf.float64) / tf.cast(scale, tf.float64))
      integers[name] = tf.clip_by_value(rounded, qmin, qmax)
    return integers

  def latent_grids(self) -> dict[str, tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns {attribute: (float weight, scale, lowest, highest value of the grid)}, to broadcast."""
    latent, grids = self.latent_weights(), {}
    for name, quantizer, state in self._quantized:
      scale, qmin, qmax = self._grid_of(name, quantizer, state)
      grids[name] = latent[name], scale, scale * qmin, scale * qmax
    return grids

  def set_scale(self, name: str, scale: np.ndarray) -> None:
    """Sets the scale of the grid of a weight, [channels] or [1]; it is narrow and symmetric."""
    ((quantizer, state),) = (entry for attribute, *entry in self._quantized if attribute == name)
    end = np.asarray(scale, np.float64) * numerics.grid_limits(quantizer.bits, narrow=True)[1]
    quantizer.set_range(state, -end, end)

  def set_integers(self, name: str, integers: np.ndarray) -> None:
    """Puts a weight onto its grid: integers in Keras layout."""
    getattr(self.layer, name).assign(self.weight_encodings()[name].dequantize(integers))

  def latent_weights(self) -> dict[str, tf.Tensor]:
    """Returns {attribute of the layer: float tensor that is quantized}."""
    return {name: tf.convert_to_tensor(getattr(self.layer, name)) for name, _, _ in self._quantized}

  def plain_layer(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (config, {name: value}) of the layer that finalize puts in the wrapper's place."""
    params = {name: variable.numpy() for name, variable in keras_reader.named_variables(self.layer)}
    return self.layer.get_config(), {**params, **self.weight_values()}

  @property
  def integers_settle(self) -> tf.Tensor:
    """Whether integers change by training alone, so that following them makes sense."""
    return tf.constant(True)

  def range_variables(self) -> list[tf.Variable]:
    """Returns the variables of the grids of its weights."""
    return [variable for _, _, state in self._quantized for variable in state.values()]

  def weight_encodings(self) -> dict[str, Encoding]:
    """Returns {attribute of the layer: grid} of its quantized weights."""
    return {name: quantizer.encoding(state) for name, quantizer, state in self._quantized}

  def weight_values(self) -> dict[str, np.ndarray]:
    """Returns {attribute of the layer: the float values that its grid rounds}."""
    latent, values = self.latent_weights(), {}
    quantized = self.simulated_weights() if self.histories else {}
    for name, quantizer, state in self._quantized:
      values[name] = quantizer.transform(latent[name].numpy(), state)
      if name in self.histories:
        values[name] = np.where(self.histories[name]["frozen"], quantized[name], values[name])
    return values

  def compute_output_shape(self, input_shape):
    """Returns the layer's output shape."""
    return self.layer.compute_output_shape(input_shape)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    config = {"registered_name": keras.saving.get_registered_name(type(self.quantize_config)),
              "config": self.quantize_config.get_config()}
    added = {} if self.gradients is None else {"gradients": self.gradients.get_config(),
                                               "measured": self.measured}
    return {**super().get_config(), "quantize_config": config, "tracked": self.tracked, "rule": self.rule,
            **added}

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Returns the wrapper that `get_config` described."""
    config = dict(config)
    fields = config.pop("quantize_config")
    quantize_config = keras.saving.get_registered_object(fields["registered_name"])
    inner = config.pop("layer")
    if inner.get("registered_name"):  # of h5 files Keras looks at the class name alone
      inner = {**inner, "class_name": inner["registered_name"]}
    layer = keras.layers.deserialize(inner, custom_objects=custom_objects)
    measured = config.pop("measured", False)
    wrapper = cls(layer, quantize_config.from_config(fields["config"]), **config)
    wrapper.measured = measured
    return wrapper


def call_with_weights(layer: QuantizeWeights, node: Node, values: Values,
                      weights: dict[str, Any]) -> list[Any]:
  """Calls a layer as a node says, with tensors in the place of its weights and biases, by attribute."""

  def call(inputs, training=None):
    return keras_calls.call_with(layer.layer, inputs, weights)

  return keras_calls.call_node(call, node, values.__getitem__, training=False)


class _Given(keras.initializers.Initializer):
  """Initializes a variable with a tensor."""

  def __init__(self, values: tf.Tensor):
    self._values = values

  def __call__(self, shape, dtype=None, **kwargs):
    return tf.cast(self._values, dtype)
