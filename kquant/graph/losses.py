"""What a model adds to its loss or its metrics by `add_loss` and `add_metric`: kept beside its graph.

These calls make no output, so passes do not see them. The tensors that they read count as outputs while a
graph is edited: they stay, and stay what they are.
"""

import dataclasses
from collections.abc import Sequence

from kquant.graph.nodes import Node, Ref, map_refs

SINKS = ("AddLoss", "AddMetric")
"""Kinds of the layers that Keras puts in a model for them."""


@dataclasses.dataclass(frozen=True)
class LossBranch:
  """The calls that lead from tensors of a graph to losses and metrics.

  Attributes:
    nodes: in topological order; no output depends on them.
    sinks: the calls of AddLoss and AddMetric layers behind them.
    reads: the tensors of the graph that both read.
  """

  nodes: tuple[Node, ...]
  sinks: tuple[Node, ...]
  reads: tuple[Ref, ...]

  def reading(self, refs: Sequence[Ref]) -> "LossBranch":
    """Returns a copy that reads other tensors, in the order of `reads`."""
    moved = dict(zip(self.reads, refs))

    def copied(node: Node) -> Node:
      args, kwargs = map_refs(lambda ref: moved.get(ref, ref), (node.args, node.kwargs))
      twin = Node(node.name, node.layer, args, kwargs, list(node.shapes))
      moved.update({Ref(node, index): Ref(twin, index) for index in range(len(node.shapes))})
      return twin

    nodes = tuple(map(copied, self.nodes))
    return LossBranch(nodes, tuple(map(copied, self.sinks)), tuple(refs))


def loss_branch(nodes: Sequence[Node], outputs: Sequence[Ref]) -> LossBranch | None:
  """Returns the branch of the calls of a model, which are in topological order; None where there is none."""
  sinks = [node for node in nodes if node.kind in SINKS]
  if not sinks:
    return None
  main, wanted = _sources(outputs), _sources([ref for sink in sinks for ref in sink.inputs])
  branch = [node for node in nodes if node in wanted and node not in main and node not in sinks]
  reads = [ref for node in (*branch, *sinks) for ref in node.inputs if ref.node in main]
  return LossBranch(tuple(branch), tuple(sinks), tuple(dict.fromkeys(reads)))


def _sources(refs: Sequence[Ref]) -> set[Node]:
  """The calls that tensors depend on."""
  seen: set[Node] = set()
  waiting = [ref.node for ref in refs]
  while waiting:
    node = waiting.pop()
    if node not in seen:
      seen.add(node)
      waiting.extend(ref.node for ref in node.inputs)
  return seen
