"""Quantized Keras model -> a plain Keras model on the grids, and the Encodings.

Weights are snapped to their integers, biases to int32 (int64 beside 16-bit activations) at s_x * s_w,
and every grid is written down.
Where the target could not hold a number (an accumulator or a multiplier out of its limits), the
scale that causes it is raised and the channel is reported.
"""

import dataclasses
import re

import numpy as np
import tf_keras as keras
from absl import logging

from kquant.core import numerics
from kquant.core.encodings import Encoding, Encodings
from kquant.core.records import Edit
from kquant.core.target import LITERT, PACKED_BITS, Target
from kquant.graph import keras_calls
from kquant.graph.capped_relu import CappedReLU
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.weights import WeightFacts
from kquant.qmodel.batch_norm_modes import absorb_batch_norms
from kquant.qmodel.constants import snap_constants
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.states import fix_states
from kquant.qmodel.tfmot_models import from_tfmot, is_tfmot
from kquant.qmodel.training_layers import take_out_training_layers
from kquant.qmodel.widths import widened


def finalize(qmodel: keras.Model, *, target: Target = LITERT) -> tuple[keras.Model, Encodings]:
  """Makes the plain float model whose weights lie on their grids, and writes the grids down.

  Scales that had to be raised are logged as warnings of absl, and kernels of few bits that the file stores in
  int8.

  Args:
    qmodel: a calibrated or trained model with quantizers: from `insert_quantizers`, or from tfmot's
      quantize_apply with kquant's quantizers (see `tfmot_models.from_tfmot`).
    target: whose limits hold.

  Returns:
    (tf_keras model, Encodings); qmodel is not changed.

  Raises:
    ValueError: a tensor was not calibrated, qmodel has no quantizers, or a weight has integers of more bits
      than a file holds: those of dorefa at 8 bits need 9.
    UnsupportedLayerError: a model of tfmot's with a layer that kquant's quantizers do not cover.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> qmodel = kq.calibrate(kq.insert_quantizers(model), np.ones((8, 3), np.float32))
    >>> model, encodings = kq.finalize(qmodel)
    >>> encodings.integers["dense/kernel"].dtype, encodings.integers["dense/bias"].dtype
    (dtype('int8'), dtype('int32'))
  """
  model, graph, encodings = finalize_graph(qmodel, target=target)
  _log(graph.edits)
  return model, encodings


def _log(edits: list[Edit]) -> None:
  """One line for what happened to a layer, however many of its channels it happened to."""
  alike: dict[tuple[str, str], list[Edit]] = {}
  for edit in edits:
    alike.setdefault((edit.layer, re.sub(r"\d+", "", edit.what)), []).append(edit)
  for first, *others in alike.values():
    more = f" (and {len(others)} more like it)" if others else ""
    logging.warning("finalize: layer %r: %s%s.", first.layer, first.what, more)


def finalize_graph(qmodel: keras.Model, *, target: Target = LITERT,
                   graph: Graph | None = None) -> tuple[keras.Model, Graph, Encodings]:
  """Returns what `finalize` does, and between them the graph of the plain model.

  Its edits are the scales that had to be raised.

  Args:
    qmodel, target: as of `finalize`.
    graph: that qmodel was made of, where the caller has it.
  """
  qmodel = from_tfmot(qmodel) if is_tfmot(qmodel) else qmodel
  graph = Graph.from_model(qmodel) if graph is None else graph.with_weights_of(qmodel)
  graph.edits, graph.pass_name = [], "finalize"
  encodings = Encodings()
  live = live_layers(qmodel)
  weights = unwrap_weights(graph, live, target)
  take_out_training_layers(graph)
  absorb_batch_norms(graph, weights)
  members = remove_activation_quantizers(graph)
  if not members:
    raise ValueError(f"Model {qmodel.name!r} has no quantizers; expected what kq.insert_quantizers returns.")
  graph.normalize()
  grids = {ref: live[name].encoding() for name, refs in members.items() for ref in refs}
  _raise_small_output_scales(graph, grids, members, weights, target)
  _cap_inside_grids(graph, grids, target)
  for ref, grid in _with_moved(graph, grids).items():
    grids[ref] = encodings.grids[ref.key] = grid
  for layer, own in weights.items():
    inputs = [grids[call.inputs[0]] for call in graph.calls(layer)]
    own = _with_storage(graph, layer, own, max(grid.bits for grid in inputs), target)
    for weight in layer.facts.weights:
      grid = own[weight.name]
      if target.short_scales:
        grid = dataclasses.replace(grid, scale=numerics.short_scale(grid.scale))
      grid = _within_limits(graph, layer, weight, _Grids(grid, inputs), target)
      _snap_weight(graph, layer, weight, _Grids(grid, inputs), encodings)
  snap_constants(graph, encodings)
  fix_states(graph, encodings)
  model = graph.to_model()
  encodings.input_names, encodings.output_names = keras_calls.signature_names(model)
  return model, graph, encodings


