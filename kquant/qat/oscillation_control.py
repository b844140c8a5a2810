"""Callbacks against oscillating weights: TrackOscillations, FreezeOscillations, DampenOscillations."""

import tensorflow as tf

from kquant.graph.nodes import weights_of_class
from kquant.qat import oscillation
from kquant.qat.callback import TrainingCallback
from kquant.qat.metrics import COUNTED, fraction, history_of
from kquant.qmodel.quantize_weights import QuantizeWeights

_NEVER = 2.0  # no frequency is above 1


class TrackOscillations(TrainingCallback):
  """Follows the integers of quantized weights and logs the fraction that oscillates, after each epoch.

  `logs["oscillating"]`: the fraction of weights that are not frozen and whose frequency is above `counted`.
  `logs["frozen"]`: the fraction that is frozen. Both are fractions of all weights that are followed. They
  appear in the history, the progress bar and, if its callback is behind this one, TensorBoard.
  `OscillatingFraction` and `FrozenFraction` are the same as Keras metrics, in the logs of every batch.

  The state (10 bytes for each weight) is held in variables of the layers; checkpoints and saved models
  contain it. It is updated after each batch; with `steps_per_execution` above 1 only after so many steps.
  A layer whose batch norm is folded in training (`FoldedConv`) is followed once its statistics are frozen.

  Args:
    momentum: weight of one step in the moving averages.
    bits: weights of at most this many bits are followed; wider ones hardly oscillate.
    counted: frequency above which a weight counts as oscillating (the paper's 0.005).

  Raises:
    ValueError: a momentum that is not between 0 and 1. When training starts: no weights of so few bits.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[kq.TrackOscillations()], verbose=0)
    >>> sorted(history.history)
    ['frozen', 'loss', 'oscillating']
  """

  def __init__(self, *, momentum: float = 0.001, bits: int = 4, counted: float = COUNTED):
    super().__init__()
    if not 0 < momentum < 1:
      raise ValueError(f"{type(self).__name__}: momentum must be between 0 and 1, got {momentum}.")
    self.momentum, self.bits, self.counted = momentum, bits, counted

  def on_train_begin(self, logs=None):
    """Adds the variables to the layers, where they are missing."""
    super().on_train_begin(logs)
    self._followed = self.weight_layers(most_bits=self.bits)
    fresh = [layer for layer in self._followed if not layer.histories]
    with self.model.distribute_strategy.scope():
      for layer in fresh:
        layer.track()
    if fresh:
      self.trace_anew()
    self._follow = tf.function(self._follow_all, autograph=False)
    self._measure = tf.function(self._fractions, autograph=False)

  def on_train_batch_end(self, batch, logs=None):
    """Updates the history with the integers after the step."""
    super().on_train_batch_end(batch, logs)
    self._follow(tf.constant(self.threshold(), tf.float32))

  def on_epoch_end(self, epoch, logs=None):
    """Logs the fractions."""
    for name, value in self._measure().items():
      if logs is not None:
        logs[name] = float(value)

  def threshold(self) -> float:
    """Says above which frequency weights are frozen at this step.

    Returns:
      The frequency; one that no weight reaches, as nothing is frozen.
    """
    return _NEVER

  def _follow_all(self, threshold: tf.Tensor) -> None:
    for layer in self._followed:
      for name, integers in layer.latent_integers().items():
        history = history_of(layer, name)
        moved = oscillation.freeze(oscillation.follow(history, integers, self.momentum), threshold)
        fresh = oscillation.start(integers)
        for field, new, restarted in zip(history._fields, moved, fresh):
          layer.histories[name][field].assign(tf.where(layer.integers_settle, new, restarted))

  def _fractions(self) -> dict[str, tf.Tensor]:
    return {field: fraction(self._followed, field, self.counted) for field in ("oscillating", "frozen")}


