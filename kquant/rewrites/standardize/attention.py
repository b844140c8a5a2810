"""MultiHeadAttention, Attention and EinsumDense as Dense, Reshape, Permute, matmul and Softmax."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.folding.affine import affine_layer
from kquant.rewrites.standardize.building import (
  add_matmul,
  add_permute,
  add_reshape,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.training_config import as_matrix, training_config


def split_attention(graph: Graph, node: Node) -> None:
  """Writes attention without masks, and an EinsumDense that is a Dense, as layers of one matrix product."""
  if node.kind == "MultiHeadAttention":
    _split_multi_head(graph, node)
  elif node.kind == "Attention":
    _split_dot_product(graph, node)
  elif node.kind == "EinsumDense":
    _split_einsum_dense(graph, node)


def _split_multi_head(graph: Graph, node: Node) -> None:
  """Per head softmax(q k^T / sqrt(key_dim)) v; the factor goes into the query's kernel."""
  query, value = node.argument(0, "query"), node.argument(1, "value")
  key = node.argument(2, "key", value)
  axes, kernel = node.config["attention_axes"], node.layer.params["attention_output/kernel"]
  if (_is_masked(node, 3) or node.kwargs.get("return_attention_scores") or len(node.shapes) > 1
      or any(len(ref.shape) != 3 for ref in (query, key, value)) or not is_fixed(query, key, value)
      or kernel.ndim != 3 or axes is not None and tuple(axes) != (1,)):
    return
  name, factor = node.layer_name, 1 / np.sqrt(node.config["key_dim"])
  heads = [_heads(graph, node, ref, part, scale)
           for ref, part, scale in ((query, "query", factor), (key, "key", 1.0), (value, "value", 1.0))]
  mixed = _attend(graph, node, *heads)
  mixed = add_permute(graph, f"{name}/by_position", mixed, (2, 1, 3))
  _, positions, count, size = mixed.shape
  mixed = add_reshape(graph, f"{name}/joined", mixed, (positions, count * size))
  params = _dense_params(kernel.reshape(count * size, -1), node.layer.params.get("attention_output/bias"))
  result = _dense(graph, f"{name}/attention_output", mixed, params, _training(graph, node, 2))
  replace(graph, node, result, "split into projections, products and a softmax")


def _is_masked(node: Node, position: int) -> bool:
  names = ("mask", "query_mask", "value_mask", "key_mask")
  return (node.argument(position, "attention_mask") is not None or bool(node.kwargs.get("use_causal_mask"))
          or any(node.kwargs.get(name) is not None for name in names))


def _heads(graph: Graph, node: Node, source: Ref, part: str, scale: float) -> Ref:
  """Projects [batch, positions, in] to [batch, heads, positions, size]."""
  name, params = f"{node.layer_name}/{part}", node.layer.params
  kernel, bias = params[f"{part}/kernel"], params.get(f"{part}/bias")
  _, heads, size = kernel.shape
  dense = _dense_params(scale * kernel.reshape(-1, heads * size),
                        None if bias is None else scale * bias.reshape(-1))
  flat = _dense(graph, name, source, dense, _training(graph, node, 1, scale))
  split = add_reshape(graph, f"{name}/heads", flat, (source.shape[1], heads, size))
  return add_permute(graph, f"{name}/by_head", split, (2, 1, 3))


def _attend(graph: Graph, node: Node, query: Ref, key: Ref, value: Ref) -> Ref:
  name, rate = node.layer_name, node.config["dropout"]
  scores = add_matmul(graph, f"{name}/scores", query, key, transpose_b=True)
  weights = graph.add_node(graph.new_layer(keras.layers.Softmax, f"{name}/softmax"), (scores,), scores.shape)
  if rate:
    dropout = graph.new_layer(keras.layers.Dropout, f"{name}/dropout", {"rate": rate})
    weights = graph.add_node(dropout, (weights,), scores.shape)
  return add_matmul(graph, f"{name}/mixed", weights, value)


