"""What no change of grids mends: a float model or images that are not what they should be."""

import functools
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from kquant.core import metrics
from kquant.doctor.results import Finding
from kquant.graph.graph import Graph
from kquant.graph.keras_reader import nested_layers
from kquant.graph.nodes import Node, Ref
from kquant.qat.bn_reestimate import reestimate_batch_norm
from kquant.qmodel.outputs import network_outputs
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics, measure_channels
from kquant.rewrites.standardize.standardize import standardize
from kquant.search.trials import HARM, paired_change

_CONSTANT = 1e-5
"""A channel is constant where its extrema lie this near to one another, relative to its size."""
_FEWEST_OVERLAP = 0.5
"""Of the ranges of a tensor on two sets of images: the part of their union that both have."""
_STALE_NATS = 0.5
"""Divergence of the input of a batch norm from what it keeps, as normal distributions; median channel."""
_DEAD_VARIANCE = 1e-4
"""Of the largest that a batch norm keeps: a channel below it is dead, and its divergence says nothing."""
_OTHER_UNITS_NATS = 20.0
"""The same of the first batch norm: its input has another scale altogether."""
_FEWEST_JUDGED = 16
_SAME_ANSWER, _FEWEST_CLASSES = 0.9, 3


class KnownNetwork:
  """A float model, batch norms kept, and what its tensors are on two sets of images.

  Args:
    model: float.
    calibration, judged: one array [n, ...] a model input; may be the same.
    labelled: (images that were not calibrated on, their class indices), or None.
  """

  def __init__(self, model: keras.Model, calibration: list[np.ndarray], judged: list[np.ndarray],
               labelled: tuple[list[np.ndarray], np.ndarray] | None = None):
    self._model, self._calibration, self._judged_images = model, calibration, judged
    self._labelled = labelled
    self.graph = Graph.from_model(model)
    self._batch_norms = [node.name for node in self.graph.of_role("affine")]
    standardize(self.graph)  # writes other layers as batch norms, too
    self._seen = measure_channels(self.graph, calibration)
    self._judged = self._seen if judged is calibration else measure_channels(self.graph, judged)

  def broken(self) -> list[Finding]:
    """Returns the first tensor that is not finite."""
    for node in self.graph.nodes:
      for ref in node.outputs:
        for statistics in (self._seen, self._judged):
          if ref in statistics.low and not _finite(statistics, ref):
            return [Finding("values", ref.key, f"{ref.key!r} holds NaN or infinity on the images, the first "
                            "tensor that does.", "Look at its layer's weights and at the images.")]
    return []

  def findings(self) -> Iterator[Finding]:
    """Yields what is wrong with the model or the images."""
    yield from self._constants()
    yield from self._overlap()
    yield from self._stale()
    yield from self._answers()

  def _constants(self) -> Iterator[Finding]:
    constant, dead = [], {}
    for node in self.graph.nodes:
      ref = Ref(node)
      if node.facts.role == "input" or ref not in self._seen.low or ref.is_integer:
        continue
      if all(other in self._seen.low and _constant(self._seen, other).all() for other in node.outputs):
        constant.append(ref.key)
      elif node.facts.role == "linear" and (channels := self._dead(node)).any():
        dead[node.name] = int(channels.sum()), len(channels)
    if constant:
      more = f" and {len(constant) - 1} more tensors are" if constant[1:] else " is"
      yield Finding("constant", constant[0], f"{constant[0]!r}{more} the same for all images.",
                    "What computes it does nothing here: look at its weights, or take it out.")
    if dead:
      most = max(dead, key=lambda name: dead[name][0] / dead[name][1])
      yield Finding("dead channels", most, f"{sum(count for count, _ in dead.values())} channels of "
                    f"{len(dead)} layers are the same for all images, {dead[most][0]} of {dead[most][1]} of "
                    f"{most!r}.",
                    'They cost time and may widen grids; recipe=kq.Recipe(equalize="joint") prunes them.')

  def _dead(self, node: Node) -> np.ndarray:
    """Which channels of a layer are the same for all images, there or behind its batch norm and ReLU."""
    constant, ref = _constant(self._seen, Ref(node)), Ref(node)
    while len(self.graph.readers(ref)) == 1 and self.graph.readers(ref)[0].facts.role in ("relu", "affine"):
      ref = Ref(self.graph.readers(ref)[0])
      constant = constant | _constant(self._seen, ref)
    return constant

  def _overlap(self) -> Iterator[Finding]:
    """Batch norms hide much of what is other in the images, so inputs count by themselves."""
    overlaps = {ref: _overlap(self._seen, self._judged, ref) for ref in self._seen.low if not ref.is_integer}
    middle = np.median(list(overlaps.values()))
    inputs = {ref: overlaps[ref] for ref in self.graph.input_refs if ref in overlaps}
    least = min(inputs or overlaps, key=overlaps.get)
    if min(middle, overlaps[least]) < _FEWEST_OVERLAP:
      yield Finding("calibration", "", "The images to calibrate on are unlike those to judge by: the ranges "
                    f"of {least.key!r} overlap by {100 * overlaps[least]:.0f} %, of the median tensor by "
                    f"{100 * middle:.0f} %.",
                    "Calibrate on images such as the network will see, preprocessed alike.")

  def _stale(self) -> Iterator[Finding]:
    nats = {node.name: self._divergence(node) for node in self.graph.of_role("affine")
            if node.name in self._batch_norms}
    stale = [name for name, value in nats.items() if value > _STALE_NATS]
    better, top1 = (False, "") if self._labelled is None or not nats else self._reestimated()
    remedy = ("Preprocess the images as in training; if they are, kq.reestimate_batch_norm(model, images) "
              f"sets the statistics anew{top1}.")
    if stale:
      kind = "preprocessing" if next(iter(nats.values())) > _OTHER_UNITS_NATS else "batch norm"
      yield Finding(kind, stale[0], f"The statistics of {len(stale)} of {len(nats)} batch norms are not "
                    f"those of the images (first: {stale[0]!r}).", remedy)
    elif better:
      yield Finding("batch norm", "", "The model is better with batch norm statistics of the images.", remedy)

  def _divergence(self, node: Node) -> float:
    """Divergence of a batch norm's input from what it keeps, as normal distributions; living channels."""
    ref, kept = node.inputs[0], node.layer.params["moving_variance"]
    alive = kept > _DEAD_VARIANCE * kept.max()
    mean, variance = self._judged.mean[ref], np.maximum(self._judged.deviation(ref) ** 2, 1e-12)
    ratio, shift = variance / np.maximum(kept, 1e-12), mean - node.layer.params["moving_mean"]
    nats = 0.5 * (ratio - 1 - np.log(ratio) + np.square(shift) / np.maximum(kept, 1e-12))
    return float(np.median(nats[alive])) if alive.any() else 0.0

  def _reestimated(self) -> tuple[bool, str]:
    """Returns whether new statistics make the model better beyond chance, and top-1 in words."""
    model = Graph.from_model(self._model).to_model()
    for layer in nested_layers(model):
      layer.trainable = True
    reestimate_batch_norm(model, self._calibration)
    after = self._right(model)
    gain, error = paired_change(after, self._float_right)
    return gain > HARM * error, (f": top-1 {self._float_right.mean():.3f} -> {after.mean():.3f} on "
                                 f"{len(after)} images")

  @functools.cached_property
  def _float_right(self) -> np.ndarray:
    return self._right(self._model)

  def _right(self, model: keras.Model) -> np.ndarray:
    """Whether the largest score of labelled images is at the label, [images] of 0 and 1."""
    images, labels = self._labelled
    return (network_outputs(model, images)[0].argmax(-1) == labels).astype(float)

  def _answers(self) -> Iterator[Finding]:
    scores = network_outputs(self.graph.to_model(), self._judged_images, graph=self.graph)[0]
    if scores.ndim != 2 or scores.shape[1] < _FEWEST_CLASSES or len(scores) < _FEWEST_JUDGED:
      return
    if self._labelled is not None:
      right = self._float_right.mean()
      if metrics.is_chance(right, scores.shape[1], len(self._float_right)):
        yield Finding("labels", "", f"The float model is right on {100 * right:.1f} % of the images.",
                      "Check the preprocessing, and that labels count its classes from 0.")
    largest = np.bincount(scores.argmax(-1)).max() / len(scores)
    if largest > _SAME_ANSWER:
      yield Finding("answers", "", f"The float model answers {100 * largest:.0f} % of the images alike.",
                    "Check the preprocessing.")


def _finite(statistics: ChannelStatistics, ref: Ref) -> bool:
  return bool(np.isfinite(statistics.low[ref]).all() and np.isfinite(statistics.high[ref]).all())


def _constant(statistics: ChannelStatistics, ref: Ref) -> np.ndarray:
  """Which channels are the same for all images and positions, [channels]."""
  spread = statistics.high[ref] - statistics.low[ref]
  return spread <= _CONSTANT * np.maximum(statistics.magnitude(ref), 1e-30)


def _overlap(first: ChannelStatistics, second: ChannelStatistics, ref: Ref) -> float:
  """The part of the union of a tensor's two ranges that both have, 0..1; a range is mean +- 2 deviations."""
  (low, high), (other_low, other_high) = (_middle_part(statistics, ref) for statistics in (first, second))
  union = max(high, other_high) - min(low, other_low)
  return 1.0 if union <= 0 else max(min(high, other_high) - max(low, other_low), 0.0) / union


def _middle_part(statistics: ChannelStatistics, ref: Ref) -> tuple[float, float]:
  mean = statistics.mean[ref].mean()
  deviation = np.sqrt(max(statistics.mean_square[ref].mean() - mean**2, 0.0))
  return float(mean - 2 * deviation), float(mean + 2 * deviation)
