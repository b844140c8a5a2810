"""What reads indices reads an input of the model, which is made an int32 input."""

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
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
  joined = "math.reduce_sum" if node.config["output_mode"] == "count" else "math.reduce_max"
  replace(graph, node, add_operator(graph, name, joined, (rows,), node.shapes[0], axis=1),
          "written as rows of a unit matrix")
  take_integer_indices(graph, rows.node)


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
