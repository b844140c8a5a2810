"""Attention as Dense, Reshape, Permute, matmul, Softmax, and choices by masks."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.masks import LOWEST
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.folding.affine import affine_layer
from kquant.rewrites.standardize.building import (
  add_dense,
  add_matmul,
  add_permute,
  add_reshape,
  add_select,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.masks import as_mask, mask_of
from kquant.rewrites.standardize.training_config import as_matrix, training_config

_ROOM = 8.0
"""Between the lowest score and a masked one in the file: e^-8 is 1/12 of a step of the softmax's output."""


def split_attention(graph: Graph, node: Node) -> None:
  """Writes attention as layers of one matrix product."""
  if node.kind == "MultiHeadAttention":
    _split_multi_head(graph, node)
  elif node.kind in ("Attention", "AdditiveAttention"):
    _split_attention_of_one(graph, node)


def _split_multi_head(graph: Graph, node: Node) -> None:
  """Per head softmax(q k^T / sqrt(key_dim)) v; the factor goes into the query's kernel."""
  query, value = node.argument(0, "query"), node.argument(1, "value")
  key = node.argument(2, "key", value)
  axes, kernel = node.config["attention_axes"], node.layer.params["attention_output/kernel"]
  if (any(len(ref.shape) != 3 for ref in (query, key, value)) or not is_fixed(query, key, value)
      or kernel.ndim != 3 or axes is not None and tuple(axes) != (1,)):
    return
  name, factor = node.layer_name, 1 / np.sqrt(node.config["key_dim"])
  heads = [_heads(graph, node, ref, part, scale)
           for ref, part, scale in ((query, "query", factor), (key, "key", 1.0), (value, "value", 1.0))]
  scores = add_matmul(graph, f"{name}/scores", heads[0], heads[1], transpose_b=True)
  masks = _masks(graph, node, scores, [query], dict.fromkeys((value, key)))
  if node.argument(3, "attention_mask") is not None:
    masks.append(_given_mask(graph, node, node.argument(3, "attention_mask")))
  weights = _weights(graph, node, scores, masks)
  mixed = add_matmul(graph, f"{name}/mixed", weights, heads[2])
  mixed = add_permute(graph, f"{name}/by_position", mixed, (2, 1, 3))
  _, positions, count, size = mixed.shape
  mixed = add_reshape(graph, f"{name}/joined", mixed, (positions, count * size))
  params = _dense_params(kernel.reshape(count * size, -1), node.layer.params.get("attention_output/bias"))
  result = add_dense(graph, f"{name}/attention_output", mixed, params, _training(graph, node, 2))
  _replace(graph, node, result, weights)


def _replace(graph: Graph, node: Node, result: Ref, weights: Ref) -> None:
  if len(node.shapes) > 1:  # it returns its weights too
    graph.redirect(Ref(node, 1), weights)
  replace(graph, node, result, "split into products and a softmax")


def _masks(graph: Graph, node: Node, scores: Ref, queries: Iterable[Ref],
           keys: Iterable[Ref]) -> list[Ref | np.ndarray]:
  """Masks that broadcast with scores [batch, ..., queries, keys]: those of queries, of keys, the causal."""
  masks, axes = [], [1] * (len(scores.shape) - 3)
  for ref, shape in (*((ref, (-1, 1)) for ref in queries), *((ref, (1, -1)) for ref in keys)):
    mask = mask_of(node, ref)
    if mask is not None:
      shape = [mask.shape[1] if size < 0 else size for size in (*axes, *shape)]
      masks.append(add_reshape(graph, f"{node.layer_name}/mask{len(masks)}", mask, shape))
  if node.kwargs.get("use_causal_mask") or node.config.get("causal"):
    masks.append(np.tril(np.ones((1, *axes, *scores.shape[-2:]))))
  return masks


def _given_mask(graph: Graph, node: Node, mask: Any) -> Ref | np.ndarray:
  """The argument attention_mask, [batch, queries, keys] or with heads, as a mask with an axis of heads."""
  if not isinstance(mask, Ref):
    mask = np.asarray(mask, np.float32)
    while mask.ndim < 4:
      mask = np.expand_dims(mask, -3)
    return mask
  mask = as_mask(graph, mask)
  return mask if len(mask.shape) == 4 else add_reshape(
      graph, f"{node.layer_name}/attention_mask", mask, (1, *mask.shape[1:]))


