"""QFT: a quantized model -> a student whose weights, biases and grids learn -> the quantized model.

Finkelstein et al. 2022, "QFT: Post-training quantization via fast joint finetuning of all degrees of
freedom". The student computes at first exactly what the quantized model computes. What it has learnt
is written back as ranges, kernels that lie on their grids, and biases, so that `finalize` decides the same
integers. With the biases alone it is BFT (Finkelstein et al. 2019).
"""

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from kquant.core import numerics
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import facts_of
from kquant.graph.nodes import Node, kind_of_class
from kquant.ptq.finetune.cross_layer import CrossLayerFactors, TiedChannels, tied_channels
from kquant.ptq.finetune.tuned_layers import TunedActivation, TunedLinear
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.states import recurrent_form
from kquant.qmodel.training_layers import take_out_training_layers

_FRACTION = 0.5
"""Of a kernel's distance from its integers so much is kept: weights next to a boundary would flip to and fro
with the first updates (W3A8, a digits network: 17.4 dB before, 19.7 after; with 1.0 nothing was gained)."""


def student_of(qmodel: keras.Model, float_model: keras.Model, learns: Sequence[str]) -> keras.Model:
  """Returns a model that computes what qmodel does and whose trainable weights are what is learnt.

  Args:
    qmodel: calibrated.
    float_model: that qmodel was made from, batch norms folded or not: says which channels share factors.
    learns: of `tuned_layers.DEGREES`.

  Raises:
    ValueError: qmodel is not calibrated, or was not made from float_model.
  """
  graph = Graph.from_model(qmodel)
  take_out_training_layers(graph)
  live = live_layers(qmodel)
  for layer in graph.layers:  # what is not written back does not learn
    if layer.params and layer.cls is not QuantizeActivation:
      layer.config = {**layer.config, "trainable": False}
  for node in [node for node in graph.nodes if node.layer.cls is QuantizeWeights]:
    linear = facts_of(kind_of_class(type(live[node.layer.name].layer))).role == "linear"
    if linear and node.layer.cls is QuantizeWeights:  # a shared layer is turned at its first call
      _tune_linear(node, live, learns)
  for layer in {node.layer: None for node in graph.nodes if node.layer.cls is QuantizeActivation}:
    low, high = np.concatenate(live[layer.name].encoding().range).astype(np.float32)
    ends = [-high, high] if live[layer.name].quantizer.symmetric else [low, high]
    layer.cls = TunedActivation
    layer.config = {**layer.config, "learns": "activation_ranges" in learns}
    layer.params = {**layer.params, "range_ends": np.array(ends)}
  student = graph.to_model(f"{qmodel.name}_student")
  if "cross_layer_factors" in learns:
    _tie(student, tied_channels(float_model, recurrent=recurrent_form(qmodel)))
  return student


def _tie(student: keras.Model, channels: TiedChannels) -> None:
  """Gives the linear layers of a student the factors that their channels share."""
  linear = {layer.name: layer for layer in student.layers if isinstance(layer, TunedLinear)}
  for name in {**linear, **channels.before}:
    if name not in linear or name not in channels.before or not _fits(linear[name], channels):
      raise ValueError(f"finetune: layer {name!r} is not the same in float_model and in qmodel; expected the "
                       "float model that qmodel was made from, and batch norms folded in both.")
  tied = {name: layer for name, layer in linear.items()
          if channels.before[name].any() or channels.behind[name].any()}
  if tied:
    levels = min(numerics.grid_limits(layer.bits, narrow=True)[1] for layer in tied.values())
    factors = CrossLayerFactors(channels.count, levels)
  for name, layer in tied.items():
    layer.scale_channels(factors, channels.before[name], channels.behind[name])


def _fits(layer: TunedLinear, channels: TiedChannels) -> bool:
  return len(channels.behind[layer.name]) == layer.layer.bias.shape[0]


def _tune_linear(node: Node, live: dict, learns: Sequence[str]) -> None:
  """Turns the LayerDef of a QuantizeWeights into that of a TunedLinear."""
  layer, wrapper = node.layer, live[node.layer.name]
  ((attribute, grid),) = wrapper.weight_encodings().items()
  low, high = live[_input_quantizer(node)].encoding().range
  unit = np.broadcast_to(grid.scale * max(float(high[0]), -float(low[0])), wrapper.layer.bias.shape)
  config = {"name": layer.name, "attribute": attribute, "bits": grid.bits, "axis": grid.axis,
            "learns": list(learns)}
  layer.params = {attribute: layer.params[attribute], "bias": layer.params["bias"],
                  "kernel_steps": _steps(layer.params[attribute], grid), "kernel_scale": grid.scale,
                  "bias_unit": unit.astype(np.float32)}
  inner = layer.config["layer"]
  plain = {key: None if key.endswith("_regularizer") else value for key, value in inner["config"].items()}
  layer.config = {**config, "layer": {**inner, "config": plain}}
  layer.cls = TunedLinear


def _steps(kernel: np.ndarray, grid) -> np.ndarray:
  """Returns the kernel in steps, float32, within the grid, pulled to the integers that it rounds to."""
  qmin, qmax = grid.limits
  exact = kernel / numerics.along(grid.scale.astype(np.float64), kernel.shape, grid.axis)
  integers = grid.quantize(kernel)
  return (integers + _FRACTION * (np.clip(exact, qmin, qmax) - integers)).astype(np.float32)


def _input_quantizer(node: Node) -> str:
  """Returns the name of the quantizer whose grid the input of a linear call has."""
  before = node.inputs[0].node
  while before.layer.cls not in (QuantizeActivation, TunedActivation):
    before = before.inputs[0].node
  return before.layer.name


def write_back(student: keras.Model, qmodel: keras.Model) -> None:
  """Sets the ranges, kernels and biases of qmodel to what the student of `student_of` has learnt.

  What was not learnt stays as it is, to the bit. Kernels that were learnt lie on their grids.
  """
  for layer in student.layers:
    target = qmodel.get_layer(layer.name) if isinstance(layer, (TunedLinear, TunedActivation)) else None
    if isinstance(layer, TunedActivation) and layer.learns:
      target.set_range(*(float(end) for end in layer.limits()))
    elif isinstance(layer, TunedLinear):
      _write_linear(layer, target)


def _write_linear(layer: TunedLinear, wrapper: QuantizeWeights) -> None:
  tied = layer.factors is not None
  if tied or "weight_scales" in layer.learns:
    wrapper.set_scale(layer.attribute, layer.scale().numpy())
  if tied or {"weights", "weight_scales"} & set(layer.learns):
    wrapper.set_integers(layer.attribute, layer.integers().numpy())
  if tied or "biases" in layer.learns:
    wrapper.layer.bias.assign(layer.bias())
