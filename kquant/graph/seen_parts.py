"""Which part of a tensor its readers can tell apart; a grid need not reach beyond it.

A hard-swish, x * min(max(x / 6 + 1/2, 0), 1), reads x twice: its gate is flat outside -3..3, and the product
is 0 where the gate is. So both together see -3..inf, and x may saturate at -3.
"""

import functools
from collections.abc import Iterable

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.kinds.flat_parts import EVERYTHING, Ends
from kquant.graph.nodes import Node, Ref


def seen_range(graph: Graph, refs: Iterable[Ref]) -> tuple[float, float]:
  """Returns the smallest (low, high) that holds what the readers of all these tensors see."""
  parts = [seen_part(graph, ref) for ref in refs]  # one a channel: their numbers differ
  return min(float(np.min(low)) for low, _ in parts), max(float(np.max(high)) for _, high in parts)


def seen_part(graph: Graph, ref: Ref) -> Ends:
  """Returns between which values the readers of a tensor are not all flat, for all channels or [channels].

  Args:
    graph: standardized, batch norms folded, without quantizers.
  """
  readers = graph.readers(ref)
  if ref in graph.output_refs or not readers:
    return EVERYTHING
  return _union(_seen_by(graph, reader, ref) for reader in readers)


def _union(parts: Iterable[Ends]) -> Ends:
  return functools.reduce(lambda a, b: (np.minimum(a[0], b[0]), np.maximum(a[1], b[1])), parts)


def _seen_by(graph: Graph, reader: Node, ref: Ref) -> Ends:
  if reader.facts.role == "move" and ref in reader.moved:  # its channels need not be those of the tensor
    return seen_range(graph, reader.outputs)
  if reader.facts.flat_rule is not None:
    return reader.facts.flat_rule(reader)
  if _is_line(reader) and graph.is_private(Ref(reader)):
    return _before_line(reader, seen_part(graph, Ref(reader)))
  if reader.facts.arithmetic == "product":
    return _passed_by_gate(reader, ref)
  return EVERYTHING


def _passed_by_gate(product: Node, ref: Ref) -> Ends:
  """Where max(x, 0) or max(k x + b, 0) is above 0, for its product with x."""
  (gate,) = [other for other in product.inputs if other != ref] or [ref]
  if gate.node.facts.role != "relu":
    return EVERYTHING
  (source,) = gate.node.inputs
  if source == ref:
    return 0.0, np.inf
  if _is_line(source.node) and source.node.inputs == [ref]:
    return _before_line(source.node, (0.0, np.inf))
  return EVERYTHING


def _is_line(node: Node) -> bool:
  """Whether it computes k x + b, with one k and one b a channel."""
  return node.facts.depthwise and node.layer.params["depthwise_kernel"].shape[:2] == (1, 1) and (
      node.config["depth_multiplier"] == 1)


def _before_line(line: Node, ends: Ends) -> Ends:
  """Returns between which x a line k x + b reaches the ends, [channels]; all x where k is 0."""
  kernel = line.layer.params["depthwise_kernel"].reshape(-1).astype(np.float64)
  shift = line.layer.params["bias"].astype(np.float64)
  slope = np.where(kernel == 0, 1.0, kernel)
  first, second = ((end - shift) / slope for end in ends)
  low, high = np.where(kernel > 0, first, second), np.where(kernel > 0, second, first)
  return np.where(kernel == 0, -np.inf, low), np.where(kernel == 0, np.inf, high)
