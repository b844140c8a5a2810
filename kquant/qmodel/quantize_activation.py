"""QuantizeActivation: the layer that puts a tensor of a quantized Keras model on its grid."""

import dataclasses
import json
from typing import Any

import tensorflow as tf
import tf_keras as keras
from absl import logging

from kquant.core.encodings import Encoding
from kquant.core.records import NarrowTensor
from kquant.graph.graph import NOTES
from kquant.qmodel.measures import Measured
from kquant.qmodel.switch import Switch
from kquant.quantizers import base
from kquant.quantizers.moving_average import MovingAverageQuantizer
from kquant.quantizers.replicas import extrema_of_all


@keras.saving.register_keras_serializable("kquant")
class QuantizeActivation(keras.layers.Layer, Switch, Measured):
  """Fake-quantizes a tensor on one grid; tensors that share a grid share the layer.

  It is off until calibration has set its range, unless the runtime fixes its grid. Trained before that, it
  takes the extrema of its first batch and logs it: a model never trains in float without a word.

  Args:
    quantizer: a Quantizer, or what `quantizers.base.serialize` made of one.
    range: name of the estimator that calibration uses.
    fixed: (low, high) of the grid where the runtime's kernel takes no other; None elsewhere.
    float_in_training: passes its inputs while the model trains. A softmax that ends the model lies on
      steps of 1/256: where the true class rounds to 0, a cross-entropy has no gradient.
    rule: where the rule applies that decided; for `kquant.describe`.

  Attributes:
    seen: (low, high) beyond which all that reads the tensor is flat, so that its range need not hold more;
      None where there is no end.
    room: how far the grid reaches below what is on it, where scores are masked.
    cut: the ends of the range, of these, at which calibration cut it.
    narrow: the inputs and outputs of the model on this grid some of whose columns use a few steps of it, as
      calibration found.

  All four are in the config. That of one layer of a model has what its graph knows beside its layers, too
  (`Graph.notes`).
  """

  def __init__(self, quantizer, *, range: str = "minmax", fixed: tuple[float, float] | None = None,
               float_in_training: bool = False, rule: str = "", **kwargs):
    super().__init__(**kwargs)
    self.quantizer = base.deserialize(quantizer) if isinstance(quantizer, dict) else quantizer
    self.range = range
    self.fixed = None if fixed is None else tuple(fixed)
    self.float_in_training = float_in_training
    self.rule = rule
    self.room = 0.0
    self.seen: tuple[float | None, float | None] = (None, None)
    self.cut: tuple[float | None, float | None] = (None, None)
    self.narrow: tuple[NarrowTensor, ...] = ()
    self.waits = False  # it is off on purpose: `DelayActivationQuantization` turns it on
    self._graph_notes: str | None = None  # JSON: Keras would track a dict

  def build(self, input_shape):
    """Adds the quantizer's variables and the switch."""
    self.range_variables = self.quantizer.build(input_shape, "output", self)
    self.add_switch(self.fixed is not None)
    if self.fixed is not None:
      self.quantizer.set_range(self.range_variables, *self.fixed)
    if self.measured:
      self.measure()
    super().build(input_shape)

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None, observe=True):
    """Returns the fake-quantized inputs; `observe=False` keeps them out of calibration."""
    if self.passes_through or training and self.float_in_training:
      return tf.identity(inputs)
    inputs = self.float_call(inputs) if training else inputs  # a range that follows them stays cut
    if training and not self.waits and self._is_off():
      self._start_from(inputs)
    training = training if self.trainable else False  # the range of a frozen layer stays
    if not (training and self.room):
      return self._quantized(inputs, training)
    lowest = tf.fill(tf.shape(inputs[:1]), tf.reduce_min(inputs) - self.room)  # as one more image
    inputs = tf.concat([inputs, lowest], axis=0)
    return self._quantized(inputs, training)[:-1]

  def _quantized(self, inputs: tf.Tensor, training) -> tf.Tensor:
    watch = {"watch": self.watch(self.range_variables)} if training and self.follows else {}
    return self.quantizer(inputs, training, self.range_variables, on=self.quantizing, **watch)

  @property
  def follows(self) -> bool:
    """Whether its range follows the tensor in training."""
    return self.fixed is None and isinstance(self.quantizer, MovingAverageQuantizer)

  def _is_off(self) -> bool:
    """Whether it is off while a training step is traced."""
    with tf.init_scope():
      value = self.quantizing.read_value()
      return not tf.executing_eagerly() or not value.numpy()

  def _start_from(self, inputs: tf.Tensor) -> None:
    """Takes the range of the inputs, and turns the quantizer on, in the first step that is run."""
    logging.log_first_n(logging.WARNING, "The model was not calibrated: its ranges start from the extrema of "
                        "the first training batch (layer %r and others); run kq.calibrate(qmodel, images) "
                        "before fit.", 1, self.name)

    low, high = extrema_of_all(*(tf.reshape(tf.cast(end, tf.float32), [1]) for end in (
        tf.reduce_min(inputs) - self.room, tf.reduce_max(inputs))))

    def start():
      for name, value in self.quantizer.first_values(low, high).items():
        self.range_variables[name].assign(value)
      self.quantizing.assign(True)
      return True

    tf.cond(self.quantizing, lambda: True, start)

  def float_call(self, inputs, training=None, observe=True):
    """Returns what is seen of the inputs: the network computes the same of it."""
    low, high = self.seen
    inputs = inputs if low is None else tf.maximum(inputs, low)
    return inputs if high is None else tf.minimum(inputs, high)

  def set_range(self, low, high) -> None:
    """Sets the real limits of what is on the grid and turns the quantizer on."""
    self.quantizer.set_range(self.range_variables, low - self.room, high)
    self.quantizing.assign(True)

  def encoding(self) -> Encoding:
    """Returns its grid.

    Raises:
      ValueError: it has not been calibrated.
    """
    if not self.quantizing.numpy():
      raise ValueError(f"Tensor {self.name!r} has no range yet; run kq.calibrate(qmodel, images) first.")
    return self.quantizer.encoding(self.range_variables)

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor, and the notes of the graph where it has them."""
    notes = {} if self._graph_notes is None else {NOTES: json.loads(self._graph_notes)}
    return {**super().get_config(), "quantizer": base.serialize(self.quantizer), "range": self.range,
            "fixed": None if self.fixed is None else list(self.fixed),
            "float_in_training": self.float_in_training, "rule": self.rule,
            "room": self.room, "seen": list(self.seen),
            "cut": list(self.cut), "measured": self.measured,
            "narrow": [dataclasses.asdict(tensor) for tensor in self.narrow], **notes}

  @classmethod
  def from_config(cls, config):
    """Returns the layer that `get_config` described."""
    found = (NOTES, "seen", "room", "cut", "narrow", "measured")
    layer = super().from_config({name: value for name, value in config.items() if name not in found})
    layer.seen, layer.cut = (tuple(config.get(name, (None, None))) for name in ("seen", "cut"))
    layer.room, layer.measured = config.get("room", 0.0), config.get("measured", False)
    layer.narrow = tuple(NarrowTensor.from_json(fields) for fields in config.get("narrow", ()))
    if NOTES in config:
      layer._graph_notes = json.dumps(config[NOTES])
    return layer
