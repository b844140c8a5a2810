"""Callbacks that change how a quantized model computes after some steps or epochs."""

import tensorflow as tf

from kquant.qat.callback import TrainingCallback
from kquant.qmodel.folded_conv import FoldedConv


class _After(TrainingCallback):
  """Acts after so many steps or epochs, or at the start of a resumed training that has passed them.

  Args:
    steps, epochs: one of them: after how many.
  """

  def __init__(self, *, steps: int | None = None, epochs: int | None = None):
    super().__init__()
    if (steps is None) == (epochs is None):
      raise ValueError(f"{type(self).__name__}: expected either steps= or epochs=, got steps={steps}, "
                       f"epochs={epochs}.")
    self._when_step, self._when_epoch = steps, epochs
    self._done = False

  def on_train_begin(self, logs=None):
    """Waits."""
    super().on_train_begin(logs)
    self._done = False

  def on_epoch_begin(self, epoch, logs=None):
    """Acts where it is time."""
    super().on_epoch_begin(epoch, logs)
    if self._when_epoch is not None and epoch >= self._when_epoch:
      self._act_once()

  def on_train_batch_begin(self, batch, logs=None):
    """Acts where it is time."""
    if self._when_step is not None and self._first + batch >= self._when_step:
      self._act_once()

  def _act_once(self) -> None:
    if not self._done:
      self._done = True
      self.act()

  def act(self) -> None:
    """Changes the model."""
    raise NotImplementedError


class DelayActivationQuantization(_After):
  """Trains with float activations first, and switches their quantizers on after some steps or epochs.

  Weights are quantized from the start (Jacob et al. 2018, section 3.1). The ranges are those of
  calibration; at the end of the training all quantizers are on.

  Args:
    steps, epochs: one of them: how long activations are float.

  Raises:
    ValueError: steps and epochs both given, or neither. When training starts: a range was never set, or the
      model has no quantizers.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]))
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> delay = kq.DelayActivationQuantization(epochs=1)
    >>> _ = qmodel.fit(images, images[:, :2], epochs=2, callbacks=[delay], verbose=0)
    >>> bool(qmodel.layers[-1].quantizing.numpy())  # at the end they are on
    True
  """

  def on_train_begin(self, logs=None):
    """Switches them off."""
    super().on_train_begin(logs)
    for layer in self.activation_layers():
      layer.encoding()  # raises where a range was never set
      layer.quantizing.assign(False)
      layer.waits = True

  def act(self) -> None:
    """Switches them on."""
    for layer in self.activation_layers():
      layer.quantizing.assign(True)
      layer.waits = False

  def on_train_end(self, logs=None):
    """Switches them on."""
    self.act()


class FreezeRanges(_After):
  """Keeps the ranges of activations, learned or averaged, as they are from some step or epoch on.

  They are restored bit by bit after every batch, so that momentum of the optimizer does not change them. With
  `steps_per_execution` above 1 they change between the batches that Keras reports.

  Args:
    steps, epochs: one of them: after how many.
    weights: keep the ranges of weights too.

  Raises:
    ValueError: steps and epochs both given, or neither. When they are to be kept: the model has no
      quantizers.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]))
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> range_before = kq.describe(qmodel).rows[-1].output.range
    >>> _ = qmodel.fit(images, images[:, :2], callbacks=[kq.FreezeRanges(epochs=0)], verbose=0)
    >>> kq.describe(qmodel).rows[-1].output.range == range_before
    True
  """

  def __init__(self, *, steps: int | None = None, epochs: int | None = None, weights: bool = False):
    super().__init__(steps=steps, epochs=epochs)
    self._weights = weights

  def on_train_begin(self, logs=None):
    """Starts with ranges that can change."""
    super().on_train_begin(logs)
    self._put_back = None

  def act(self) -> None:
    """Keeps the current ranges."""
    variables = [v for layer in self.activation_layers() for v in layer.range_variables.values()]
    if self._weights:
      variables += [v for layer in self.weight_layers() for v in layer.range_variables()]
    values = [tf.constant(variable.numpy()) for variable in variables]

    @tf.function(autograph=False)
    def put_back():
      for variable, value in zip(variables, values):
        variable.assign(value)

    self._put_back = put_back

  def on_train_batch_end(self, batch, logs=None):
    """Restores the ranges."""
    super().on_train_batch_end(batch, logs)
    if self._put_back is not None:
      self._put_back()


class FreezeBatchNorm(_After):
  """Freezes mean and variance in layers made with `batch_norm="train"`.

  From then on training computes what inference does, without batch statistics and without the second
  convolution (Krishnamoorthi 2018, section 3.2.2). gamma and beta are trained further.

  Args:
    steps, epochs: one of them: after how many.

  Raises:
    ValueError: steps and epochs both given, or neither. When they are to be frozen: the model has no layer
      made with `batch_norm="train"`.

  Example:
    >>> layers = [keras.layers.Dense(2, input_shape=(3,)), keras.layers.BatchNormalization()]
    >>> qmodel = kq.insert_quantizers(keras.Sequential(layers), batch_norm="train")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> _ = qmodel.fit(images, images[:, :2], callbacks=[kq.FreezeBatchNorm(epochs=0)], verbose=0)
    >>> bool(qmodel.get_layer(layers[0].name).frozen.numpy())
    True
  """

  def act(self) -> None:
    """Freezes the statistics.

    Raises:
      ValueError: the model has no such layers.
    """
    layers = [layer for layer in self.weight_layers() if isinstance(layer, FoldedConv)]
    if not layers:
      raise ValueError("FreezeBatchNorm: no layer folds its batch norm in training; insert the quantizers "
                       "with batch_norm=\"train\", or leave the callback out.")
    for layer in layers:
      layer.freeze_statistics()