class FreezeOscillations(TrackOscillations):
  """Freezes weights that oscillate too often, at the integer nearest to their moving average.

  Iterative weight freezing (Nagel et al. 2022, section 4.3, algorithm 1). A frozen weight keeps its
  integer, whatever the optimizer does to the float weight; its scale may still be learned. The threshold
  falls from `threshold[0]` to `threshold[1]` along a half cosine.

  Args:
    threshold: frequencies at `begin` and at the end; momentum should be well below both. The paper's
      ends at 0.01 to 0.015 with momentum 0.001 and 10^5 steps.
    begin: fraction of the training before which nothing is frozen.
    momentum, bits, counted: as in `TrackOscillations`.

  Raises:
    ValueError: a momentum that is not between 0 and 1, or a threshold below twice the momentum. When training
      starts: no weights of so few bits, or a training of unknown length.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[kq.FreezeOscillations()], verbose=0)
    >>> history.history["frozen"]  # in one step nothing oscillates
    [0.0]
  """

  def __init__(self, *, threshold: tuple[float, float] = (0.1, 0.01), begin: float = 0.25, **kwargs):
    super().__init__(**kwargs)
    if min(threshold) < 2 * self.momentum:
      raise ValueError(f"FreezeOscillations: one oscillation raises a frequency by momentum={self.momentum}; "
                       f"expected thresholds of at least twice that, got {tuple(threshold)}.")
    self._ends, self.begin = tuple(threshold), begin

  def threshold(self) -> float:
    """Says above which frequency weights are frozen at this step.

    Returns:
      The frequency; before `begin` one that no weight reaches.
    """
    progress = self.progress
    return _NEVER if progress < self.begin else oscillation.cosine(progress, *self._ends, begin=self.begin)


class DampenOscillations(TrainingCallback):
  """Adds a loss that pulls weights to the centre of their bins: w * sum of (scale * integer - weight)^2.

  Oscillation dampening (Nagel et al. 2022, section 4.2, eq. 5): `oscillation.dampening` of each layer,
  its batch norm folded in, times a weight that rises from `first` to `last` along a half cosine. It is
  part of `loss`, as Keras' regularizers are, while the training lasts. `logs["dampening"]` is the weight.

  Args:
    last: weight at the end; the paper's.
    first: weight up to `begin`.
    begin: fraction of the training before which it stays.
    bits: weights of at most this many bits are dampened.

  Raises:
    ValueError: when training starts: no weights of so few bits, or a training of unknown length.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> dampen = kq.DampenOscillations(begin=0.0)
    >>> history = qmodel.fit(images, images[:, :2], epochs=2, callbacks=[dampen], verbose=0)
    >>> [round(weight, 3) for weight in history.history["dampening"]]
    [0.0, 0.05]
  """

  def __init__(self, *, last: float = 0.1, first: float = 0.0, begin: float = 0.25, bits: int = 4):
    super().__init__()
    self.first, self.last, self.begin, self.bits = first, last, begin, bits
    self._weight: tf.Variable | None = None

  def on_train_begin(self, logs=None):
    """Adds the loss to the layers."""
    super().on_train_begin(logs)
    if self._weight is not None:
      return
    dampened = self.weight_layers(most_bits=self.bits)
    with self.model.distribute_strategy.scope():
      self._weight = tf.Variable(self.first, trainable=False, dtype=tf.float32)
    for layer in dampened:
      layer.add_loss(lambda layer=layer: self._weight * dampening_of(layer))
    self.trace_anew()

  def on_train_batch_begin(self, batch, logs=None):
    """Sets the weight of the step."""
    self._weight.assign(oscillation.cosine(self.progress, self.first, self.last, begin=self.begin))

  def on_epoch_end(self, epoch, logs=None):
    """Logs the weight."""
    if logs is not None:
      logs["dampening"] = float(self._weight.numpy())

  def on_train_end(self, logs=None):
    """Removes the loss."""
    self._weight.assign(0.0)


def dampening_of(layer: QuantizeWeights) -> tf.Tensor:
  """Returns the sum of `oscillation.dampening` over the quantized weights of a layer.

  Args:
    layer: whose quantizers have a grid that rounds the weight as it is (`Quantizer.grid`).
  """
  grids = layer.latent_grids()
  return tf.add_n([oscillation.dampening(*grids[weight.name], weight.out_axes)
                   for weight in weights_of_class(type(layer.layer)) if weight.name in grids])
