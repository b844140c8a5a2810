"""What was measured -> the rows of an Analysis."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from kquant.analysis import noise
from kquant.analysis.measure import LocalTotals, Measured, Network, Part
from kquant.analysis.results import Analysis, AnalysisRow
from kquant.analysis.sites import ACTIVATION, BOTH, Site
from kquant.core import numerics
from kquant.graph.execution import live_layers
from kquant.graph.kinds.table import facts_of
from kquant.graph.nodes import kind_of_class
from kquant.qmodel.quantize_weights import QuantizeWeights

_CHANNELS = 3
ROUNDED = ("The weights of this model lie on their grids, so the noise of rounding them cannot be seen: "
           "give the QuantizationResult that it came from, or the float model.")


def analysis_of(network: Network, measured: Measured, *, has_labels: bool) -> Analysis:
  """Returns the rows, sorted by their noise, and what is known of the whole."""
  rows = _sorted([row for part in measured.parts
                  for row in _Rows(network, measured, part, has_labels).rows()])
  single, first, count = [row for row in rows if row.part != BOTH], measured.parts[0], measured.images
  whole = _ratio(first.rest.noise[:, 0], measured.signal)
  wrappers = [layer for layer in network.qmodel.layers if isinstance(layer, QuantizeWeights)]
  top1 = [float(totals.correct[0] / count) for totals in (first.solo, first.rest)]
  return Analysis(
      images=count, whole=whole,
      divergence=None if first.rest.divergence is None else float(first.rest.divergence[0] / count),
      top1=tuple(top1) if has_labels else None,
      additivity=noise.additivity([row.solo for row in single], whole),
      rows=tuple(single), layers=tuple(row for row in rows if row.part == BOTH),
      notes=(ROUNDED,) if network.float_params is None and all(map(_lies_on_grid, wrappers)) else ())


def _ratio(powers: np.ndarray, signal: list[float]) -> float:
  """Noise-to-signal ratio of several outputs: the mean."""
  return float(np.mean([noise.noise_to_signal(power, of) for power, of in zip(powers, signal)]))


def _sorted(rows: list[AnalysisRow]) -> list[AnalysisRow]:
  """The rows with their shares, the largest noise first."""
  total = sum(row.solo for row in rows if row.part != BOTH and math.isfinite(row.solo))
  shared = [dataclasses.replace(row, share=row.solo / total if total else 0.0) for row in rows]
  return sorted(shared, key=lambda row: -row.solo)


def _lies_on_grid(layer: QuantizeWeights) -> bool:
  """Whether rounding changes no weight of a layer."""
  simulated = layer.simulated_weights()
  return all(np.array_equal(simulated[name].numpy(), value) for name, value in layer.weight_values().items())


class _Rows:
  """Makes the rows of the sites of one part."""

  def __init__(self, network: Network, measured: Measured, part: Part, has_labels: bool):
    self._network, self._measured, self._part, self._has_labels = network, measured, part, has_labels
    self._layers = live_layers(network.qmodel)

  def rows(self) -> Iterator[AnalysisRow]:
    """Yields a row for each site, without its share."""
    for index, site in enumerate(self._part.sites):
      yield self._row(site, index + 1)

  def _row(self, site: Site, place: int) -> AnalysisRow:
    """The row of a site, whose variant has that place among the answers."""
    totals, calls = self._part.local[place - 1], self._part.places[place - 1]
    solo, rest, count = self._part.solo, self._part.rest, self._measured.images
    alone = _ratio(solo.noise[:, place], self._measured.signal)
    ratios = [noise.noise_to_signal(t.squares.sum(), t.signal.sum()) for t in totals]
    loudest = int(np.argmax(ratios))
    local, at = ratios[loudest], totals[loudest]
    saturated, peaks = self._of_grid(site, totals, at)
    whole = _ratio(rest.noise[:, 0], self._measured.signal)
    return AnalysisRow(
        name=site.name, part=site.part, kind=self._kind(site), bits=self._bits(site),
        shared_with=site.shared_with, loudest=site.name_of(calls[loudest]), solo=alone, share=0.0,
        leave_one_out=whole - _ratio(rest.noise[:, place], self._measured.signal),
        local=local, amplification=alone / local if local else None,
        mean_shift=noise.mean_shift(at.total, at.squares, at.count), saturated=saturated,
        noisy_channels=noise.largest(at.squares, _CHANNELS),
        wide_channels=noise.widest(peaks, _CHANNELS),
        divergence=None if solo.divergence is None else float(solo.divergence[place] / count),
        top1_drop=float(solo.correct[0] - solo.correct[place]) / count if self._has_labels else None)

  def _kind(self, site: Site) -> str:
    if site.part == ACTIVATION:
      return site.nodes[0].inputs[0].node.kind
    return kind_of_class(type(self._layers[site.name].layer))

  def _bits(self, site: Site) -> int:
    if site.part == ACTIVATION:
      return self._layers[site.nodes[0].layer.name].quantizer.bits
    return max(grid.bits for grid in self._layers[site.name].weight_encodings().values())

  def _of_grid(self, site: Site, totals: list[LocalTotals],
               at: LocalTotals) -> tuple[float | None, np.ndarray]:
    """Returns the share of saturated values and the peak of each channel."""
    if site.part == ACTIVATION:
      values = sum(t.count * len(t.total) for t in totals)
      return sum(t.saturated for t in totals) / values, at.peaks
    if site.part == BOTH:
      return None, np.zeros(0)
    return self._of_weights(self._layers[site.name])

  def _of_weights(self, layer: QuantizeWeights) -> tuple[float, np.ndarray]:
    """The same of the weights of a layer; the peaks of the first of them, by output channel."""
    kept = (self._network.float_params or {}).get(layer.name, {})
    values = {name: kept.get(name, value) for name, value in layer.weight_values().items()}
    beyond, facts = 0, facts_of(kind_of_class(type(layer.layer))).weights
    for name, grid in layer.weight_encodings().items():
      steps = np.abs(values[name] / numerics.along(grid.scale, values[name].shape, grid.axis))
      beyond += int((steps > grid.limits[1] + 0.5).sum())
    first = values[facts[0].name]
    inner = tuple(axis for axis in range(first.ndim) if axis not in facts[0].out_axes)
    return beyond / sum(value.size for value in values.values()), np.abs(first).max(inner).reshape(-1)
