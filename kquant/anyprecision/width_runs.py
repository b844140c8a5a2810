"""How each width of an any-precision model is run, and what its evaluation shows."""

from collections.abc import Sequence

import tf_keras as keras

from kquant.core.text import text_table
from kquant.graph.execution import Execution, call_in_mode
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.outputs import answers


class WidthTable(dict):
  """{bits: {metric: value}}, widest first; printed as a table."""

  def __str__(self) -> str:
    """One row for each width."""
    names = list(dict.fromkeys(name for row in self.values() for name in row))
    rows = [(bits, *(f"{row[name]:.4f}" for name in names)) for bits, row in self.items()]
    return text_table(("bits", *names), rows)


class WidthRuns:
  """How each width is run, with its outputs before a closing softmax; no state that Keras tracks."""

  def __init__(self, models: Sequence[keras.Model]):
    self.parts: list[tuple[Execution, list[Ref]]] = []
    for model in models:
      self.add(model)

  def add(self, model: keras.Model) -> None:
    """Adds a width."""
    graph = Graph.from_model(model)
    self.parts.append((Execution(graph, model, call=call_in_mode), answers(graph)))
