"""Fused recurrent layers in a quantized model: the grids of their states."""

import numpy as np
import tf_keras as keras
from absl import logging

from kquant.core.encodings import Encoding, Encodings
from kquant.core.target import CELL_EXPONENTS, product_limit
from kquant.graph.fused_lstm import GATES, FusedLSTM
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.quantize_weights import QuantizeWeights

_HEADROOM = 2.0
"""Sequences may bring a cell further than those of the calibration did; 16 bits are enough for both."""
_STEPS = 2**15
_TABLE_ERROR = 4e-4
"""By how much the operator's tanh may be off."""


def recurrent_form(qmodel: keras.Model) -> str:
  """Returns how `standardize` must take the recurrent layers of the float model that qmodel was made of."""
  fused = any(isinstance(layer, QuantizeWeights) and isinstance(layer.layer, FusedLSTM)
              for layer in qmodel.layers)
  return "auto" if fused else "unrolled"


def fix_states(graph: Graph, encodings: Encodings) -> None:
  """Lets each fused layer round its state to the grid of its output, and gives its cell a grid.

  The cell, `<layer>/cell`, has 16 bits and a scale that is a power of two: what it reached at calibration
  takes up a half of it at most, unless that passes 32: the operator's cells end at 64. A warning and an edit
  name a layer whose cell passes that; an edit names one whose outputs are so small that the operator's tables
  are coarser than their grid.

  Raises:
    ValueError: products with an input do not fit the operator.
  """
  for node in graph.nodes:
    if node.layer.cls is FusedLSTM:
      _check_products(node, encodings)
      state, limit = encodings[Ref(node).key], float(node.layer.params["cell_limit"])
      if state.scale[0] < _TABLE_ERROR:
        steps = min(_TABLE_ERROR / float(state.scale[0]), np.subtract(*state.limits[::-1]))
        graph.edit(node, f"the operator's tanh may be off by {steps:.0f} steps of its output, which stays "
                         "small; recurrent='unrolled' has finer tables")
      exponent = int(np.ceil(np.log2(max(_HEADROOM * limit, 1e-9) / _STEPS)))
      exponent = int(np.clip(exponent, CELL_EXPONENTS[0], CELL_EXPONENTS[-1]))
      cell = Encoding(np.float32(2.0**exponent), np.int64(0), 16)
      if limit > cell.range[1][0]:
        what = (f"its cell reached {limit:.1f}, the operator ends it at {cell.range[1][0]:.0f}; use "
                "recurrent='unrolled'")
        logging.warning("finalize: layer %r: %s. Its outputs are wrong beyond.", node.name, what)
        graph.edit(node, what)
      encodings.grids[f"{node.layer.name}/cell"] = cell
      node.layer.params = {**node.layer.params, "cell_limit": np.float32(cell.range[1][0])}
      node.layer.config = {**node.layer.config,
                           "state_grid": (float(state.scale[0]), int(state.zero_point[0]))}


def _check_products(node: Node, encodings: Encodings) -> None:
  """Asserts that no input brings a product with a kernel, bias included, to the operator's limit."""
  x = encodings[node.inputs[0].key]
  reach = int(max(x.limits[1] - x.zero_point[0], x.zero_point[0] - x.limits[0]))
  for gate in GATES:
    kernel, bias = (f"{node.name}/{weight}_{gate}" for weight in ("kernel", "bias"))
    step = float(x.scale[0]) * float(encodings[kernel].scale[0])
    sums = np.abs(encodings.integers[kernel]).sum(axis=0, dtype=np.int64)
    largest = int((np.abs(encodings.integers[bias].astype(np.int64)) + reach * sums).max())
    if largest >= product_limit(step):
      raise ValueError(f"Layer {node.name!r}: expected products of its inputs and kernels below "
                       f"{product_limit(step) * step:.6g}, they can reach {largest * step:.6g}; scale the "
                       "inputs of the model.")
