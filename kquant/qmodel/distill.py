"""Training a student against a float teacher on unlabelled inputs: the losses, and DistillationModel.

The teacher's answer to an input is the label, so that any input will do, crops and mirror images too
(Hinton et al. 2015). What is compared are the features, the last tensor before the global pooling, by
their relative error (Finkelstein et al. 2022, QFT), and what each output of the network is before a
closing softmax or sigmoid.
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from kquant.graph import keras_calls
from kquant.graph.execution import Execution, call_in_mode
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.loss_mean import LossMean
from kquant.qmodel.outputs import answers, with_quantizer
from kquant.qmodel.states import recurrent_form
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize


def relative_l2(target: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
  """Returns ||prediction - target||^2 / ||target||^2 of each sample, [batch]."""
  axes = list(range(1, target.shape.rank))
  error = tf.reduce_sum(tf.math.squared_difference(prediction, target), axes)
  return error / tf.maximum(tf.reduce_sum(tf.square(target), axes), 1e-12)


def kl_divergence(target: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
  """Returns KL(softmax(target) || softmax(prediction)) over the last axis of scores, in nats, [batch].

  Averaged over positions where the scores have any.
  """
  log_p, log_q = tf.nn.log_softmax(target), tf.nn.log_softmax(prediction)
  divergence = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)
  return tf.reduce_mean(divergence, list(range(1, divergence.shape.rank)))


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "relative_l2": relative_l2, "kl": kl_divergence}


class DistillationModel(keras.Model):
  """Trains `student` to answer as `teacher` does, under plain `compile` and `fit`: the student itself.

  The loss is feature_weight * relative L2 of the features + output_weight * output_loss of every output
  before its closing softmax or sigmoid, averaged over images. Labels may come with the images: the
  loss and the metrics given to `compile` then are of the student's outputs, and the loss is added.
  The student is trained in the mode it has in `fit` (training=True), the teacher runs at inference. A
  checkpoint of it holds its weights (`save_weights_only=True`); the model to save is the student.

  Args:
    student: functional model without nested models, such as `insert_quantizers` returns.
    teacher: the float model; batch norms may be folded or not. Cross-layer scaling must be the student's
      own: pass the rewritten model that `insert_quantizers` was given.
    features: name of the layer whose output is compared; "auto": the last tensor before the global
      pooling, or the input of the last linear layer; None: no features.
    feature_weight: of the loss of the features.
    output_loss: "relative_l2" or "kl".
    output_weight: of the loss of each output.

  Raises:
    ValueError: a model that lacks the features, different numbers of outputs, or an unknown loss.

  Example:
    >>> teacher = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> student = kq.calibrate(kq.insert_quantizers(teacher), images)
    >>> model = kq.DistillationModel(student, teacher)
    >>> model.compile("adam")
    >>> len(model.fit(images, epochs=2, verbose=0).history["loss"])
    2
  """

  def __init__(self, student: keras.Model, teacher: keras.Model, *, features: str | None = "auto",
               feature_weight: float = 1.0, output_loss: str = "relative_l2", output_weight: float = 1.0,
               **kwargs):
    super().__init__(**{"dtype": "float32", **kwargs})
    if output_loss not in LOSSES:
      raise ValueError(f"DistillationModel: output_loss must be one of {', '.join(LOSSES)}, got "
                       f"{output_loss!r}.")
    self.student = student
    graph, student_graph = _float_graph(teacher, student), Graph.from_model(student)
    feature = find_features(graph) if features == "auto" else features and _tensor(graph, features)
    wanted, compared = answers(graph), answers(student_graph)
    if len(wanted) != len(compared):
      raise ValueError(f"DistillationModel: the student has {len(compared)} outputs, the teacher "
                       f"{len(wanted)}; pass the float model that the student was made from.")
    self._terms = [(output_weight, LOSSES[output_loss])] * len(wanted)
    if feature:
      wanted.append(feature)
      compared.append(with_quantizer(student_graph, _tensor(student_graph, feature.key)))
      self._terms.append((feature_weight, relative_l2))
    self._execution, self._compared = Execution(student_graph, student, call=call_in_mode), compared
    graph.outputs = wanted
    self.teacher = graph.to_model()
    self.teacher.trainable = False
    self._loss = LossMean(name="loss")
    self.built = True

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None, taps=False):
    """Returns the student's outputs; with `taps`, (outputs, the tensors that are compared), both flat."""
    if not taps:
      return self.student(inputs, training=training)
    values = self._execution.values(keras_calls.flat_inputs(self.student, inputs))
    outputs = self._execution.graph.output_refs
    return [values[ref] for ref in outputs], [values[ref] for ref in self._compared]

  def distillation_loss(self, inputs, *, training: bool) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Compares the student with the teacher; for a training loop of one's own.

    Args:
      inputs: a batch, as the models take it.
      training: mode of the student; the teacher runs at inference.

    Returns:
      (the loss of each image, [batch]; the student's outputs, flat).
    """
    targets = tf.nest.flatten(self.teacher(inputs, training=False))
    outputs, predictions = self(inputs, training=training, taps=True)
    losses = [weight * loss(tf.stop_gradient(tf.cast(target, tf.float32)), tf.cast(prediction, tf.float32))
              for (weight, loss), target, prediction in zip(self._terms, targets, predictions)]
    return tf.add_n(losses), outputs

  def train_step(self, data):
    """One step of gradient descent on a batch: x, (x, y) or (x, y, weights)."""
    with tf.GradientTape() as tape:
      loss, logs = self._batch_loss(data, training=True)
    self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
    return logs()

  def test_step(self, data):
    """The loss and the metrics of a batch."""
    return self._batch_loss(data, training=False)[1]()

  def _batch_loss(self, data, *, training: bool):
    """Returns (loss of the replica's batch, a function that updates and reads the metrics)."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    per_image, outputs = self.distillation_loss(x, training=training)
    loss = tf.add_n([tf.reduce_mean(per_image), *self.student.losses])
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    scaled = loss / replicas  # their gradients are added up
    outputs = tf.nest.pack_sequence_as(self.student.output, outputs)
    if y is not None:
      scaled += self.compiled_loss(y, outputs, weights)

    def logs():
      self._loss.update_state(scaled * replicas, tf.shape(per_image)[0])
      if y is not None:
        self.compiled_metrics.update_state(y, outputs, weights)
      return {metric.name: metric.result() for metric in self.metrics}

    return scaled, logs

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """The mean loss, and the metrics given to `compile`."""
    return [self._loss, *(self.compiled_metrics.metrics if self.compiled_metrics is not None else ())]


def find_features(graph: Graph) -> Ref | None:
  """Returns what the last linear layer of the first output reads, before a pooling or flattening.

  None where several tensors are joined behind the last linear layer, or it reads the model's input.
  """
  node = graph.output_refs[0].node
  while node.facts.role != "linear":
    if len(node.inputs) != 1:
      return None
    node = node.inputs[0].node
  ref = node.inputs[0]
  while ref.node.facts.pools or ref.node.facts.role == "move" and len(ref.node.inputs) == 1:
    ref = ref.node.inputs[0]
  return None if ref.node.facts.role == "input" else ref


def _float_graph(teacher: keras.Model, student: keras.Model) -> Graph:
  graph = Graph.from_model(teacher)
  standardize(graph, recurrent=recurrent_form(student))
  fold_batch_norm(graph)
  return graph


def _tensor(graph: Graph, key: str) -> Ref:
  """Returns the tensor of that key; raises ValueError where there is none."""
  for node in graph.nodes:
    for index in range(len(node.shapes)):
      if Ref(node, index).key == key:
        return Ref(node, index)
  raise ValueError(f"DistillationModel: model {graph.name!r} has no tensor {key!r}; name a layer of both "
                   "models with features=, or pass features=None.")