def remove_activation_quantizers(graph: Graph) -> dict[str, list[Ref]]:
  """Takes the quantizer nodes out; returns {quantizer layer: the tensors it stood behind}."""
  members: dict[str, list[Ref]] = {}
  for node in [node for node in graph.nodes if node.layer.cls is QuantizeActivation]:
    members.setdefault(node.layer.name, []).append(node.inputs[0])
    graph.remove(node)
  return members


def unwrap_weights(graph: Graph, live: dict,
                   target: Target = LITERT) -> dict[LayerDef, dict[str, Encoding]]:
  """Puts each wrapped layer in its wrapper's place; returns {layer: {weight: its grid}}."""
  weights = {}
  for layer in {node.layer: None for node in graph.nodes if issubclass(node.layer.cls, QuantizeWeights)}:
    wrapper = live[layer.name]
    weights[layer] = wrapper.weight_encodings()
    layer.cls = type(wrapper.layer)
    layer.config, layer.params = wrapper.plain_layer()
    for weight in layer.facts.weights:
      bits = weights[layer][weight.name].bits
      if bits not in target.weight_bits:
        raise ValueError(f"Layer {layer.name!r}: its {weight.key} has integers of {bits} bits, the file at "
                         f"most {max(target.weight_bits)}; the odd integers of dorefa take one bit more than "
                         "it is given, so give it at most 7 bits, or train with lsq.")
  return weights


def _with_moved(graph: Graph, grids: dict[Ref, Encoding]) -> dict[Ref, Encoding]:
  """Adds the tensors without quantizers: moved, on the grid of what they read, or widened."""
  all_grids = {}
  for node in graph.nodes:
    for index in range(len(node.shapes)):
      ref = Ref(node, index)
      if ref in grids:
        all_grids[ref] = grids[ref]
      elif node.facts.role == "move":
        all_grids[ref] = all_grids[node.moved[0]]
      elif node.facts.requantizes:
        all_grids[ref] = widened(all_grids[node.inputs[0]])
  return all_grids


def _raise_small_output_scales(graph: Graph, grids: dict[Ref, Encoding], members: dict[str, list[Ref]],
                               weights: dict[LayerDef, dict[str, Encoding]], target: Target) -> None:
  """Widens an output grid so narrow that s_x * s_w / s_y passes the target's largest multiplier.

  Of a sum it is s_x / s_y, of a product s_a * s_b / s_y.

  That happens where a whole tensor is constant on the calibration data. Widening one grid may narrow
  the ratio of the next layer only, so one sweep in topological order and a second for shared grids do.
  """
  group_of = {ref: refs for refs in members.values() for ref in refs}
  for _ in range(2):
    inputs = _with_moved(graph, grids)
    for node in graph.nodes:
      if node.layer not in weights and not node.facts.arithmetic:
        continue
      scales = [inputs[ref].scale for ref in node.inputs]
      if node.layer in weights:
        scales = [numerics.bias_scale(scales[0], grid.scale) for grid in weights[node.layer].values()]
      elif node.facts.arithmetic == "product":
        scales = [np.multiply(*scales)]
      smallest = 2.0 * float(np.max(np.concatenate(scales))) / target.largest_multiplier
      output = Ref(node) if Ref(node) in grids else Ref(graph.readers(Ref(node))[0])
      if grids[output].scale[0] < smallest:
        wider = dataclasses.replace(grids[output], scale=np.float32(smallest))
        grids.update(dict.fromkeys(group_of[output], wider))
        inputs = _with_moved(graph, grids)
        graph.edit(node, "output scale raised: on the calibration data it is all but constant beside a step "
                         "of its inputs; check that the data are preprocessed as in training")


def _cap_inside_grids(graph: Graph, grids: dict[Ref, Encoding], target: Target) -> None:
  """Makes a ReLU whose grid reaches beyond its cap, where no fused activation clamps, a CappedReLU."""
  for layer in {node.layer: None for node in graph.of_role("relu")}:
    cap, calls = layer.config.get("max_value"), graph.calls(layer)
    beyond = [call for call in calls if cap is not None and cap not in target.relu_caps
              and grids[Ref(call)].range[1][0] > cap + grids[Ref(call)].scale[0] / 2]
    for call in calls if beyond else []:
      caps = np.full(call.shapes[0][-1], cap, np.float32)
      graph.recall(call, graph.new_layer(CappedReLU, call.layer_name, params={"caps": caps}), call.args)
    for call in beyond:
      graph.edit(call, f"its grid reaches beyond its cap {cap:g}: an operator of its own clamps there")
  graph.normalize()


