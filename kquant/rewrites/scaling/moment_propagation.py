"""Mean, variance and reach of every channel without data: from batch norms, carried through the graph.

A layer that a batch norm was folded into knows the moments of its output. From there they are carried
through the layers behind it, values taken as normal and channels as independent: sums through kernels,
ReLUs by the moments of a clipped normal, pools and padding as if a channel were alike at all positions.
"""

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from kquant.core.input_range import InputRange
from kquant.graph.graph import Graph
from kquant.graph.kinds.moment_rules import Moments, limit_of, normal
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics

_MANY_IMAGES = 10**6


def propagate_moments(graph: Graph, input_range: InputRange | None) -> dict[Ref, Moments]:
  """Returns the moments of the tensors of a standardized graph.

  Args:
    graph: its batch norms folded in this process: files do not hold what they knew.
    input_range: of the inputs, each taken as evenly spread. With None nothing is known of them, and
      tensors of which nothing follows from batch norms are left out.

  Raises:
    ValueError: no layer knows of a batch norm.
    UnsupportedLayerError: with an `input_range`, a layer that moments cannot be carried through.
  """
  if all(node.layer.output_moments is None for node in graph.nodes):
    raise ValueError(f"Model {graph.name!r} remembers no batch norms, from which ranges and means follow "
                     "without images; fold them in this process (kq.fold_batch_norm; files forget them), or "
                     "give calibration images.")
  moments: dict[Ref, Moments] = {}
  for node in graph.nodes:
    of_output = _moments_of(node, input_range, moments)
    if of_output is not None:
      moments[Ref(node)] = of_output
    elif input_range is not None:
      raise UnsupportedLayerError(
          f"Layer {node.name!r} ({node.kind}): what batch norms know cannot be carried through it; give "
          "calibration images.")
  return moments


def as_statistics(moments: dict[Ref, Moments]) -> ChannelStatistics:
  """Returns the moments in the place of statistics of images, without gains."""
  parts = [{ref: getattr(of, name) for ref, of in moments.items()} for name in ("low", "high", "mean")]
  squares = {ref: of.variance + of.mean**2 for ref, of in moments.items()}
  return ChannelStatistics(*parts, squares, images=_MANY_IMAGES)


def _moments_of(node: Node, input_range: InputRange | None, moments: dict[Ref, Moments]) -> Moments | None:
  """The moments of a call's output by its rule, mean and deviation as its batch norm knew them if it did."""
  if node.facts.role == "input":
    return _input(node, input_range)
  inputs = [moments.get(ref) for ref in node.inputs]
  rule = node.facts.moment_rule
  carried = None if rule is None or None in inputs or len(node.shapes) > 1 else rule(node, *inputs)
  if node.layer.output_moments is None:
    return carried
  mean, deviation = node.layer.output_moments
  exact = normal(mean, deviation**2)
  if node.facts.role == "relu":
    exact.low, exact.high = np.maximum(exact.low, 0.0), np.minimum(exact.high, limit_of(node))
  return exact


def _input(node: Node, input_range: InputRange | None) -> Moments | None:
  if input_range is None:
    return None
  low, high, ones = input_range.low, input_range.high, np.ones(node.shapes[0][-1] or 1)
  return Moments((low + high) / 2 * ones, (high - low) ** 2 / 12 * ones, low * ones, high * ones)
