"""Cross-layer factors as a degree of freedom: which channels share one, and the layer that holds them.

A channel's values may be multiplied by m > 0 where every kernel that reads it is divided by m: the float
network stays the same (Meller et al. 2019), the grids do not. QFT (Finkelstein et al. 2022, 4.1) learns m:
S_a[c] = s / m_c is the left scale of the kernels that read channel c, with one grid a tensor in the file.
"""

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.kinds.calls import cap_of
from kquant.graph.nodes import Ref
from kquant.ptq.finetune.tuned_layers import bounded_factor
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.scaling.scale_groups import scale_groups
from kquant.rewrites.standardize.standardize import standardize


@dataclasses.dataclass(frozen=True)
class TiedChannels:
  """The channels of linear layers by the factor they share.

  Attributes:
    count: of factors.
    before, behind: {layer: factor of each input channel, of each output channel}, int [channels]: 1 to
      `count`, and 0 where a channel cannot be scaled.
  """

  count: int
  before: dict[str, np.ndarray]
  behind: dict[str, np.ndarray]


def tied_channels(float_model: keras.Model, *, recurrent: str = "unrolled") -> TiedChannels:
  """Returns the factors that a float model's layers can have once its batch norms are folded.

  The channels of a capped ReLU are left as they are: their caps would have to move with them, which takes an
  operator more in the file.

  Args:
    recurrent: what its recurrent layers became in the quantized model, as in `QuantConfig`.
  """
  graph = fold_batch_norm(standardize(Graph.from_model(float_model), recurrent=recurrent))
  groups = scale_groups(graph)
  for node in graph.of_role("relu"):
    if cap_of(node) is not None:
      groups.free[groups.index[Ref(node)]] = False
  linear = {node.layer.name: node for node in graph.nodes if node.facts.role == "linear"}
  behind = {name: groups.index[Ref(node)] for name, node in linear.items()}
  number = np.where(groups.free, np.cumsum(groups.free), 0)
  before = {name: number[groups.index[node.inputs[0]]] for name, node in linear.items()}
  return TiedChannels(int(groups.free.sum()), before, {name: number[ids] for name, ids in behind.items()})


class CrossLayerFactors(keras.layers.Layer):
  """Holds the factors of `TiedChannels`: exp(factor_steps / levels), 1 at the start.

  Args:
    count: of factors.
    levels: largest integer of the kernel with the fewest bits: one step moves its end by one integer.
  """

  def __init__(self, count: int, levels: int):
    super().__init__(name="cross_layer_factors")
    self.levels = levels
    self.factor_steps = self.add_weight("factor_steps", (count,), initializer="zeros")

  def values(self) -> tf.Tensor:
    """Returns the factors by number, [1 + count]: number 0 is 1."""
    return tf.concat([[1.0], bounded_factor(tf.convert_to_tensor(self.factor_steps), self.levels)], 0)
