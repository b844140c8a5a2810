"""Measures on images how far a network is from its float network where some sites are made in other ways."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from kquant.analysis import noise
from kquant.analysis.measure import Network
from kquant.analysis.sites import Site
from kquant.analysis.sweep import BASE, Sweep
from kquant.graph.execution import Execution, NodeCall
from kquant.graph.sizes import BYTES_AT_ONCE, open_size

MOST_TOGETHER = 64
"""Variants in one pass."""


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
  """A site, and how its calls are made."""

  site: Site
  call: NodeCall


class Bench:
  """Runs variants of a network over the same images.

  Args:
    network: calibrated.
    images: one array [n, ...] a model input.
    reference: of a bench with other widths of this network and the same images; None: it is computed.

  Attributes:
    reference: what the float network answers, [n, ...] each.
    signal: of each answer, its power about its mean over the images, of an image.
  """

  def __init__(self, network: Network, images: list[np.ndarray], reference: list[np.ndarray] | None = None):
    self._network, self._images = network, images
    execution = Execution(network.graph, network.qmodel, call=network.calls[1])
    self._room = BYTES_AT_ONCE // open_size(execution.specs, images)
    self.reference = reference if reference is not None else execution.tap(network.answers)(images)
    count = len(images[0])
    self.signal = [noise.varying_power(z.sum(0), np.square(z).sum(0), count) / count
                    for z in (values.astype(np.float64) for values in self.reference)]
    powers = [np.square(z.reshape(count, -1), dtype=np.float64).sum(1) for z in self.reference]
    ratios = np.array(powers) / np.array(self.signal)[:, None]
    self._level_db = 10 * np.log10(np.maximum(ratios, 1e-12)).mean(0)

  def sqnr_db(self, noises: np.ndarray) -> np.ndarray:
    """Returns the SQNR in dB that noises of images mean, [..., images], as `HeldBack` has it."""
    return self._level_db - 10 * np.log10(np.maximum(noises, 1e-12))

  def solo(self, variants: Sequence[Variant]) -> np.ndarray:
    """Returns the noise where one variant's site alone is quantized, [variants, images].

    It is the power of an image's departure over the mean power of the signal; of several outputs the mean.
    """
    return self._noises(variants, self._network.calls[1])[1:]

  def among_all(self, variants: Sequence[Variant]) -> np.ndarray:
    """Returns the noise with everything quantized, first as it is, then with each variant,
    [1 + variants, images]."""
    return self._noises(variants, self._network.calls[0])

  def _noises(self, variants: Sequence[Variant], base: NodeCall) -> np.ndarray:
    parts = [self._of_part(part, sweep) for part, sweep in self._parts(list(variants), base)]
    return np.concatenate([parts[0][:1], *(part[1:] for part in parts)])

  def _parts(self, variants: list[Variant], base: NodeCall) -> Iterator[tuple[list[Variant], Sweep]]:
    """Halves the variants until they are few and one image of each part fits into memory."""
    if len(variants) <= MOST_TOGETHER:
      sweep = Sweep(self._network.graph, [variant.site for variant in variants], base=base,
                    changed=[variant.call for variant in variants])
      if sweep.live_bytes() <= self._room or len(variants) < 2:
        yield variants, sweep
        return
    middle = len(variants) // 2
    yield from self._parts(variants[:middle], base)
    yield from self._parts(variants[middle:], base)

  def _of_part(self, variants: list[Variant], sweep: Sweep) -> np.ndarray:
    wanted = range(BASE, len(variants))
    run = sweep.traced(self._network.qmodel, lambda values: [sweep.rows_of(values, ref, wanted)
                                                             for ref in self._network.answers])
    execution = Execution(self._network.graph, self._network.qmodel)
    execution.image_bytes = sweep.live_bytes()
    found, count = [], 0
    for batch in execution.batches(self._images, batch_size=32, what="remedies"):
      answers = run([tf.convert_to_tensor(array) for array in batch])
      size, end = len(batch[0]), count + len(batch[0])
      found.append(np.mean([
          _departures(np.asarray(values).reshape(len(wanted), size, -1), wanted_values[count:end]) / signal
          for values, wanted_values, signal in zip(answers, self.reference, self.signal)], axis=0))
      count = end
    return np.concatenate(found, axis=1)


def _departures(answers: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Sum of squared departures of each image, [variants, images]."""
  departures = answers.astype(np.float64) - reference.reshape(len(reference), -1)
  return np.square(departures).sum(-1)
