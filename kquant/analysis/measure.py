"""Runs a quantized network with one site on its grid, and with all but one, and sums up what comes out."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.analysis import noise
from kquant.analysis.calls import Params, calls_with, grid_tensors, quantized_call
from kquant.analysis.sites import ACTIVATION, Site
from kquant.analysis.sweep import BASE, Sweep
from kquant.core.encodings import Encoding
from kquant.core.fake_quantization import fake_quantize
from kquant.graph.execution import Execution, NodeCall, Values, live_layers
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.graph.sizes import BYTES_AT_ONCE, open_size


@dataclasses.dataclass(frozen=True)
class Network:
  """A calibrated network and how it computes in float.

  Attributes:
    qmodel: with its quantizers.
    graph: that it was made of, up to `answers`.
    answers: the tensors that are compared: its outputs before a closing softmax.
    float_params: {layer: its weights and biases before rounding}; None: those of qmodel.
  """

  qmodel: keras.Model
  graph: Graph
  answers: list[Ref]
  float_params: Params | None

  @functools.cached_property
  def calls(self) -> tuple[NodeCall, NodeCall]:
    """How calls are made on the grids, and in float."""
    return quantized_call(live_layers(self.qmodel)), calls_with(self.float_params or {})


class AnswerTotals:
  """Sums over images of how answers depart from those of the float network, for many variants.

  Attributes:
    noise: [answers, variants], sums of squared departures.
    divergence: [variants], sums of nats, the mean over the answers that are [images, classes]; None without.
    correct: [variants], images whose label has the largest score of the first such answer.
  """

  def __init__(self, variants: int, answers: Sequence[Ref]):
    self.noise = np.zeros((len(answers), variants))
    self.correct = np.zeros(variants)
    self._classify = [len(ref.shape) == 2 and ref.shape[1] != 1 for ref in answers]
    self.divergence = np.zeros(variants) if any(self._classify) else None

  def add(self, answers: list[np.ndarray], reference: list[np.ndarray], labels: np.ndarray | None) -> None:
    """Adds some images.

    Args:
      answers: of each output [variants, images, ...].
      reference: of the float network, [images, ...] each.
      labels: class indices, [images].
    """
    for place, (values, wanted) in enumerate(zip(answers, reference)):
      departures = np.square(values.astype(np.float64) - wanted)
      self.noise[place] += departures.reshape(len(values), -1).sum(1)
    scores = [pair for pair, is_classes in zip(zip(answers, reference), self._classify) if is_classes]
    if scores:
      self.divergence += np.mean([noise.divergence(values.astype(np.float64), wanted).sum(-1)
                                  for values, wanted in scores], axis=0)
    if scores and labels is not None:
      self.correct += (scores[0][0].argmax(-1) == labels).sum(-1)


@dataclasses.dataclass
class LocalTotals:
  """Sums over images of the noise at one tensor where a site's noise comes in.

  Attributes:
    total, squares, signal: [channels]: errors, their squares, squares of the float values.
    count: values of a channel.
    saturated: values beyond the grid; of activations alone, as `peaks`.
    peaks: largest magnitude of the float values, [channels].
  """

  total: np.ndarray
  squares: np.ndarray
  signal: np.ndarray
  count: int
  saturated: float
  peaks: np.ndarray

  def add(self, other: "LocalTotals") -> None:
    """Adds further images."""
    for field in ("total", "squares", "signal", "count", "saturated"):
      setattr(self, field, getattr(self, field) + getattr(other, field))
    self.peaks = np.maximum(self.peaks, other.peaks)


class Part:
  """Some of the sites, as many as memory allows in one pass over a batch of images.

  Attributes:
    sites: these.
    solo, rest: totals of each site alone on its grid, and of all but it; first those of none and of all.
    places: for each site the calls at which its local noise is measured: of activations all, of weights those
      that nothing of it reaches.
    local: for each site the totals at these calls.
    image_bytes: that one image takes in all variants.
  """

  def __init__(self, network: Network, sites: Sequence[Site]):
    self.sites, self._network = sites, network
    layers, (on_grid, in_float) = live_layers(network.qmodel), network.calls
    self._grids = {site: layers[site.nodes[0].layer.name].encoding() for site in sites
                   if site.part == ACTIVATION}
    self._solo = Sweep(network.graph, sites, base=in_float, changed=[on_grid] * len(sites))
    self._rest = Sweep(network.graph, sites, base=on_grid, changed=[in_float] * len(sites))
    self.places = [site.nodes if site in self._grids else tuple(self._solo.entries[index])
                   for index, site in enumerate(sites)]
    self.image_bytes = max(self._solo.live_bytes(), self._rest.live_bytes())
    self.solo = AnswerTotals(len(sites) + 1, network.answers)
    self.rest = AnswerTotals(len(sites) + 1, network.answers)
    self.local: list[list[LocalTotals]] = [[] for _ in sites]

  def trace(self) -> None:
    """Makes the functions of both passes."""
    self._run_solo = self._solo.traced(self._network.qmodel, lambda values: (
        self._answers(self._solo, values), [self._noise_of(values, i) for i in range(len(self.sites))]))
    self._run_rest = self._rest.traced(self._network.qmodel,
                                       lambda values: self._answers(self._rest, values))

  def add(self, batch: list[np.ndarray], labels: np.ndarray | None) -> list[np.ndarray]:
    """Adds the images of a batch; returns the answers of the float network."""
    inputs = [tf.convert_to_tensor(array) for array in batch]
    answers, local = tf.nest.map_structure(np.asarray, self._run_solo(inputs))
    answers = self._split(answers, len(batch[0]))
    reference = [values[0] for values in answers]
    self.solo.add(answers, reference, labels)
    for totals, measured in zip(self.local, local):
      _add_to(totals, [LocalTotals(*map(_wide, sums)) for sums in measured])
    rest = tf.nest.map_structure(np.asarray, self._run_rest(inputs))
    self.rest.add(self._split(rest, len(batch[0])), reference, labels)
    return reference

  def _split(self, stacked: list[np.ndarray], images: int) -> list[np.ndarray]:
    return [values.reshape(len(self.sites) + 1, images, *values.shape[1:]) for values in stacked]

  def _answers(self, sweep: Sweep, values: Values) -> list[tf.Tensor]:
    wanted = [BASE, *range(len(self.sites))]
    return [sweep.rows_of(values, ref, wanted) for ref in self._network.answers]

  def _noise_of(self, values: Values, index: int) -> list[tuple[tf.Tensor, ...]]:
    """What LocalTotals holds of each tensor where the noise of a site comes in."""
    site, measured = self.sites[index], []
    for node in self.places[index]:
      signal = _by_channel(self._solo.rows_of(values, site.output[node], [BASE]))
      if site in self._grids:  # in float the output of the quantizer is what it is given
        grid = self._grids[site]
        error = fake_quantize(signal, grid_tensors(grid)) - signal
        beyond, peaks = _beyond(signal, grid), tf.reduce_max(tf.abs(signal), 0)
      else:
        error = _by_channel(self._solo.rows_of(values, site.output[node], [index])) - signal
        beyond, peaks = tf.constant(0.0), tf.zeros_like(signal[0])
      sums = [tf.reduce_sum(x, 0) for x in (error, tf.square(error), tf.square(signal))]
      measured.append((*sums, tf.shape(error)[0], beyond, peaks))
    return measured


def _by_channel(tensor: tf.Tensor) -> tf.Tensor:
  """[images, ..., channels] -> [values, channels]; of one axis there is one channel."""
  return tf.reshape(tensor, [-1, 1 if tensor.shape.rank == 1 else tf.shape(tensor)[-1]])


def _beyond(values: tf.Tensor, grid: Encoding) -> tf.Tensor:
  """How many values a grid saturates."""
  (low,), (high,) = grid.range
  half = grid.scale[0] / 2
  return tf.reduce_sum(tf.cast((values < low - half) | (values > high + half), tf.float32))


def _wide(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float64)


def _add_to(totals: list[LocalTotals], measured: list[LocalTotals]) -> None:
  if not totals:
    totals.extend(measured)
    return
  for total, more in zip(totals, measured):
    total.add(more)


@dataclasses.dataclass
class Measured:
  """What all images showed.

  Attributes:
    parts: the sites with their totals.
    signal: of each answer, the power of the float network's about its mean over images.
    images: how many.
  """

  parts: list[Part]
  signal: list[float]
  images: int


def measure(network: Network, sites: Sequence[Site], images: list[np.ndarray], labels: np.ndarray | None, *,
            batch_size: int = 32) -> Measured:
  """Runs every site alone on its grid, and all but it, over the images; each image once.

  Args:
    images: one array [n, ...] a model input.
    labels: class indices, [images], or None.
    batch_size: images at once, at most.
  """
  execution = Execution(network.graph, network.qmodel)
  parts = list(_parts(network, sites, room=BYTES_AT_ONCE // open_size(execution.specs, images)))
  for part in parts:
    part.trace()
  execution.image_bytes = max(part.image_bytes for part in parts)
  sums: list[list[np.ndarray]] = []
  count = 0
  for batch in execution.batches(images, batch_size=batch_size, what="analyze"):
    given = None if labels is None else labels[count:count + len(batch[0])]
    count += len(batch[0])
    reference = [part.add(batch, given) for part in parts][0]
    here = [[z.sum(0), np.square(z).sum(0)] for z in (values.astype(np.float64) for values in reference)]
    sums = here if not sums else [[a + b for a, b in zip(*pair)] for pair in zip(sums, here)]
  return Measured(parts, [noise.varying_power(*pair, count) for pair in sums], count)


def _parts(network: Network, sites: Sequence[Site], *, room: int) -> Iterator[Part]:
  """Halves the sites until one image of each part fits into memory; open sizes count as 1."""
  part = Part(network, sites)
  if part.image_bytes <= room or len(sites) == 1:
    yield part
  else:
    middle = len(sites) // 2
    yield from _parts(network, sites[:middle], room=room)
    yield from _parts(network, sites[middle:], room=room)
