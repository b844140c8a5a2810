"""tf.einsum and EinsumDense whose equation is one matrix product, between moves of axes."""

from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.building import (
  add_dense,
  add_matmul,
  add_permute,
  add_reshape,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.training_config import as_matrix, training_config


class _Equation(NamedTuple):
  """The letters of the axes of two operands and of the result."""

  left: str
  right: str
  result: str

  def only(self, *, left: bool, right: bool, result: bool) -> str:
    """The letters that are in these terms and in no other, as they are ordered in the first of them."""
    wanted = (left, right, result)
    first = next(term for term, is_in in zip(self, wanted) if is_in)
    return "".join(letter for letter in first if tuple(letter in term for term in self) == wanted)


def split_contraction(graph: Graph, node: Node) -> None:
  """Writes a sum over products as a Dense or a product of matrices, with axes moved around it."""
  if node.kind == "EinsumDense":
    equation = _equation(node.config["equation"], node.inputs[0], node.layer.params["kernel"])
    result = _dense(graph, node, equation, node.layer.params["kernel"])
  elif node.kind == "tf.einsum" and len(node.operands) == 2 and is_fixed(*node.inputs):
    left, right = node.operands
    equation = _equation(node.argument(0, "equation"), left, right)
    if equation is not None and not isinstance(left, Ref):
      equation, left, right = equation._replace(left=equation.right, right=equation.left), right, left
    result = (_product(graph, node, equation, left, right) if isinstance(right, Ref)
              else _dense(graph, node, equation, right))
  else:
    return
  if result is not None:
    replace(graph, node, result, "written as a matrix product")


def _equation(text: str, left: Ref | np.ndarray, right: Ref | np.ndarray) -> _Equation | None:
  """The equation with a letter for each axis; None where an axis is summed alone or is a diagonal."""
  terms = str(text).replace(" ", "").replace("->", ",").split(",")
  if len(terms) != 3:
    return None
  for term, operand in zip(terms, (left, right)):
    if "..." in term:
      spread = "".join(chr(ord("A") + place) for place in range(len(operand.shape) - len(term) + 3))
      terms = [term.replace("...", spread) for term in terms]
  equation = _Equation(*terms)
  known = {*equation.only(left=True, right=True, result=False), *equation.result}
  if any(len(set(term)) < len(term) for term in equation) or {*equation.left, *equation.right} != known:
    return None
  return equation


def _dense(graph: Graph, node: Node, equation: _Equation | None, kernel: np.ndarray) -> Ref | None:
  """A tensor times a constant kernel: its axes that stay, those that are contracted, and new ones."""
  source, name, bias = node.inputs[0], node.layer_name, node.layer.params.get("bias")
  if equation is None or not is_fixed(source):
    return None
  lead, contracted = (equation.only(left=True, right=False, result=True),
                      equation.only(left=True, right=True, result=False))
  made = "".join(letter for letter in equation.result if letter not in lead)
  if not contracted or set(made) & set(equation.left) or not lead.startswith(equation.left[0]) or (
      equation.result[0] != equation.left[0]):
    return None
  sizes = dict(zip(equation.right, kernel.shape)) | dict(zip(equation.left, source.shape))
  inner, outer = ([sizes[letter] for letter in letters] for letters in (lead[1:], made))
  source = _moved(graph, f"{name}/rows", source, equation.left, lead + contracted)
  source = add_reshape(graph, f"{name}/flat", source, (*inner, _size(sizes, contracted)))
  matrix = kernel.transpose([equation.right.index(letter) for letter in contracted + made])
  params = {"kernel": matrix.reshape(_size(sizes, contracted), -1).astype(np.float32)}
  if bias is not None:
    params["bias"] = _bias(bias, equation.result, lead + made, outer)
    if params["bias"] is None:
      return None
  same = equation.right == contracted + made
  training = training_config(graph, node, {"kernel": "kernel", "bias": "bias"},
                             axes=as_matrix(len(contracted)) if same else lambda axes: None)
  x = add_dense(graph, name, source, params, training)
  x = add_reshape(graph, f"{name}/split", x, (*inner, *outer))
  x = _moved(graph, f"{name}/ordered", x, lead + made, equation.result)
  return _activated(graph, node, x)


def _activated(graph: Graph, node: Node, x: Ref) -> Ref:
  if node.config.get("activation") in (None, "linear"):
    return x
  activation = graph.new_layer(keras.layers.Activation, f"{node.layer_name}/activation",
                               {"activation": node.config["activation"]})
  return graph.add_node(activation, (x,), x.shape)


def _bias(bias: np.ndarray, result: str, order: str, outer: list[int]) -> np.ndarray | None:
  """The bias, which broadcasts with the result, of each new place; None where it differs along the others."""
  whole = bias.reshape((1,) * (len(result) - bias.ndim) + bias.shape)
  whole = whole.transpose([result.index(letter) for letter in order])
  lead, made = whole.shape[:len(order) - len(outer)], whole.shape[len(order) - len(outer):]
  return np.broadcast_to(whole.reshape(made), outer).reshape(-1) if np.prod(lead) == 1 else None


def _product(graph: Graph, node: Node, equation: _Equation | None, left: Ref, right: Ref) -> Ref | None:
  """Two tensors: a stack of matrices times a stack of matrices."""
  if equation is None or not all(term[0] == equation.left[0] for term in equation):
    return None
  name, sizes = node.layer_name, dict(zip(equation.left + equation.right, (*left.shape, *right.shape)))
  stack, mine, its, contracted = (equation.only(left=first, right=second, result=third) for
                                  first, second, third in ((1, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)))
  turned = equation.right != stack + contracted + its
  rows, columns, inner = (_size(sizes, letters) for letters in (mine, its, contracted))
  lead = [_size(sizes, stack[1:])] if stack[1:] else []
  left = _moved(graph, f"{name}/left", left, equation.left, stack + mine + contracted)
  left = add_reshape(graph, f"{name}/left_matrices", left, (*lead, rows, inner))
  right = _moved(graph, f"{name}/right", right, equation.right,
                 stack + (its + contracted if turned else contracted + its))
  right = add_reshape(graph, f"{name}/right_matrices", right,
                      (*lead, columns, inner) if turned else (*lead, inner, columns))
  x = add_matmul(graph, f"{name}/product", left, right, transpose_b=turned)
  x = add_reshape(graph, f"{name}/split", x, [sizes[letter] for letter in (stack + mine + its)[1:]])
  return _moved(graph, f"{name}/ordered", x, stack + mine + its, equation.result)


def _size(sizes: dict[str, Any], letters: str) -> int:
  return int(np.prod([sizes[letter] for letter in letters], dtype=int))


def _moved(graph: Graph, name: str, source: Ref, old: str, new: str) -> Ref:
  """Brings axes in another order."""
  return source if old == new else add_permute(graph, name, source, [old.index(letter) for letter in new[1:]])
