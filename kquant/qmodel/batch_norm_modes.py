"""Batch norms that go on learning in a quantized model: taken out, put back, absorbed at the end.

Quantizers are placed where they stand without the batch norms, since in the file none is left.
"""

import dataclasses

import numpy as np

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.rewrites.folding.affine import affine_of
from kquant.rewrites.folding.batch_norm import fold_batch_norm, normalized_axes

LEARNING_MODES = ("train", "absorb")


def take_out_batch_norms(graph: Graph, mode: str) -> dict[LayerDef, LayerDef]:
  """Takes out the batch norms right behind linear layers; returns {linear layer: batch norm}.

  Both are called once, and nothing else reads what lies between. The linear layer loses its bias,
  which moves into the mean. All other batch norms are folded as they are.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in LEARNING_MODES:
    raise ValueError(f"insert_quantizers: batch_norm must be 'fold', 'train' or 'absorb', got {mode!r}.")
  learnable = [node for node in graph.of_role("affine") if _is_learnable(graph, node)]
  fold_batch_norm(graph, keep=learnable)
  taken = {}
  for node in learnable:
    linear, norm = node.inputs[0].node.layer, node.layer
    mean = norm.params["moving_mean"] - linear.params["bias"]
    norm.params = {**norm.params, "moving_mean": mean.astype(np.float32)}
    linear.params = {linear.facts.kernel.name: linear.params[linear.facts.kernel.name]}
    linear.config = {**linear.config, "use_bias": False}
    taken[linear] = norm
    graph.remove(node)
  return taken


def _is_learnable(graph: Graph, node: Node) -> bool:
  source, *mask = node.inputs
  return (not mask and source.node.facts.role == "linear"
          and source.node.config.get("activation", "linear") == "linear"
          and graph.is_private(source) and len(graph.calls(source.node.layer)) == 1
          and len(graph.calls(node.layer)) == 1
          and normalized_axes(node) == [len(node.shapes[0]) - 1])


def folded_kernel(linear: LayerDef, norm: LayerDef) -> np.ndarray:
  """Returns the float32 kernel of a linear layer with its batch norm folded into it."""
  kernel, (scale, _) = linear.params[linear.facts.kernel.name], affine_of(norm)
  return (kernel * numerics.along(scale, kernel.shape, linear.facts.kernel.out_axes)).astype(np.float32)


def check_absorbable(linear: LayerDef, spec: TensorSpec) -> None:
  """Raises ValueError for a kernel of one scale: a batch norm makes many of it."""
  if not spec.per_channel:
    raise ValueError(f"Layer {linear.name!r} has one scale for its kernel, and a batch norm behind it that "
                     "is to be absorbed into per-channel scales; use batch_norm=\"train\" or \"fold\", or "
                     "per_channel weights.")


def put_back_batch_norms(graph: Graph, batch_norms: dict[LayerDef, LayerDef]) -> None:
  """Calls each batch norm that was taken out right behind its layer again."""
  for linear, norm in batch_norms.items():
    (call,) = graph.calls(linear)
    graph.insert_after(Ref(call), norm)


def absorb_batch_norms(graph: Graph, weights: dict[LayerDef, dict[str, Encoding]]) -> None:
  """Multiplies each batch norm behind a quantized kernel into the kernel's scales and the bias, in place.

  Args:
    graph: of a quantized model whose layers were taken out of their wrappers.
    weights: {layer: {weight: grid}}; linear layers with a batch norm behind get the kernel's new grid.
  """
  for node in graph.of_role("affine"):
    linear = node.inputs[0].node.layer
    if linear not in weights or linear.facts.role != "linear":
      continue
    name, (scale, shift) = linear.facts.kernel.name, affine_of(node.layer)
    kernel, bias, grid = linear.params[name], linear.params.get("bias", 0.0), weights[linear][name]
    integers, grid = scaled_integers(grid.quantize(kernel), grid, scale)
    linear.params = {name: grid.dequantize(integers),
                     "bias": (bias * scale + shift).astype(np.float32)}
    linear.config = {**linear.config, "use_bias": True}
    weights[linear] = {name: grid}
    graph.remove(node)


def scaled_integers(integers: np.ndarray, grid: Encoding, factor: np.ndarray) -> tuple[np.ndarray, Encoding]:
  """Returns (integers, grid) of a kernel whose output channels are multiplied by `factor`, [channels].

  A scale must be positive: where the factor is negative the integers change their sign, which a narrow
  grid holds. They are the same otherwise, unless a scale would be too small for float32 arithmetic
  (`numerics.SMALLEST_WEIGHT_SCALE`); then the integers are rounded to that one.
  """
  exact = grid.scale.astype(np.float64) * factor
  scale = np.maximum(np.abs(exact), numerics.SMALLEST_WEIGHT_SCALE).astype(np.float32)
  ratio = numerics.along(exact / scale, integers.shape, grid.axis)
  return (np.rint(integers * ratio).astype(np.int64),
          dataclasses.replace(grid, scale=scale, zero_point=np.zeros(len(scale), np.int64)))
