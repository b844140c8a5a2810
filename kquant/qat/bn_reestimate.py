"""ReestimateBatchNorm: batch norm statistics of the quantized network, in place of moving averages."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers
from tqdm import tqdm

from kquant.core import data
from kquant.graph import keras_calls
from kquant.qat.callback import quantized_models
from kquant.qmodel.folded_conv import FoldedConv


class ReestimateBatchNorm(keras.callbacks.Callback):
  """Sets mean and variance of each batch norm to their averages over some batches; weights do not change.

  While weights oscillate, moving averages mix the statistics of several networks. Before every evaluation,
  and at the end of the training, one pass over the data computes the averages of batch mean and batch
  variance (Nagel et al. 2022, section 4; Sun et al. 2019).

  For models made with `batch_norm="absorb"` or "train". Frozen statistics do not change.

  Args:
    images: inputs as `kquant.calibrate` takes them; training images, augmented as in training.
    batches: how many batches, from the first on.
    batch_size: images in each.

  Raises:
    ValueError: at an evaluation: the model has no batch norm that learns, or the images do not fit.

  Example:
    >>> layers = [keras.layers.Dense(2, input_shape=(3,)), keras.layers.BatchNormalization()]
    >>> qmodel = kq.insert_quantizers(keras.Sequential(layers), batch_norm="absorb")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> _ = qmodel.evaluate(images, images[:, :2], callbacks=[kq.ReestimateBatchNorm(images)], verbose=0)
    >>> bool(qmodel.get_layer(layers[1].name).moving_mean.numpy().all())  # 0 before
    True
  """

  def __init__(self, images: Any, *, batches: int = 50, batch_size: int = 32):
    super().__init__()
    self._images, self._batches, self._batch_size = images, batches, batch_size

  def on_test_begin(self, logs=None):
    """Computes the statistics again."""
    for model in quantized_models(self.model):
      reestimate_batch_norm(model, self._images, batches=self._batches, batch_size=self._batch_size)

  def on_train_end(self, logs=None):
    """Computes the statistics again."""
    self.on_test_begin()


def reestimate_batch_norm(model: keras.Model, images: Any, *, batches: int = 50,
                          batch_size: int = 32) -> None:
  """Sets mean and variance of each batch norm to their averages over batches, in place.

  Nothing else of the model changes. See `ReestimateBatchNorm`. A float model may need it too, if its
  statistics are out of date.

  Args:
    model: what `insert_quantizers` returns with `batch_norm="absorb"` or "train", or a float model.
    images, batches, batch_size: as `ReestimateBatchNorm` takes them.

  Raises:
    ValueError: the model has no batch norm that learns, or the images do not fit.
    TypeError: images that are no data.

  Example:
    >>> model = keras.Sequential([keras.layers.BatchNormalization(input_shape=(3,))])
    >>> kq.reestimate_batch_norm(model, np.full((8, 3), 5, np.float32))
    >>> model.layers[0].moving_mean.numpy()
    array([5., 5., 5.], dtype=float32)
  """
  norms = _learning_norms(model)
  if not norms:
    raise ValueError(f"Model {model.name!r} has no batch norm whose statistics learn; expected a float model "
                     "with batch norms, or one whose quantizers were inserted with batch_norm=\"absorb\" or "
                     "\"train\".")
  statistics = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
  momenta, values_before = [norm.momentum for norm in norms], [(v, v.numpy()) for v in model.weights]
  sums, count = [np.zeros(v.shape) for v in statistics], 0
  try:
    for norm in norms:
      norm.momentum = 0.0  # moving statistics are those of the last batch
    step = tf.function(lambda arrays: keras_calls.call(model, arrays, training=True), autograph=False)
    loaded = data.batches(images, keras_calls.input_specs(model), batch_size=batch_size)
    for batch in _first(loaded, batches):
      step([tf.convert_to_tensor(array) for array in batch])
      sums = [total + v.numpy() for total, v in zip(sums, statistics)]
      count += 1
  finally:
    for norm, momentum in zip(norms, momenta):
      norm.momentum = momentum
    for variable, value in values_before:  # whatever else a training step moves
      variable.assign(value)
  for variable, total in zip(statistics, sums):
    variable.assign((total / count).astype(np.float32))


def _learning_norms(qmodel: keras.Model) -> list[layers.BatchNormalization]:
  norms = [layer for layer in qmodel.submodules if isinstance(layer, layers.BatchNormalization)]
  frozen = {id(layer.batch_norm) for layer in qmodel.submodules
            if isinstance(layer, FoldedConv) and bool(layer.frozen.numpy())}
  return [norm for norm in norms if norm.trainable and id(norm) not in frozen]


def _first(batches: Iterator[list[np.ndarray]], count: int) -> Iterator[list[np.ndarray]]:
  with tqdm(desc="batch norm", unit=" batches", total=count, delay=2.0, disable=None) as bar:
    for _, batch in zip(range(count), batches):
      yield batch
      bar.update()
