"""Cells of the layers that cuDNN computes: the same functions, with weights in another order."""

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node
from kquant.rewrites.standardize.cells import GruCell, LstmCell

_ALIKE = {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "reset_after": True}


class CudnnLstmCell(LstmCell):
  """An LSTM with two biases, which are added."""

  fixed = _ALIKE

  def __init__(self, graph: Graph, name: str, node: Node, params: dict[str, np.ndarray],
               layers: dict[str, LayerDef]):
    bias = params["bias"].reshape(2, -1).sum(axis=0)
    super().__init__(graph, name, node, {**_kernels(params, 4), "bias": bias}, layers)


class CudnnGruCell(GruCell):
  """A GRU that resets after its product."""

  fixed = _ALIKE

  def __init__(self, graph: Graph, name: str, node: Node, params: dict[str, np.ndarray],
               layers: dict[str, LayerDef]):
    bias = params["bias"].reshape(2, -1)
    super().__init__(graph, name, node, {**_kernels(params, 3), "bias": bias}, layers)


def _kernels(params: dict[str, np.ndarray], gates: int) -> dict[str, np.ndarray]:
  """The kernels of Keras: cuDNN holds each gate's as [units, features]."""
  kernels = [np.hsplit(params[name], gates) for name in ("kernel", "recurrent_kernel")]
  return {"kernel": np.hstack([part.reshape(part.shape[::-1]).T for part in kernels[0]]),
          "recurrent_kernel": np.hstack([part.T for part in kernels[1]])}
