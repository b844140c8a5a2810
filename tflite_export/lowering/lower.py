"""Finalised Keras model + Encodings -> IntProgram.

No number on a grid is decided here: kernels, biases, operands, slopes, caps and tables come from the
Encodings as integers, and a tensor that has an encoding is a tensor of the program under its key. What
lowering writes beside them are shapes, axes and paddings, and settings of the layer: the slope of a
LeakyReLU, rounded to the float32 that its operator holds. A call whose output has no encoding is fused with
the ReLU that reads it.
"""

import dataclasses
import importlib.metadata
from collections.abc import Sequence

import tf_keras as keras

from kquant.core.encodings import Encodings
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.kinds.elementwise import refused_table
from kquant.graph.kinds.record import LayerFacts
from kquant.graph.kinds.table import kind_of_class, register
from kquant.graph.nodes import Node, Ref
from kquant.graph.weights import WeightFacts, check_weights
from tflite_export.lowering import elementwise as elementwise_layers
from tflite_export.lowering import linear, masking, pooling, recurrent, shapes
from tflite_export.lowering.builder import Lower, ProgramBuilder
from tflite_export.lowering.elementwise import lower_table
from tflite_export.lowering.pair import check_pair
from tflite_export.program.program import IntOp, IntProgram, IntTensor


def _input(builder: ProgramBuilder, node: Node) -> None:
  if Ref(node).is_integer:
    builder.indices(Ref(node))
  else:
    builder.activation(Ref(node))


def _requantize(builder: ProgramBuilder, node: Node) -> None:
  operator = builder.add(node, "QUANTIZE", builder.inputs(node), [builder.activation(Ref(node))])
  before, after = (builder.program.tensors[name].dtype for name in (*operator.inputs, *operator.outputs))
  operator.reason = f"{node.name}: " + ("the grids of its two sides cannot be one" if before == after else
                                        f"from {before} to {after}, which no other operator takes both")


LOWERINGS: dict[str, Lower] = {
    "InputLayer": _input, "Requantize": _requantize, **linear.LOWERINGS, **pooling.LOWERINGS,
    **shapes.LOWERINGS, **elementwise_layers.LOWERINGS, **masking.LOWERINGS, **recurrent.LOWERINGS}


def register_lowering(layer_class: type, lower_call: Lower = lower_table, *, role: str = "own",
                      elementwise: bool | None = None, weights: Sequence[WeightFacts] = ()) -> None:
  """Lets a layer class of yours be quantized and lowered.

  Args:
    layer_class: a Keras layer with `get_config`, registered with Keras if models are to be saved.
    lower_call: appends its operators: called with the `ProgramBuilder` and the `Node` of a call. The default
      computes any function of one element as a table of 256 integers; `kquant.quantize` refuses the layer
      where random tensors show that it is none.
    role: what the layer does to grids, as in `kquant.graph.kinds.record`: "own", "move" or "average".
    elementwise: the layer is a function of each element alone, whose table `finalize` makes; None: where
      `lower_call` is the default, which places that table.
    weights: its quantized weights, each of which it applies to its one input: role "own" alone. Each has
      a quantizer of its own; its integers are `builder.integers(f"{node.layer.name}/{key}", ...)`, those of
      its bias, on the grid s_x * s_w, `builder.bias(node, name)`. The verifier knows the layouts of Keras:
      [in, out] of what becomes a FULLY_CONNECTED, [h, w, in, out] of a CONV_2D.

  Raises:
    ValueError: another role, a class of Keras' own, weights in a role that has none or of equal names, or a
      weight without an output axis or without its one input axis.

  Example:
    >>> class Square(keras.layers.Layer):
    ...   def call(self, inputs):
    ...     return inputs * inputs
    >>> tflite_export.register_lowering(Square)  # a table of 256 integers
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(keras.Sequential([Square(input_shape=(3,))]), images)
    >>> kq.export(result, "square.tflite", verify=images).verification.ok
    True
  """
  if role not in ("own", "move", "average"):
    raise ValueError(f"register_lowering: role must be own, move or average, got {role!r}.")
  kind = kind_of_class(layer_class)
  if weights and role != "own":
    raise ValueError(f"register_lowering: a layer with weights has the role own, got {role!r}.")
  check_weights(weights)
  unary = lower_call is lower_table if elementwise is None else elementwise
  register(kind, LayerFacts(role, tuple(weights), unary=unary, refused_form=refused_table if unary else None))
  LOWERINGS[kind] = lower_call