def _heads(graph: Graph, node: Node, source: Ref, part: str, scale: float) -> Ref:
  """Projects [batch, positions, in] to [batch, heads, positions, size]."""
  name, params = f"{node.layer_name}/{part}", node.layer.params
  kernel, bias = params[f"{part}/kernel"], params.get(f"{part}/bias")
  _, heads, size = kernel.shape
  dense = _dense_params(scale * kernel.reshape(-1, heads * size),
                        None if bias is None else scale * bias.reshape(-1))
  flat = add_dense(graph, name, source, dense, _training(graph, node, 1, scale))
  split = add_reshape(graph, f"{name}/heads", flat, (source.shape[1], heads, size))
  return add_permute(graph, f"{name}/by_head", split, (2, 1, 3))


def _weights(graph: Graph, node: Node, scores: Ref, masks: list[Ref | np.ndarray]) -> Ref:
  """The softmax of the scores, [..., queries, keys]; masked ones are the lowest of their grid."""
  name, rate = node.layer_name, node.config["dropout"]
  for index, mask in enumerate(masks):
    scores = add_select(graph, f"{name}/masked{index}", mask, [scores], otherwise=LOWEST, room=_ROOM)
  weights = graph.add_node(graph.new_layer(keras.layers.Softmax, f"{name}/softmax"), (scores,), scores.shape)
  if rate:
    dropout = graph.new_layer(keras.layers.Dropout, f"{name}/dropout", {"rate": rate})
    weights = graph.add_node(dropout, (weights,), scores.shape)
  return weights


def _split_attention_of_one(graph: Graph, node: Node) -> None:
  """softmax(scores) v, of scores q k^T or of sums of tanh(q + k); 0 where the query is masked."""
  query, value, *rest = tf.nest.flatten(node.args[0])
  key, name = rest[0] if rest else value, node.layer_name
  if any(len(ref.shape) != 3 for ref in (query, key, value)) or not is_fixed(query, key, value):
    return
  is_product = node.config.get("score_mode") == "dot"
  scores = (_products if is_product else _sums_of_tanh)(graph, node, query, key)
  weights = _weights(graph, node, scores, _masks(graph, node, scores, [], [value]))
  result = add_matmul(graph, f"{name}/mixed", weights, value)
  if mask_of(node, query) is not None:
    rows = add_reshape(graph, f"{name}/query_mask", mask_of(node, query), (query.shape[1], 1))
    result = add_select(graph, f"{name}/kept", rows, [result])
  _replace(graph, node, result, weights)


def _products(graph: Graph, node: Node, query: Ref, key: Ref) -> Ref:
  name = node.layer_name
  if node.config["use_scale"]:
    (scale,) = node.layer.params.values()
    scale = np.full(query.shape[-1], float(scale))
    query = graph.add_node(affine_layer(graph, f"{name}/scaled", scale, 0 * scale), (query,), query.shape)
  return add_matmul(graph, f"{name}/scores", query, key, transpose_b=True)


def _sums_of_tanh(graph: Graph, node: Node, query: Ref, key: Ref) -> Ref:
  """w sum tanh(s (q + k)) of each query and key; w or s is a number or [features], each 1 where not used."""
  name, params = node.layer_name, node.layer.params
  (batch, queries, size), keys = query.shape, key.shape[1]
  inner, outer = 1.0, params.get("scale", 1.0)
  if "concat_score_weight" in params:  # keras.layers.Attention
    inner, outer = params.get("scale", 1.0), params["concat_score_weight"]
  pair = [add_reshape(graph, f"{name}/queries", query, (queries, 1, size)),
          add_reshape(graph, f"{name}/keys", key, (1, keys, size))]
  add = graph.new_layer(keras.layers.Add, f"{name}/pairs")
  x = graph.add_node(add, (pair,), (batch, queries, keys, size))
  if np.any(inner != 1.0):
    scale = np.full(size, float(inner))
    x = graph.add_node(affine_layer(graph, f"{name}/scaled", scale, 0 * scale), (x,), x.shape)
  tanh = graph.new_layer(keras.layers.Activation, f"{name}/tanh", {"activation": "tanh"})
  x = graph.add_node(tanh, (x,), x.shape)
  kernel = np.broadcast_to(outer, (size,)).reshape(size, 1)
  x = add_dense(graph, f"{name}/scores", x, _dense_params(kernel, None), {})
  return add_reshape(graph, f"{name}/table", x, (queries, keys))


def _training(graph: Graph, node: Node, inputs: int, factor: float = 1.0) -> dict[str, Any]:
  """How a kernel whose first `inputs` axes become rows trains, and its bias."""
  weights = {"kernel": "kernel", "bias": "bias"}
  return training_config(graph, node, weights, axes=as_matrix(inputs), factor=factor)


def _dense_params(kernel: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
  """The weights of a Dense: kernel [inputs, units], and bias [units] where there is one."""
  params = {"kernel": kernel.astype(np.float32)}
  return params if bias is None else {**params, "bias": np.asarray(bias, np.float32)}
