"""The stages of a pass through the quantized network: what lies between two tensors that are stored."""

import dataclasses
from collections.abc import Iterable

from kquant.graph.nodes import Node, Ref
from kquant.qmodel.quantize_weights import QuantizeWeights


@dataclasses.dataclass
class Stage:
  """From stored tensors to the next tensor that is stored.

  Attributes:
    nodes: calls to run, in order; the last is the quantizer.
    sources: stored tensors that they read.
    linear: the one call of a QuantizeWeights layer among them, or None.
  """

  nodes: list[Node]
  sources: list[Ref]
  linear: Node | None


def stage_of(last: Node, stored: set[Ref]) -> Stage:
  """Returns everything between the stored tensors and a quantizer."""
  order: dict[Node, None] = {}
  sources: dict[Ref, None] = {}

  def visit(node: Node) -> None:
    for ref in node.inputs:
      if ref in stored:
        sources[ref] = None
      elif ref.node not in order:
        visit(ref.node)
    order[node] = None

  visit(last)
  linear = [node for node in order if node.layer.cls is QuantizeWeights]
  assert len(linear) <= 1, f"{last!r} has {linear} before it"
  return Stage(list(order), list(sources), linear[0] if linear else None)


def ancestors(refs: Iterable[Ref]) -> set[Node]:
  """Returns the calls that tensors come from."""
  found, waiting = set(), [ref.node for ref in refs]
  while waiting:
    node = waiting.pop()
    if node not in found:
      found.add(node)
      waiting += [ref.node for ref in node.inputs]
  return found
