"""What the tiles of squeeze-and-excite blocks change at the output of a network, measured."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph import keras_calls
from kquant.graph.execution import Values, call_layer, live_layers, run_nodes
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.sizes import all_bytes, images_at_once
from kquant.qmodel.outputs import answers
from kquant.rewrites.approximate.gates import SqueezeExcite, find_blocks
from kquant.rewrites.approximate.squeeze_excite import tile_blocks
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize

Tiles = Mapping[str, int]
"""{name of a block: rows of its tiles}."""
_IMAGES = 32


class TileChanges:
  """Runs a network with tiles beside the network without, image by image.

  All variants share one run of the network; each runs again only what lies behind its gates.

  Args:
    model: the float model.

  Attributes:
    specs: of the model's inputs.
  """

  def __init__(self, model: keras.Model):
    self._graph = Graph.from_model(model)
    standardize(self._graph)
    fold_batch_norm(self._graph)
    self._blocks = {block.name: block for block in find_blocks(self._graph)[0]}
    built = self._graph.to_model()
    self._layers = live_layers(built)
    self.specs = keras_calls.input_specs(built)

  def measure(self, variants: Sequence[Tiles], images: list[np.ndarray]) -> np.ndarray:
    """Returns |y' - y|^2 / |y|^2 of the outputs before a closing softmax, [variants, images].

    Args:
      variants: the tiles of each.
      images: one array [n, ...] a model input.

    Raises:
      ValueError: tiles of a block that the network, standardized and folded, does not have.
    """
    runs = [_Variant(self._graph, self._sizes(tiles), self._layers) for tiles in variants]
    step = images_at_once(all_bytes(self._graph), _IMAGES)
    parts = []
    for start in range(0, len(images[0]), step):
      values = dict(zip(self._graph.input_refs, (tf.constant(array[start:start + step], spec.dtype)
                                                 for array, spec in zip(images, self.specs, strict=True))))
      run_nodes(self._graph.nodes, self._layers, values, call=call_layer)
      plain = [values[ref].numpy() for ref in answers(self._graph)]
      parts.append([_ratio(run.outputs(values), plain) for run in runs])
    return np.concatenate(parts, axis=1) if parts and runs else np.zeros((len(runs), len(images[0])))

  def _sizes(self, tiles: Tiles) -> dict[SqueezeExcite, int]:
    unknown = sorted(set(tiles) - set(self._blocks))
    if unknown:
      raise ValueError(f"TileChanges: expected blocks of the standardized network, "
                       f"{', '.join(self._blocks)}, got {', '.join(unknown)}.")
    return {self._blocks[name]: rows for name, rows in tiles.items()}


class _Variant:
  """A copy of a graph with tiles, and which of its calls compute something else than those of the graph."""

  def __init__(self, graph: Graph, rows: Mapping[SqueezeExcite, int], layers: dict[str, keras.layers.Layer]):
    tiled = graph.copy()
    twin = dict(zip(graph.nodes, tiled.nodes, strict=True))
    source = {mine: node for node, mine in twin.items()}
    tile_blocks(tiled, {block.in_copy(twin): (size, None) for block, size in rows.items()})
    self._answers = answers(tiled)
    self._layers = dict(layers)
    changed: dict[Node, None] = {}
    for node in tiled.nodes:
      if node.layer.name not in layers:
        self._layers[node.layer.name] = node.layer.cls.from_config(dict(node.config))
        changed[node] = None
      elif any(ref.node in changed for ref in node.inputs):
        changed[node] = None
    self._changed = list(changed)
    read = [*(ref for node in changed for ref in node.inputs), *self._answers]
    self._kept = {ref: Ref(source[ref.node], ref.index) for ref in read if ref.node not in changed}

  def outputs(self, values: Values) -> list[np.ndarray]:
    """Returns the answers, of the values of all tensors of the graph without tiles."""
    mine = {ref: values[plain] for ref, plain in self._kept.items()}
    run_nodes(self._changed, self._layers, mine, call=call_layer)
    return [mine[ref].numpy() for ref in self._answers]


def _ratio(found: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> np.ndarray:
  """|y' - y|^2 / |y|^2 over all outputs of each image."""
  noise, signal = (sum(np.square(array.astype(np.float64)).reshape(len(array), -1).sum(1) for array in arrays)
                   for arrays in ([mine - its for mine, its in zip(found, plain, strict=True)], plain))
  return noise / np.maximum(signal, np.finfo(np.float64).tiny)
