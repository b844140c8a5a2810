"""What reads indices reads an input of the model, which is made an int32 input.

IntegerLookup and Discretization number whole numbers; what is looked up by these numbers is looked up by
the whole numbers at once, in a table of its rows in their order.
"""

import copy

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.kinds.inputs import NUMBER_SPANS, refused_numbering
from kquant.graph.nodes import Node, Ref
from kquant.graph.policies import float32_policy
from kquant.graph.row_lookup import RowLookup
from kquant.rewrites.standardize.building import add_operator, replace

_MOST_CATEGORIES = 256


def look_up_categories(graph: Graph, node: Node) -> None:
  """Writes a CategoryEncoding of few categories as rows of a unit matrix, of which all steps are joined."""
  if node.kind != "CategoryEncoding" or node.config["sparse"] or len(node.operands) > 1 or not (
      node.config["num_tokens"] and node.config["num_tokens"] <= _MOST_CATEGORIES):
    return
  (source,), count, name = node.inputs, node.config["num_tokens"], node.layer_name
  if len(source.shape) != 2 or source.shape[1] is None:
    return
  layer = graph.new_layer(keras.layers.Embedding, f"{name}/rows", {
      "input_dim": count, "output_dim": count, "trainable": False},
      {"embeddings": np.eye(count, dtype=np.float32)})
  rows = graph.add_node(layer, (source,), (*source.shape, count))
  replace(graph, node, _encoded(graph, node, rows), "written as rows of a unit matrix")
  take_integer_indices(graph, rows.node)


def _encoded(graph: Graph, node: Node, rows: Ref) -> Ref:
  """What a layer of some output_mode makes of rows [batch, steps, categories], each of one step."""
  joined = "math.reduce_sum" if node.config["output_mode"] == "count" else "math.reduce_max"
  return add_operator(graph, node.layer_name, joined, (rows,), node.shapes[0], axis=1)


def look_up_numbers(graph: Graph, node: Node) -> None:
  """Writes what is looked up by the results of an IntegerLookup or Discretization as rows of its numbers."""
  if node.kind not in NUMBER_SPANS or refused_numbering(node):
    return
  (source,) = node.inputs
  while source.node.facts.casts:
    source = source.node.inputs[0]
  if not source.is_integer:
    return
  first, results = _numbered(node)
  if node.config["output_mode"] != "int":
    rows = _add_rows(graph, node, source, first, results.astype(np.float32))
    replace(graph, node, _encoded(graph, node, rows), "written as rows of a table")
    return
  readers = _readers(graph, Ref(node))
  for reader in readers if all(reader.facts.counts_rows for reader in readers) else ():
    _look_up_at_once(graph, reader, node, source, (first, results))


def _look_up_at_once(graph: Graph, reader: Node, node: Node, source: Ref,
                     numbered: tuple[int, np.ndarray]) -> None:
  """Lets a reader of a layer that numbers whole numbers look these up.

  Raises:
    UnsupportedLayerError: its table has too few rows.
  """
  first, results = numbered
  table, origin = reader.layer.params[reader.facts.table], reader.layer.origins[0]
  if results.max() >= len(table):
    raise UnsupportedLayerError(
        f"Layer {origin.name!r} ({origin.kind}) has {len(table)} rows, and layer {node.name!r} "
        f"({node.kind}), which it reads, makes {results.max() + 1} indices; give it as many rows and train "
        "it.")
  if reader.config.get("trainable", True):
    graph.skip(reader, "its table is left out of training")
  with graph.in_place_of(reader):
    rows = _add_rows(graph, reader, source, first, table[results])
  replace(graph, reader, rows, f"looked up by what {node.name} reads")


def _readers(graph: Graph, ref: Ref) -> list[Node]:
  """The calls that read a tensor, casts between left aside."""
  found = [_readers(graph, Ref(node)) if node.facts.casts else [node] for node in graph.readers(ref)]
  return sum(found, [])


def _add_rows(graph: Graph, node: Node, source: Ref, first: int, rows: np.ndarray) -> Ref:
  """Looks up rows by the numbers from `first` on."""
  layer = graph.new_layer(RowLookup, f"{node.layer_name}/rows", {
      "input_dim": len(rows), "output_dim": rows.shape[1], "first": first, "trainable": False},
      {"embeddings": rows})
  result = graph.add_node(layer, (source,), (*source.shape, rows.shape[1]))
  take_integer_indices(graph, result.node)
  return result


@float32_policy()
def _numbered(node: Node) -> tuple[int, np.ndarray]:
  """(first number, what the layer makes of each from there on); the ends stand for all beyond."""
  config = copy.deepcopy(node.config)
  first, last = map(int, NUMBER_SPANS[node.kind](config))
  results = np.asarray(node.layer.cls.from_config(config)(np.arange(first, last + 1)[:, None]))
  return first, results[:, 0] if config["output_mode"] == "int" else results


def take_integer_indices(graph: Graph, node: Node) -> None:
  """Lets a layer of indices read its input without casts between, and the input hold int32."""
  if not node.facts.takes_indices:
    return
  (source,) = node.inputs
  while source.node.facts.casts:
    source = source.node.inputs[0]
  if source.node.facts.role != "input":
    return
  graph.redirect(node.inputs[0], source, only=lambda reader: reader is node)
  if source.node.config["dtype"] == "int32" or not _holds_indices(graph, source):
    return
  layer = source.node.layer
  layer.config = {**layer.config, "dtype": "int32"}
  graph.edit(source.node, "made an int32 input: it holds indices")


def _holds_indices(graph: Graph, source: Ref) -> bool:
  """Whether what takes indices alone reads an input, casts between left aside."""
  return all(reader.facts.takes_indices or reader.facts.casts and _holds_indices(graph, Ref(reader))
             for reader in graph.readers(source)) and source not in graph.output_refs
