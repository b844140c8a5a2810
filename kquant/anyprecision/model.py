"""AnyPrecisionModel: one training, a network for every width."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.anyprecision import building
from kquant.anyprecision.family import FamilyMember, check_widths, member_of
from kquant.anyprecision.width_runs import WidthRuns, WidthTable
from kquant.core import nested_codes
from kquant.graph import keras_calls
from kquant.graph.policies import float32_policy
from kquant.qat.bn_reestimate import reestimate_batch_norm
from kquant.qmodel.calibrate import calibrate
from kquant.qmodel.distill import LOSSES
from kquant.qmodel.loss_mean import LossMean
from kquant.quantizers.xnor import FLOAT_BITS


@keras.saving.register_keras_serializable("kquant")
class AnyPrecisionModel(keras.Model):
  """Trains one set of kernels to be used at several widths, under plain `compile` and `fit`.

  Yu et al. 2021, Any-Precision Deep Neural Networks. Kernels, and biases of layers without a batch norm, are
  shared by all widths. Each width has batch norms and activation ranges of its own. In a step the
  widest model learns from the labels, and each other one the scores of the next wider one, with equal
  weights. The gradients are added up width by width, so that memory is that of one width.

  A regularizer counts once for each width. Called as a model, it computes the widest one.

  Args:
    model: float model. For batch norms that learn they must directly follow their linear layers.
    widths: bits of the weights, 1 to 8; 32 for float.
    mode: "nested": the code of each width is shifted from the 8-bit code, activations have 8 bits and
      trained ranges; `export_family` writes these. "paper": the authors' quantizers, weights rounded anew at
      each width, activations behind ReLUs in [0, 1] with the bits of the width: simulation.
    distill: loss against the scores of the next wider width: "kl" for classes, "relative_l2"; None: all
      widths learn from the labels alone.
    labels: "widest": the widest width alone learns from the labels; "all": every width does, beside the
      scores of the next wider one, with equal weights.
    eight_bits: regular expression of the layers whose weights have 8 bits at every width; None: the first
      and the last layer with a kernel.

  Raises:
    ValueError: widths, a mode or a loss that there are not, or a model without a kernel.
    UnsupportedLayerError: a layer that cannot be quantized, by name.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(n, input_shape=(3,)) for n in (4, 4, 2)])
    >>> images, labels = np.random.default_rng(0).random((8, 3), np.float32), np.arange(8) % 2
    >>> anymodel = kq.AnyPrecisionModel(model, widths=(2, 8)).calibrate(images)
    >>> anymodel.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> sorted(anymodel.fit(images, labels, verbose=0).history)
    ['loss', 'loss_2', 'loss_8']
  """

  def __init__(self, model: keras.Model, widths: Sequence[int] = (1, 2, 4, 8, FLOAT_BITS), *,
               mode: str = "nested", distill: str | None = "kl", labels: str = "widest",
               eight_bits: str | None = None, **kwargs):
    super().__init__(**{"dtype": "float32", **kwargs})
    building.check_options(widths, mode, distill, labels)
    self.mode, self.distill, self.labels = mode, distill, labels
    if isinstance(model, list):  # from a file
      self.eight_bits, models, self._order = eight_bits, model, list(widths)
    else:
      graph = building.standardized(model)
      self.eight_bits = eight_bits or building.edge_layers(graph)
      self._order = sorted(set(widths), reverse=True)
      models = [building.width_model(graph, bits, mode, self.eight_bits) for bits in self._order]
    building.share_layers(models)
    self._models, self._runs = list(models), WidthRuns(models)
    self._loss = LossMean(name="loss")
    self._losses = [LossMean(name=f"loss_{bits}") for bits in self._order]
    self.built = True

  @property
  def widths(self) -> tuple[int, ...]:
    """The widths, widest first."""
    return tuple(sorted(self._order, reverse=True))

  @property
  def width_models(self) -> list[keras.Model]:
    """The model of each width, widest first."""
    return [self.at(bits) for bits in self.widths]

  def at(self, bits: int) -> keras.Model:
    """Looks the model of a width up, which shares its kernels with the others.

    Args:
      bits: one of `widths`; 32 is a float model.

    Returns:
      A Keras model, which `kquant.finalize` takes.

    Raises:
      ValueError: there is no such width.
    """
    if bits not in self._order:
      raise ValueError(f"AnyPrecisionModel: there is no width of {bits} bits, only "
                       f"{', '.join(map(str, self.widths))}; add it with add_width({bits}, images).")
    return self._models[self._order.index(bits)]

  def calibrate(self, calibration: Any) -> "AnyPrecisionModel":
    """Sets the activation ranges of every width, for the training to start from.

    Args:
      calibration: images as `kquant.calibrate` takes them.

    Returns:
      The model itself.

    Raises:
      ValueError, TypeError: the data do not fit.
    """
    for bits in self.widths_in_files:
      calibrate(self.at(bits), calibration)
    return self

  def reestimate_batch_norms(self, images: Any, *, batches: int = 50, batch_size: int = 32) -> None:
    """Computes the batch norm statistics of every width again, in place.

    Args:
      images, batches, batch_size: as `kquant.reestimate_batch_norm` takes them.

    Raises:
      ValueError: the model has no batch norm that learns, or the images do not fit.
    """
    for bits in self.widths:
      reestimate_batch_norm(self.at(bits), images, batches=batches, batch_size=batch_size)

  def add_width(self, bits: int, images: Any, *, batches: int = 50, batch_size: int = 32) -> None:
    """Adds a width without training: its batch norm statistics are estimated on images.

    Weights get the width; activation ranges and the batch norms' gamma and beta are those of the nearest
    width, a wider one first. If training goes on, the width is trained too, and the optimizer starts anew.

    Args:
      bits: 1 to 8.
      images, batches, batch_size: training images, as `kquant.reestimate_batch_norm` takes them.

    Raises:
      ValueError: the width is there already or is none, or the images do not fit.
    """
    if bits in self._order or bits not in nested_codes.WIDTHS:
      raise ValueError(f"AnyPrecisionModel: expected a new width of 1 to 8 bits, got {bits}; it has "
                       f"{', '.join(map(str, self.widths))}.")
    nearest = building.nearest_width(self.widths_in_files, bits)
    name = f"{self.at(nearest).name.removesuffix(f'_{nearest}')}_{bits}"
    with self.distribute_strategy.scope():
      model = building.at_other_width(self.at(nearest), bits, name, self.eight_bits)
      building.share_layers([self._models[0], model])
    reestimate_batch_norm(model, images, batches=batches, batch_size=batch_size)
    with self.distribute_strategy.scope():
      self._take_in(bits, model)
    self.train_function = self.test_function = self.predict_function = None

  def _take_in(self, bits: int, model: keras.Model) -> None:
    """Adds the model of a width, to be trained and evaluated as the others are."""
    self._order.append(bits)
    self._models.append(model)
    self._runs.add(model)
    self._losses.append(LossMean(name=f"loss_{bits}"))
    self._compile_width(model)
    if self.optimizer is not None:  # it knows the variables that there were
      self.optimizer = type(self.optimizer).from_config(self.optimizer.get_config())

  def family(self, widths: Sequence[int] | None = None) -> dict[int, FamilyMember]:
    """Finalizes several widths: what `export_family` writes.

    Args:
      widths: 1 to 8 bits; None: all that there are.

    Returns:
      {bits: final network}, widest first.

    Raises:
      ValueError: a width that there is not, or mode "paper", whose codes do not nest.
    """
    if self.mode != "nested":
      raise ValueError(f"AnyPrecisionModel: the codes of mode {self.mode!r} do not follow from each "
                       "other, so they make no family; train with mode='nested', or export one width: "
                       "kq.export(kq.finalize(anymodel.at(4)), path).")
    return {bits: member_of(self.at(bits)) for bits in check_widths(widths, self.widths)}

  @property
  def widths_in_files(self) -> tuple[int, ...]:
    """The widths that files can have: all but float."""
    return tuple(bits for bits in self.widths if bits != FLOAT_BITS)

  def compile(self, optimizer="rmsprop", loss=None, metrics=None, **kwargs) -> None:
    """Compiles the training, and the model of each width for its own `evaluate`.

    Args:
      optimizer, loss, metrics: as of `keras.Model.compile`.
      **kwargs: as of `keras.Model.compile`.
    """
    super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
    self._loss_and_metrics = {"loss": loss, "metrics": metrics}
    for model in self._models:
      self._compile_width(model)

  def compile_from_config(self, config: dict[str, Any]) -> None:
    """Compiles as the model in a file was, for training to go on.

    Args:
      config: what `get_compile_config` returned.
    """
    self.compile(**keras.saving.deserialize_keras_object(config))
    self.optimizer.build(self.trainable_variables)

  def _compile_width(self, model: keras.Model) -> None:
    if getattr(self, "_loss_and_metrics", None) is not None:
      metrics = tf.nest.map_structure(_new_metric, self._loss_and_metrics["metrics"])
      model.compile(loss=self._loss_and_metrics["loss"], metrics=metrics)

  def evaluate_widths(self, x: Any, y: Any = None, **kwargs) -> WidthTable:
    """Evaluates every width with the loss and the metrics given to `compile`.

    Args:
      x, y: as of `keras.Model.evaluate`.
      **kwargs: as of `keras.Model.evaluate`.

    Returns:
      {bits: {"loss" and metrics: value}}, widest first; it prints as a table.
    """
    options = {"verbose": 0, **kwargs, "return_dict": True}
    return WidthTable({bits: self.at(bits).evaluate(x, y, **options) for bits in self.widths})

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None, bits=None):
    """Returns the widest model's outputs; with `bits` (outputs, scores) of a width, both flat."""
    if bits is None:
      return self.at(self.widths[0])(inputs, training=training)
    execution, scores = self._runs.parts[self._order.index(bits)]
    values = execution.values(keras_calls.flat_inputs(self.at(bits), inputs))
    return [values[ref] for ref in execution.graph.output_refs], [values[ref] for ref in scores]

  def train_step(self, data):
    """One step of gradient descent on a batch: x, (x, y) or (x, y, weights)."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    sums: dict[Any, tf.Tensor] = {}
    scores, done = None, []
    for bits in self.widths:
      with tf.control_dependencies(done):  # else all widths are in memory at once
        inputs = tf.nest.map_structure(tf.identity, x)
      variables = self.at(bits).trainable_variables
      with tf.GradientTape() as tape:
        loss, scores = self._width_loss(bits, (inputs, y, weights), scores, training=True)
      for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        if gradient is not None:
          before = sums.get(variable.ref())
          sums[variable.ref()] = gradient if before is None else before + gradient
      done = [sums[variable.ref()] for variable in variables if variable.ref() in sums]
    self.optimizer.apply_gradients([(sums[variable.ref()], variable) for variable in self.trainable_variables
                                    if variable.ref() in sums])
    return {metric.name: metric.result() for metric in self.metrics}

  def test_step(self, data):
    """The losses of all widths and the metrics of the widest, of a batch."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    scores = None
    for bits in self.widths:
      _, scores = self._width_loss(bits, (x, y, weights), scores, training=False)
    return {metric.name: metric.result() for metric in self.metrics}

  def _width_loss(self, bits: int, batch: tuple, wider: list[tf.Tensor] | None, *, training: bool):
    """Returns (the loss of a width, scaled for its replica; its scores); updates the metrics.

    Args:
      batch: (x, y, sample weights).
      wider: the scores of the next wider width; None for the widest.
    """
    x, y, weights = batch
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    outputs, scores = self(x, training=training, bits=bits)
    nest = tf.nest.pack_sequence_as(self.at(bits).output, outputs)
    loss = tf.add_n([tf.zeros([]), *self.at(bits).losses]) / replicas
    if wider is None or self.distill is None or self.labels == "all":
      loss += self.compiled_loss(y, nest, weights)
    if wider is not None and self.distill is not None:
      compare = LOSSES[self.distill]
      loss += tf.add_n([tf.reduce_mean(compare(tf.stop_gradient(target), score))
                        for target, score in zip(wider, scores)]) / replicas
    count = tf.shape(outputs[0])[0]
    self._losses[self._order.index(bits)].update_state(loss * replicas, count)
    self._loss.update_state(loss * replicas * len(self._order), count)
    if wider is None:
      self.compiled_metrics.update_state(y, nest, weights)
    return loss, scores

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """The sum of the losses, the loss of each width, and the metrics given to `compile`, of the widest."""
    compiled = self.compiled_metrics.metrics if self.compiled_metrics is not None else ()
    return [self._loss, *self._losses, *compiled]

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor, with the model of each width for the float model."""
    return {"model": [keras.saving.serialize_keras_object(model) for model in self._models],
            "widths": list(self._order), "mode": self.mode, "distill": self.distill,
            "labels": self.labels, "eight_bits": self.eight_bits, "name": self.name}

  @classmethod
  def from_config(cls, config, custom_objects=None):
    """Returns the model that `get_config` described."""
    models = [keras.saving.deserialize_keras_object(fields, custom_objects) for fields in config["model"]]
    with float32_policy():
      return cls(models, **{name: value for name, value in config.items() if name != "model"})


def _new_metric(metric: Any) -> Any:
  """Returns a metric with a state of its own."""
  return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.metrics.Metric) else metric
