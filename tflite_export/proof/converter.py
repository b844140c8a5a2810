"""A second opinion: the same encodings through TensorFlow's own converter, tf.lite.TFLiteConverter.

The finalised model runs with a fake-quantizer at every tensor that has a grid; of that the converter makes a
file with its own integer operators. It computes scales and biases anew from the ranges, which leaves them off
in the last bits, so they are set to the chosen ones: two unrelated producers must then give equal integers.
A test instrument; it does what the converter can, and refuses the rest by name.
"""

import contextlib
from collections.abc import Callable, Iterator

import flatbuffers
import numpy as np
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

from kquant.core.encodings import Encoding, Encodings
from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph.execution import call_layer, live_layers, run_nodes
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from tflite_export.file.reader import float_operators, from_bytes
from tflite_export.file.writer import FILE_IDENTIFIER
from tflite_export.lowering.lower import lower
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntProgram, IntTensor
from tflite_export.proof.runtime import Runtime

_PLACES = (0, 1, 2)
"""Of x, kernel and bias, in operators whose scales are set as chosen."""
_CLOSE = 1e-6
"""Relative: a scale that the converter computed of the ends of a range lies this near to the chosen one."""


def convert(model: keras.Model, encodings: Encodings) -> bytes:
  """Returns the converter's .tflite file of a finalised model, on the encodings' grids, int8 borders.

  Raises:
    UnsupportedLayerError: a layer that the converter cannot quantize as chosen, by name.
    ValueError: the converter failed, or its file has a constant or grid that is none of the chosen ones.
  """
  graph = Graph.from_model(model)
  for node in graph.nodes:
    _check_supported(node, encodings)
  run = tf.function(_fake_quantized(graph, model, encodings), autograph=False, input_signature=[
      tf.TensorSpec((1, *ref.shape[1:]), name=ref.node.layer.name) for ref in graph.input_refs])
  converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()], model)
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  converter.inference_input_type = converter.inference_output_type = tf.int8
  try:
    data = converter.convert()
  except Exception as error:  # its errors are of many classes
    reason = first_line(error).split("error: ")[-1]  # a place in our source is in front
    raise ValueError(f"The converter failed: {reason}") from error
  if kinds := {kind: None for kind in float_operators(from_bytes(data)) if not operator_of(kind).converts}:
    raise UnsupportedLayerError(f"The converter leaves operators in float: {', '.join(kinds)}.")
  return _with_chosen_grids(data, lower(model, encodings))


def differences(data: bytes, other: bytes, inputs: list[np.ndarray], kernels: str) -> list[int]:
  """Returns for each output how many of its elements differ between two files of int8 borders.

  Args:
    data, other: the files.
    inputs: int8 [n, ...], one array an input.
    kernels: one of `tflite_export.proof.runtime.KERNELS`.

  Raises:
    ValueError: a file that these kernels refuse, or other inputs than the files take.
  """
  first, second = (Runtime(file, kernels=kernels).run_many(inputs) for file in (data, other))
  return [int(np.count_nonzero(mine != theirs)) for mine, theirs in zip(first, second, strict=True)]


def _check_supported(node: Node, encodings: Encodings) -> None:
  key, facts = f"{node.layer.name}/kernel", node.facts
  # The converter moves other kernels about behind their fake-quantizer, and then fails on channels.
  stays = facts.spatial == 2 and not facts.transposed
  if not stays and key in encodings and encodings[key].axis is not None:
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}): the converter fails on per-channel scales there. Quantize with "
        f"the preset {'int8_tflm' if facts.spatial == 0 else 'int8_per_tensor'}.")


# --- fake quantization -----------------------------------------------------------------------------


def _fake_quantized(graph: Graph, model: keras.Model, encodings: Encodings) -> Callable[..., list[tf.Tensor]]:
  """Returns a function of the flat inputs: the model with every tensor that has a grid held to it."""
  layers = live_layers(model)

  def held(ref: Ref, value: tf.Tensor) -> tf.Tensor:
    return _fake_quantize(value, encodings[ref.key]) if ref.key in encodings else value

  def call(layer, node, values):
    with _fake_quantized_weights(layer, node, encodings):
      outputs = call_layer(layer, node, values)
    return [held(ref, output) for ref, output in zip(node.outputs, outputs)]

  def run(*inputs):
    values = {ref: held(ref, value) for ref, value in zip(graph.input_refs, inputs)}
    run_nodes(graph.nodes, layers, values, call=call)
    return [values[ref] for ref in graph.output_refs]

  return run


def _fake_quantize(value: tf.Tensor, grid: Encoding) -> tf.Tensor:
  (low,), (high,) = grid.range
  return tf.quantization.fake_quant_with_min_max_args(value, float(np.float32(low)), float(np.float32(high)))


@contextlib.contextmanager
def _fake_quantized_weights(layer: keras.layers.Layer, node: Node, encodings: Encodings) -> Iterator[None]:
  """While it lasts the layer computes with its weights behind fake-quantizers of their grids."""
  grids = {weight.name: encodings[f"{node.layer.name}/{weight.key}"] for weight in node.facts.weights
           if f"{node.layer.name}/{weight.key}" in encodings}
  attributes = vars(layer)
  weights = {name: attributes[name] for name in grids}
  attributes.update({name: _fake_quantized_weight(weight, grids[name]) for name, weight in weights.items()})
  try:
    yield
  finally:
    attributes.update(weights)