def _split_dot_product(graph: Graph, node: Node) -> None:
  """keras.layers.Attention: softmax(scale q k^T) v."""
  config, (query, value, *rest) = node.config, node.inputs
  key = rest[0] if rest else value
  if (config["score_mode"] != "dot" or config.get("causal") or _is_masked(node, 1) or len(node.shapes) > 1
      or node.kwargs.get("return_attention_scores")
      or any(len(ref.shape) != 3 for ref in (query, key, value)) or not is_fixed(query, key, value)):
    return
  if config["use_scale"]:
    (scale,) = node.layer.params.values()
    scale = np.full(query.shape[-1], float(scale))
    query = graph.add_node(affine_layer(graph, f"{node.layer_name}/scaled", scale, 0 * scale), (query,),
                           query.shape)
  result = _attend(graph, node, query, key, value)
  replace(graph, node, result, "split into products and a softmax")


def _split_einsum_dense(graph: Graph, node: Node) -> None:
  """An equation such as "abc,cde->abde", whose last input axes are the kernel's first, is a Dense."""
  (source,), kernel, bias = node.inputs, node.layer.params["kernel"], node.layer.params.get("bias")
  terms = _dense_terms(node.config["equation"], len(source.shape))
  if terms is None or not is_fixed(source):
    return
  lead, contracted, made = terms
  name, shape = node.layer_name, source.shape[1:]
  inner, outer = shape[:lead - 1], kernel.shape[contracted:]
  if bias is not None:
    bias = np.broadcast_to(bias, outer).reshape(-1) if bias.ndim <= made else None
    if bias is None:
      return
  columns = int(np.prod(outer, dtype=int))
  if contracted > 1:
    source = add_reshape(graph, f"{name}/flat", source, (*inner, int(np.prod(shape[lead - 1:], dtype=int))))
  result = _dense(graph, name, source, _dense_params(kernel.reshape(-1, columns), bias),
                  _training(graph, node, contracted))
  if made > 1:
    result = add_reshape(graph, f"{name}/split", result, (*inner, *outer))
  if node.config["activation"] not in (None, "linear"):
    activation = graph.new_layer(keras.layers.Activation, f"{name}/activation",
                                 {"activation": node.config["activation"]})
    result = graph.add_node(activation, (result,), result.shape)
  replace(graph, node, result, "written as Dense")


def _dense_terms(equation: str, rank: int) -> tuple[int, int, int] | None:
  """Returns how many axes lead, are contracted, are made; None where the equation is no dense layer."""
  sources, result = equation.replace(" ", "").split("->")
  left, right = sources.split(",")
  if "..." in equation:
    spread = "".join(chr(ord("A") + i) for i in range(rank - len(left.replace("...", ""))))
    left, result = left.replace("...", spread), result.replace("...", spread)
  contracted = [letter for letter in left if letter in right]
  count = len(contracted)
  lead, made = left[:len(left) - count], right[count:]
  is_dense = count and lead and left == lead + right[:count] and result == lead + made and made
  return (len(lead), count, len(made)) if is_dense and not set(lead) & set(right) else None


def _training(graph: Graph, node: Node, inputs: int, factor: float = 1.0) -> dict[str, Any]:
  """How a kernel whose first `inputs` axes become rows trains, and its bias."""
  weights = {"kernel": "kernel", "bias": "bias"}
  return training_config(graph, node, weights, axes=as_matrix(inputs), factor=factor)


def _dense_params(kernel: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
  """The weights of a Dense: kernel [inputs, units], and bias [units] where there is one."""
  params = {"kernel": kernel.astype(np.float32)}
  return params if bias is None else {**params, "bias": np.asarray(bias, np.float32)}


def _dense(graph: Graph, name: str, source: Ref, params: dict[str, np.ndarray],
           training: dict[str, Any]) -> Ref:
  units = params["kernel"].shape[1]
  config = {"units": units, "use_bias": "bias" in params, **training}
  layer = graph.new_layer(keras.layers.Dense, name, config, params)
  return graph.add_node(layer, (source,), (*source.shape[:-1], units))