def _with_storage(graph: Graph, layer: LayerDef, own: dict[str, Encoding], input_bits: int,
                  target: Target) -> dict[str, Encoding]:
  """Returns the grids of a layer's weights, packed where bits, activations and the target allow it."""
  few = {name: grid for name, grid in own.items() if grid.bits <= PACKED_BITS}
  if not few or not target.packs:
    return own
  reason = packing_obstacle(layer, input_bits, target)
  if reason:
    bits = " and ".join(map(str, sorted({grid.bits for grid in few.values()})))
    graph.edit(graph.calls(layer)[0], f"kernel of {bits} bits stored in int8: {reason}")
  return {**own, **{name: dataclasses.replace(grid, packed=not reason) for name, grid in few.items()}}


def packing_obstacle(layer: LayerDef, input_bits: int, target: Target) -> str | None:
  """Returns why the file cannot store a kernel of at most 4 bits as INT4, or None."""
  if not target.packs:
    return f"the target {target.name} stores every kernel in int8"
  if not layer.facts.packs:
    return f"the operator of {layer.kind} takes no INT4 kernel"
  if input_bits > target.packed_activation_bits:
    return f"an operator over {input_bits}-bit activations takes no INT4 kernel"
  return None


@dataclasses.dataclass(frozen=True)
class _Grids:
  """The grid of a weight, and those of the layer's input in each of its calls."""

  weight: Encoding
  inputs: list[Encoding]


def _snap_weight(graph: Graph, layer: LayerDef, weight: WeightFacts, grids: _Grids,
                 encodings: Encodings) -> None:
  """Decides the integers of a layer's weight, and of its bias; snaps both in the layer.

  Calls whose inputs have one scale have one bias, that of the first of them.
  """
  key, grid = f"{layer.name}/{weight.key}", grids.weight
  integers = grid.quantize(layer.params[weight.name])
  encodings.grids[key], encodings.integers[key] = grid, integers.astype(np.int8)
  layer.params = {**layer.params, weight.name: grid.dequantize(integers)}
  if not weight.bias:
    return
  bias = layer.params[weight.bias]
  first_calls: dict[tuple[float, int], tuple[Node, Encoding]] = {}
  for call, source in zip(graph.calls(layer), grids.inputs):
    first_calls.setdefault((float(source.scale[0]), source.bits), (call, source))
  for call, source in reversed(first_calls.values()):
    scale = numerics.bias_scale(source.scale, grid.scale)
    axis = None if grid.axis is None else (0,)
    bits = 64 if source.bits == 16 else 32
    bias_grid = Encoding(scale, np.zeros(scale.shape, np.int64), bits, axis)
    bias_integers = bias_grid.quantize(bias)
    key = f"{call.name}/{weight.bias}"
    encodings.grids[key], encodings.integers[key] = bias_grid, bias_integers.astype(f"int{bits}")
    layer.params = {**layer.params, weight.bias: bias_grid.dequantize(bias_integers)}


def _within_limits(graph: Graph, layer: LayerDef, weight: WeightFacts, grids: _Grids,
                   target: Target) -> Encoding:
  """Returns the grid of a weight, a scale raised where the channel's bias or accumulator would overflow.

  |bias| / (s_x s_w) and |q_b| + max|q_x - z_x| sum|q_w| stay below the target's limits.
  """
  kernel, grid = layer.params[weight.name], grids.weight
  taps = tuple(i for i in range(kernel.ndim) if i not in weight.out_axes)
  total = np.abs(kernel.astype(np.float64)).sum(axis=taps).reshape(-1)
  bias = layer.params[weight.bias] if weight.bias else np.zeros(total.shape)
  magnitude = np.abs(bias.astype(np.float64))
  is_dense = layer.facts.role == "linear" and layer.facts.spatial == 0
  needed = np.zeros(total.shape)
  for x in grids.inputs:
    largest_bias, largest_accumulator = target.accumulator_limits(is_dense, grid, x.bits)
    needed = np.maximum(needed, magnitude / (float(x.scale[0]) * largest_bias))
    qmin, qmax = x.limits
    reach = max(qmax - int(x.zero_point[0]), int(x.zero_point[0]) - qmin)
    worst = magnitude / float(x.scale[0]) + reach * total
    needed = np.maximum(needed, worst / (0.98 * largest_accumulator))
  if grid.axis is None:
    needed = np.atleast_1d(needed.max())
  needed = (needed * (1 + 1e-6)).astype(np.float32)
  scale = np.maximum(grid.scale, numerics.short_scale(needed, up=True) if target.short_scales else needed)
  for channel in np.flatnonzero(scale != grid.scale):
    which = "weight scale" if weight.key == "kernel" else f"scale of {weight.key}"
    graph.edit(graph.calls(layer)[0], f"{which} of channel {channel} raised: its bias or accumulator would "
                                      "not fit the runtime's integers")
  return dataclasses.replace(grid, scale=scale)