def _fake_quantized_weight(kernel: tf.Variable, grid: Encoding) -> tf.Tensor:
  ends = np.float32(127) * grid.scale  # also for fewer bits: their integers lie in int8
  if grid.axis is None:
    return tf.quantization.fake_quant_with_min_max_args(kernel, -float(ends[0]), float(ends[0]),
                                                        narrow_range=True)
  # a depthwise kernel has two channel axes, the operator wants one
  flat = tf.reshape(kernel, (*kernel.shape[:min(grid.axis)], -1))
  held = tf.quantization.fake_quant_with_min_max_vars_per_channel(flat, -ends, ends, narrow_range=True)
  return tf.reshape(held, kernel.shape)


# --- the chosen grids ------------------------------------------------------------------------------


def _with_chosen_grids(data: bytes, program: IntProgram) -> bytes:
  """Returns the file with the program's scales and biases in the place of the computed ones."""
  model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
  graph = model.subgraphs[0]
  _order_borders(graph, model.signatureDefs[0], program)
  done: set[int] = set()
  for op in graph.operators:
    weighted = operator_of(_kind(model, op)).weighted
    if weighted and weighted.places == _PLACES:
      kernel, bias = _chosen_constants(model, graph, op, program)
      _set_grid(graph.tensors[op.inputs[1]], kernel)
      _set_grid(graph.tensors[op.inputs[2]], bias)
      graph.tensors[op.inputs[2]].buffer = len(model.buffers)
      model.buffers.append(schema.BufferT(data=bias.data.reshape(-1).view(np.uint8)))
      done.update((op.inputs[1], op.inputs[2]))
  chosen = [tensor for tensor in program.tensors.values() if tensor.scale is not None and tensor.axis is None]
  for index, tensor in enumerate(graph.tensors):
    if index not in done and tensor.quantization is not None and tensor.quantization.scale is not None:
      _set_grid(tensor, _nearest(tensor, chosen))
  builder = flatbuffers.Builder(len(data))
  builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
  return bytes(builder.Output())


def _order_borders(graph: schema.SubGraphT, signature: schema.SignatureDefT, program: IntProgram) -> None:
  """Puts inputs and outputs in the program's order and gives them its names: the converter has its own."""
  inputs, outputs = program.signature
  given = {entry.name.decode(): entry for entry in signature.inputs}
  made = {entry.name.decode(): entry for entry in signature.outputs}
  signature.inputs = [given[tensor] for tensor in program.inputs]
  signature.outputs = [made[f"output_{index}"] for index in range(len(program.outputs))]
  for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
    for entry, name in zip(entries, names):
      entry.name = name
  graph.inputs = np.array([entry.tensorIndex for entry in signature.inputs], np.int32)
  graph.outputs = np.array([entry.tensorIndex for entry in signature.outputs], np.int32)


def _kind(model: schema.ModelT, op: schema.OperatorT) -> str:
  code = model.operatorCodes[op.opcodeIndex]
  number = max(code.builtinCode, code.deprecatedBuiltinCode)
  return next(name for name, value in vars(schema.BuiltinOperator).items() if value == number)


def _chosen_constants(model: schema.ModelT, graph: schema.SubGraphT, op: schema.OperatorT,
                      program: IntProgram) -> tuple[IntTensor, IntTensor]:
  """Returns our (kernel, bias) of an operator: that of the same integers, for the same input scale."""
  kind, theirs = _kind(model, op), graph.tensors[op.inputs[1]]
  stored = model.buffers[theirs.buffer].data
  given = graph.tensors[op.inputs[0]].quantization.scale[0]
  candidates = [[program.tensors[name] for name in mine.inputs] for mine in program.ops if mine.kind == kind]
  equal = [(kernel, bias) for source, kernel, bias in candidates
           if stored is not None and kernel.data.shape == tuple(theirs.shape)
           and np.array_equal(kernel.data.reshape(-1).view(np.uint8), stored)
           and abs(source.scale[0] / given - 1) < _CLOSE]
  if not equal:
    raise ValueError(f"The converter's {kind} {theirs.name.decode()!r} has none of the chosen "
                     "kernels: the kernel of a layer called twice it scales anew, by its largest weight.")
  return equal[0]


def _nearest(tensor: schema.TensorT, chosen: list[IntTensor]) -> IntTensor:
  """Returns the chosen grid that the converter meant."""
  scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
  near = [mine for mine in chosen
          if mine.zero_point[0] == zero_point and abs(mine.scale[0] / scale - 1) < _CLOSE]
  if len(tensor.quantization.scale) != 1 or not near:
    raise ValueError(f"The converter's tensor {tensor.name.decode()!r} is on a grid of its own: scale "
                     f"{scale!r}, zero point {zero_point}.")
  return min(near, key=lambda mine: abs(mine.scale[0] / scale - 1))


def _set_grid(tensor: schema.TensorT, chosen: IntTensor) -> None:
  tensor.quantization = schema.QuantizationParametersT(
      scale=chosen.scale, zeroPoint=chosen.zero_point, quantizedDimension=chosen.axis or 0)