def lower(model: keras.Model | Graph, encodings: Encodings) -> IntProgram:
  """Returns the integer program of a finalised model; its borders have the type of its activations.

  Args:
    model: the model, or its graph.
    encodings: what `kquant.finalize` returned with it.

  Raises:
    UnsupportedLayerError: a layer that has no lowering, or an open shape, by name.
    ValueError: encodings of another model, or a model that is not finalised.
  """
  builder = ProgramBuilder(model if isinstance(model, Graph) else Graph.from_model(model), encodings)
  check_pair(builder.graph, encodings)
  for node in builder.graph.nodes:
    if node in builder.fused:
      continue
    if node.kind not in LOWERINGS:
      raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) has no integer operator; replace it.")
    LOWERINGS[node.kind](builder, node)
  program = builder.program
  program.inputs = [ref.key for ref in builder.graph.input_refs]
  program.outputs = [ref.key for ref in builder.graph.output_refs]
  program.input_names, program.output_names = encodings.input_names, encodings.output_names
  program.description = f"kquant {importlib.metadata.version('kquant')}"
  return program


def with_border(program: IntProgram, io: str) -> IntProgram:
  """Returns the program with int8 (int16 for 16-bit activations), uint8 or float32 borders.

  "int8" is the program as it is; indices stay int32 under every io.

  Raises:
    ValueError: another io, or uint8 for 16-bit activations.
  """
  if io == "int8":
    return program
  if io not in ("uint8", "float32"):
    raise ValueError(f"io must be int8, uint8 or float32, got {io!r}.")
  wide = [name for name in (*program.inputs, *program.outputs) if program.tensors[name].dtype == "int16"]
  if io == "uint8" and wide:
    raise ValueError(f"io 'uint8': tensor {wide[0]!r} has 16-bit activations; use 'int8', which leaves them "
                     "int16, or 'float32'.")
  bordered = dataclasses.replace(program, tensors=dict(program.tensors), ops=list(program.ops))
  inward, outward = ("QUANTIZE", "DEQUANTIZE") if io == "float32" else ("QUANTIZE", "QUANTIZE")
  versions = {"QUANTIZE": 2 if io == "uint8" else 1, "DEQUANTIZE": 2}
  entries = {name: _border_tensor(bordered, name, io) for name in program.inputs
             if program.tensors[name].scale is not None}
  exits = {name: _border_tensor(bordered, name, io) for name in dict.fromkeys(program.outputs)}
  bordered.inputs = [entries.get(name, name) for name in program.inputs]
  bordered.outputs = [exits[name] for name in program.outputs]
  bordered.ops[:0] = [IntOp(inward, [outer], [inner], {}, versions[inward], inner, f"{io} input")
                      for inner, outer in entries.items()]
  bordered.ops += [IntOp(outward, [inner], [outer], {}, versions[outward], inner, f"{io} output")
                   for inner, outer in exits.items()]
  return bordered


def _border_tensor(program: IntProgram, name: str, io: str) -> str:
  inner = program.tensors[name]
  grid = (None, None) if io == "float32" else (inner.scale, inner.zero_point + 128)
  label = f"{name}/{io}"
  if label in program.tensors:  # an input that is an output too
    label = f"{name}/output/{io}"
  return program.add_tensor(IntTensor(label, inner.shape, io, *grid))
