"""lower: one row an operator; kernel layouts from hand-made integers; fused activations; borders."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.core import numerics
from kquant.core.encodings import Encoding, Encodings
from kquant.core.errors import UnsupportedLayerError
from kquant.core.target import LITERT
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import Ref
from kquant.qmodel.constants import enter_tables
from tflite_export.lowering.lower import LOWERINGS, lower, with_border
from tflite_export.operators.check import check


def encode(model, *, kernels=None, grids=None):
  """Returns Encodings for a plain model: made-up grids and integers, or those given by key.

  A call read by one ReLU alone gets no grid where its operator can take the ReLU in.
  """
  encodings, kernels, grids = Encodings(), kernels or {}, grids or {}
  graph = Graph.from_model(model)
  for number, node in enumerate(graph.nodes):
    readers = [reader.kind for reader in graph.readers(Ref(node))]
    if node.facts.role in ("move", "average"):
      refs = [Ref(node, index) for index in range(len(node.shapes))]
      encodings.grids.update({ref.key: encodings[node.inputs[0].key] for ref in refs})
    elif not (node.facts.absorbs_relu and readers == ["ReLU"] and Ref(node) not in graph.output_refs):
      free = Encoding([0.25 * (number + 1)], [-number])
      encodings.grids[node.name] = LITERT.fixed.get(node.facts.fixed_grid, free)
    if node.name in grids:
      encodings.grids[node.name] = grids[node.name]
    if node.facts.role == "linear":
      _encode_linear(encodings, node, kernels.get(node.layer.name))
    elif node.kind == "PReLU":
      encodings.grids[f"{node.layer.name}/alpha"] = Encoding([0.01], [0], narrow=True)
      encodings.integers[f"{node.layer.name}/alpha"] = np.ones(node.layer.params["alpha"].shape, np.int8)
    elif node.kind in ("tf.math.add", "tf.math.subtract", "tf.math.multiply"):
      encodings.grids[f"{node.name}/constant"] = Encoding([0.5], [3])
      shape = next(np.shape(value) for value in node.args if not isinstance(value, Ref))
      encodings.integers[f"{node.name}/constant"] = np.ones(shape, np.int8)
  enter_tables(graph, encodings)
  return encodings


def _encode_linear(encodings, node, integers):
  shape, axes = node.layer.params[node.facts.kernel.name].shape, node.facts.kernel.out_axes
  if integers is None:
    integers = np.random.default_rng(0).integers(-9, 10, shape)
  assert np.shape(integers) == shape
  channels = int(np.prod([shape[i] for i in axes]))
  scale = np.float32(0.01) * np.arange(1, channels + 1, dtype=np.float32)
  key, zeros = f"{node.layer.name}/kernel", np.zeros(channels, np.int64)
  encodings.grids[key] = Encoding(scale, zeros, 8, axes, narrow=True)
  encodings.integers[key] = np.asarray(integers, np.int8)
  s_b = numerics.bias_scale(encodings[node.inputs[0].key].scale, scale)
  encodings.grids[f"{node.name}/bias"] = Encoding(s_b, zeros, 32, (0,))
  encodings.integers[f"{node.name}/bias"] = np.arange(100, 100 + channels, dtype=np.int32)


def image(shape=(6, 8, 4), name="image"):
  return keras.Input(shape, name=name)


def lowered(inputs, outputs, **given):
  model = keras.Model(inputs, outputs)
  program = lower(model, encode(model, **given))
  check(program)
  return program


def operator(program, kind):
  (op,) = [op for op in program.ops if op.kind == kind]
  return op


# --- every row: the operators, their versions and options ------------------------------------------

_PLAIN = {"fused_activation_function": "NONE"}
_DENSE = {"dilation_h_factor": 1, "dilation_w_factor": 1, **_PLAIN}
_UNIT = {"padding": "VALID", "stride_h": 1, "stride_w": 1}


def _reshape(*shape):
  return ("RESHAPE", 1, {"new_shape": [1, *shape]})


def _binary(layer):
  def build(x):
    return layer([x, layers.MaxPooling2D(1, name="other")(x)])
  return build


def _operator(function, constant_first=False):
  """An operator with a constant of one value a position, as `standardize` leaves it."""
  def build(x):
    constant = np.ones((1, 6, 8, 4), np.float32)
    return function(constant, x) if constant_first else function(x, constant)
  return build


_MAXIMUM_OF_ONE = ("MAX_POOL_2D", 2, {**_UNIT, "filter_height": 1, "filter_width": 1})

# A function of one element: the input's integer, counted from 0, looks up the output's.
_TABLE = [("CAST", 1, {}), ("ADD", 1, {"fused_activation_function": "NONE"}), ("GATHER", 1, {"axis": 0})]

# {name: (kind, input shape, Keras call, [(operator, version, options)])}; the kind is the row.
CASES = {
    "conv": ("Conv2D", (6, 8, 4), layers.Conv2D(5, (3, 2), strides=(2, 1), padding="same", name="l"), [
        ("CONV_2D", 3, {**_DENSE, "padding": "SAME", "stride_h": 2, "stride_w": 1})]),
    "dilated conv": ("Conv2D", (6, 8, 4), layers.Conv2D(5, 2, dilation_rate=(2, 3), name="l"), [
        ("CONV_2D", 3, {**_UNIT, **_PLAIN, "dilation_h_factor": 2, "dilation_w_factor": 3})]),
    "grouped conv": ("Conv2D", (6, 8, 4), layers.Conv2D(6, 1, groups=2, name="l"), [
        ("CONV_2D", 6, {**_UNIT, **_DENSE})]),
    "depthwise": ("DepthwiseConv2D", (6, 8, 4),
                  layers.DepthwiseConv2D((3, 2), strides=2, depth_multiplier=3, name="l"), [
                      ("DEPTHWISE_CONV_2D", 3, {**_DENSE, "padding": "VALID", "stride_h": 2, "stride_w": 2,
                                                "depth_multiplier": 3})]),
    "dilated depthwise": ("DepthwiseConv2D", (6, 8, 4),
                          layers.DepthwiseConv2D(2, dilation_rate=(1, 2), padding="same", name="l"), [
                              ("DEPTHWISE_CONV_2D", 3, {
                                  **_UNIT, **_PLAIN, "padding": "SAME", "dilation_h_factor": 1,
                                  "dilation_w_factor": 2, "depth_multiplier": 1})]),
    "transposed": ("Conv2DTranspose", (6, 8, 4),
                   layers.Conv2DTranspose(5, 3, strides=(2, 3), padding="same", name="l"), [
                       ("TRANSPOSE_CONV", 3, {"padding": "SAME", "stride_h": 2, "stride_w": 3})]),
    "dense": ("Dense", (7,), layers.Dense(3, name="l"), [
        ("FULLY_CONNECTED", 5, {**_PLAIN, "keep_num_dims": False})]),
    "dense on a sequence": ("Dense", (5, 7), layers.Dense(3, name="l"), [
        ("FULLY_CONNECTED", 5, {**_PLAIN, "keep_num_dims": True})]),
    "conv of a sequence": ("Conv1D", (9, 4), layers.Conv1D(5, 3, strides=2, padding="same", name="l"), [
        _reshape(1, 9, 4), ("CONV_2D", 3, {**_DENSE, "padding": "SAME", "stride_h": 1, "stride_w": 2}),
        _reshape(5, 5)]),
    "causal conv": ("Conv1D", (9, 4), layers.Conv1D(5, 3, dilation_rate=2, padding="causal", name="l"), [
        ("PAD", 2, {}), _reshape(1, 13, 4),
        ("CONV_2D", 3, {**_UNIT, **_PLAIN, "dilation_h_factor": 1, "dilation_w_factor": 2}),
        _reshape(9, 5)]),
    "grouped conv of a sequence": ("Conv1D", (9, 4), layers.Conv1D(6, 1, groups=2, name="l"), [
        _reshape(1, 9, 4), ("CONV_2D", 6, {**_UNIT, **_DENSE}), _reshape(9, 6)]),
    "relu": ("ReLU", (6, 8, 4), layers.ReLU(name="l"), [("RELU", 2, {})]),
    "leaky relu": ("LeakyReLU", (6, 8, 4), layers.LeakyReLU(0.2, name="l"), [
        ("LEAKY_RELU", 2, {"alpha": float(np.float32(0.2))})]),
    "softmax": ("Softmax", (6,), layers.Softmax(name="l"), [("SOFTMAX", 2, {"beta": 1.0})]),
    "sigmoid": ("Sigmoid", (6,), layers.Activation("sigmoid", name="l"), [("LOGISTIC", 2, {})]),
    "tanh": ("Tanh", (6,), layers.Activation("tanh", name="l"), [("TANH", 2, {})]),
    "requantize": ("Requantize", (6,), layers.Activation("linear", name="l"), [("QUANTIZE", 2, {})]),
    "add": ("Add", (6, 8, 4), _binary(layers.Add(name="l")), [
        _MAXIMUM_OF_ONE, ("ADD", 2, {**_PLAIN, "pot_scale_int16": False})]),
    "subtract": ("Subtract", (6, 8, 4), _binary(layers.Subtract(name="l")), [
        _MAXIMUM_OF_ONE, ("SUB", 2, {**_PLAIN, "pot_scale_int16": False})]),
    "multiply": ("Multiply", (6, 8, 4), _binary(layers.Multiply(name="l")), [
        _MAXIMUM_OF_ONE, ("MUL", 2, _PLAIN)]),
    "add constant": ("tf.math.add", (6, 8, 4), _operator(tf.math.add), [
        ("ADD", 2, {**_PLAIN, "pot_scale_int16": False})]),
    "subtract from constant": ("tf.math.subtract", (6, 8, 4), _operator(tf.math.subtract, True), [
        ("SUB", 2, {**_PLAIN, "pot_scale_int16": False})]),
    "multiply constant": ("tf.math.multiply", (6, 8, 4), _operator(tf.math.multiply), [
        ("MUL", 2, _PLAIN)]),
    "concatenate": ("Concatenate", (6, 8, 4), _binary(layers.Concatenate(axis=1, name="l")), [
        _MAXIMUM_OF_ONE, ("CONCATENATION", 2, {**_PLAIN, "axis": 1})]),
    "concatenate channels": ("Concatenate", (6, 8, 4), _binary(layers.Concatenate(name="l")), [
        _MAXIMUM_OF_ONE, ("CONCATENATION", 2, {**_PLAIN, "axis": 3})]),
    "max pool": ("MaxPooling2D", (6, 8, 4), layers.MaxPooling2D((3, 2), (2, 1), padding="same", name="l"), [
        ("MAX_POOL_2D", 2, {"padding": "SAME", "stride_h": 2, "stride_w": 1, "filter_height": 3,
                            "filter_width": 2})]),
    "average pool": ("AveragePooling2D", (6, 8, 4), layers.AveragePooling2D((3, 2), name="l"), [
        ("AVERAGE_POOL_2D", 2, {"padding": "VALID", "stride_h": 3, "stride_w": 2, "filter_height": 3,
                                "filter_width": 2})]),
    "max pool of a sequence": ("MaxPooling1D", (9, 4), layers.MaxPooling1D(3, 2, padding="same", name="l"), [
        _reshape(1, 9, 4), ("MAX_POOL_2D", 2, {"padding": "SAME", "stride_h": 1, "stride_w": 2,
                                               "filter_height": 1, "filter_width": 3}), _reshape(5, 4)]),
    "average pool of a sequence": ("AveragePooling1D", (9, 4), layers.AveragePooling1D(2, name="l"), [
        _reshape(1, 9, 4), ("AVERAGE_POOL_2D", 2, {"padding": "VALID", "stride_h": 1, "stride_w": 2,
                                                   "filter_height": 1, "filter_width": 2}),
        _reshape(4, 4)]),
    "global average": ("GlobalAveragePooling2D", (6, 8, 4), layers.GlobalAveragePooling2D(name="l"), [
        ("MEAN", 2, {"keep_dims": False})]),
    "global average kept": ("GlobalAveragePooling2D", (6, 8, 4),
                            layers.GlobalAveragePooling2D(keepdims=True, name="l"), [
                                ("MEAN", 2, {"keep_dims": True})]),
    "global average of a sequence": ("GlobalAveragePooling1D", (9, 4),
                                     layers.GlobalAveragePooling1D(name="l"), [
                                         ("MEAN", 2, {"keep_dims": False})]),
    "global max": ("GlobalMaxPooling2D", (6, 8, 4), layers.GlobalMaxPooling2D(name="l"), [
        ("MAX_POOL_2D", 2, {**_UNIT, "filter_height": 6, "filter_width": 8}), _reshape(4)]),
    "global max kept": ("GlobalMaxPooling2D", (6, 8, 4), layers.GlobalMaxPooling2D(keepdims=True, name="l"), [
        ("MAX_POOL_2D", 2, {**_UNIT, "filter_height": 6, "filter_width": 8}), _reshape(1, 1, 4)]),
    "global max of a sequence": ("GlobalMaxPooling1D", (9, 4), layers.GlobalMaxPooling1D(name="l"), [
        _reshape(1, 9, 4), ("MAX_POOL_2D", 2, {**_UNIT, "filter_height": 1, "filter_width": 9}),
        _reshape(4)]),
    "zero padding": ("ZeroPadding2D", (6, 8, 4), layers.ZeroPadding2D(((1, 2), (3, 0)), name="l"), [
        ("PAD", 2, {})]),
    "zero padding of a sequence": ("ZeroPadding1D", (9, 4), layers.ZeroPadding1D((1, 2), name="l"), [
        ("PAD", 2, {})]),
    "cropping": ("Cropping2D", (6, 8, 4), layers.Cropping2D(((1, 2), (3, 0)), name="l"), [
        ("STRIDED_SLICE", 1, {})]),
    "cropping of a sequence": ("Cropping1D", (9, 4), layers.Cropping1D((1, 2), name="l"), [
        ("STRIDED_SLICE", 1, {})]),
    "prelu": ("PReLU", (6, 8, 4), layers.PReLU(shared_axes=[1, 2], name="l"), [("PRELU", 1, {})]),
    "maximum": ("Maximum", (6, 8, 4), _binary(layers.Maximum(name="l")), [
        _MAXIMUM_OF_ONE, ("MAXIMUM", 2, {})]),
    "minimum of three": ("Minimum", (6, 8, 4), lambda x: layers.Minimum(name="l")([x, x, x]), [
        ("MINIMUM", 2, {}), ("MINIMUM", 2, {})]),
    "matrix product": ("tf.linalg.matmul", (6, 6), lambda x: tf.linalg.matmul(x, x, transpose_b=True), [
        ("BATCH_MATMUL", 2, {"adj_x": False, "adj_y": True})]),
    "mean over axes": ("tf.math.reduce_mean", (6, 8, 4), lambda x: tf.reduce_mean(x, axis=-1), [
        ("MEAN", 2, {"keep_dims": False})]),
    "mean over axes kept": ("tf.math.reduce_mean", (6, 8, 4),
                            lambda x: tf.reduce_mean(x, axis=[1, 2], keepdims=True), [
                                ("MEAN", 2, {"keep_dims": True})]),
    "maximum over axes": ("tf.math.reduce_max", (6, 8, 4), lambda x: tf.reduce_max(x, axis=2), [
        ("REDUCE_MAX", 2, {"keep_dims": False})]),
    "minimum over axes": ("tf.math.reduce_min", (6, 8, 4), lambda x: tf.reduce_min(x, axis=2), [
        ("REDUCE_MIN", 2, {"keep_dims": False})]),
    "permute": ("Permute", (6, 8, 4), layers.Permute((3, 1, 2), name="l"), [("TRANSPOSE", 2, {})]),
    "slice": ("tf.__operators__.getitem", (6, 8, 4), lambda x: x[:, 1:5:2, ..., 1:], [
        ("STRIDED_SLICE", 1, {})]),
    "slice that drops an axis": ("tf.__operators__.getitem", (6, 8, 4), lambda x: x[:, :, -1], [
        ("STRIDED_SLICE", 1, {}), _reshape(6, 4)]),
    "split": ("tf.split", (6, 8, 4), lambda x: tf.split(x, 2, axis=-1), [("STRIDED_SLICE", 1, {})] * 2),
    "unstack": ("tf.unstack", (2, 8, 4), lambda x: tf.unstack(x, axis=1), [
        ("STRIDED_SLICE", 1, {}), _reshape(8, 4)] * 2),
    "stack": ("tf.stack", (8, 4), lambda x: tf.stack([x, x], axis=1), [
        _reshape(1, 8, 4), _reshape(1, 8, 4), ("CONCATENATION", 2, {**_PLAIN, "axis": 1})]),
    "depth to space": ("tf.nn.depth_to_space", (6, 8, 4), lambda x: tf.nn.depth_to_space(x, 2), [
        ("DEPTH_TO_SPACE", 1, {"block_size": 2})]),
    "space to depth": ("tf.nn.space_to_depth", (6, 8, 4), lambda x: tf.nn.space_to_depth(x, 2), [
        ("SPACE_TO_DEPTH", 1, {"block_size": 2})]),
    "padding operator": ("tf.compat.v1.pad", (6, 8, 4),
                         lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]), [("PAD", 2, {})]),
    "resizing": ("Resizing:bilinear", (6, 8, 4), layers.Resizing(9, 7, name="l"), [
        ("RESIZE_BILINEAR", 3, {"align_corners": False, "half_pixel_centers": True})]),
    "nearest resizing": ("Resizing:nearest", (6, 8, 4), layers.Resizing(9, 7, "nearest", name="l"), [
        ("RESIZE_NEAREST_NEIGHBOR", 3, {"align_corners": False, "half_pixel_centers": True})]),
    "activation by table": ("Activation:gelu", (6, 8, 4), layers.Activation("gelu", name="l"), _TABLE),
    "function by table": ("tf.math.exp", (6, 8, 4), tf.math.exp, _TABLE),
    "up-sampling": ("UpSampling2D", (6, 8, 4), layers.UpSampling2D((2, 3), name="l"), [
        ("RESIZE_NEAREST_NEIGHBOR", 3, {"align_corners": False, "half_pixel_centers": True})]),
    "bilinear up-sampling": ("UpSampling2DBilinear", (6, 8, 4),
                             layers.UpSampling2D((2, 3), interpolation="bilinear", name="l"), [
                                 ("RESIZE_BILINEAR", 3, {"align_corners": False,
                                                         "half_pixel_centers": True})]),
    "flatten": ("Flatten", (6, 8, 4), layers.Flatten(name="l"), [_reshape(192)]),
    "reshape": ("Reshape", (6, 8, 4), layers.Reshape((12, -1), name="l"), [_reshape(12, 16)]),
}


@pytest.mark.parametrize("case", CASES)
def test_layer_becomes_these_operators(case):
  kind, shape, call, expected = CASES[case]
  x = image(shape)
  model = keras.Model(x, call(x))
  node = Graph.from_model(model).nodes[-1]
  assert node.kind == kind
  program = lower(model, encode(model))
  check(program)
  assert [(op.kind, op.version, op.options) for op in program.ops] == expected
  assert program.ops[-1].outputs == program.outputs[-1:]
  assert program.outputs == [Ref(node, index).key for index in range(len(node.shapes))]
  assert program.inputs == ["image"] and "image" in program.ops[0].inputs
  assert [program.tensors[name].shape for name in program.outputs] == [
      (1, *tensor.shape[1:]) for tensor in model.outputs]
  assert {op.source for op in program.ops} <= {node.name, "other"}


def test_every_row_has_a_case_here_but_for_functions_by_table_which_are_lowered_alike():
  rows = {kind for kind in LOWERINGS if kind != "InputLayer"}
  cases = {kind for kind, *_ in CASES.values()}
  assert cases <= rows
  elsewhere = {"Embedding", "CappedReLU",  # tests/test_every_layer.py, tests/test_equalized_files.py
               "IndexMask", "MaskShare", "Select",  # tests/rewrites/standardize/test_masks.py
               "CarryState",  # tests/rewrites/test_streaming.py
               "FusedLSTM", "RowLookup"}  # tests/rewrites/standardize/test_fused.py, test_numbers.py
  missing = rows - cases - elsewhere
  assert not {kind for kind in missing if not LAYERS[kind].unary}
  assert {LOWERINGS[kind] for kind in missing} <= {LOWERINGS["Activation:gelu"]}


# Quantized by placement, but without an operator yet. Nothing at present.
NOT_LOWERED = set()


def test_every_kind_that_placement_quantizes_has_a_lowering():
  quantized = {kind for kind, facts in LAYERS.items() if facts.role not in ("identity", "affine", "opaque")}
  assert quantized - set(LOWERINGS) == NOT_LOWERED
  assert set(LOWERINGS) <= quantized


# --- constants -------------------------------------------------------------------------------------


def test_conv_kernel_moves_its_outputs_first():
  integers = np.arange(-60, 60).reshape(3, 2, 4, 5)  # [h, w, in, out]
  x = image()
  program = lowered(x, layers.Conv2D(5, (3, 2), name="l")(x), kernels={"l": integers})
  kernel = program.tensors["l/kernel"]
  assert (kernel.shape, kernel.dtype, kernel.axis) == ((5, 3, 2, 4), "int8", 0)
  for h, w, i, o in np.ndindex(3, 2, 4, 5):
    assert kernel.data[o, h, w, i] == integers[h, w, i, o]
  np.testing.assert_array_equal(kernel.scale, np.float32(0.01) * np.arange(1, 6, dtype=np.float32))


def test_grouped_kernel_keeps_the_inputs_of_one_group():
  integers = np.arange(-6, 6).reshape(1, 1, 2, 6)
  x = image()
  program = lowered(x, layers.Conv2D(6, 1, groups=2, name="l")(x), kernels={"l": integers})
  assert program.tensors["l/kernel"].data.tolist() == integers.reshape(2, 6).T.reshape(6, 1, 1, 2).tolist()


def test_depthwise_kernel_counts_input_then_multiplier():
  integers = np.arange(-24, 24).reshape(3, 2, 4, 2)  # [h, w, in, multiplier]
  x = image()
  program = lowered(x, layers.DepthwiseConv2D((3, 2), depth_multiplier=2, name="l")(x),
                    kernels={"l": integers})
  kernel = program.tensors["l/kernel"]
  assert (kernel.shape, kernel.axis) == ((1, 3, 2, 8), 3)
  for h, w, i, m in np.ndindex(3, 2, 4, 2):
    assert kernel.data[0, h, w, 2 * i + m] == integers[h, w, i, m]
  assert operator(program, "DEPTHWISE_CONV_2D").options["depth_multiplier"] == 2


def test_dense_kernel_is_transposed():
  integers = np.arange(12).reshape(4, 3)
  x = image((4,))
  program = lowered(x, layers.Dense(3, name="l")(x), kernels={"l": integers})
  assert program.tensors["l/kernel"].data.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
  assert program.tensors["l/kernel"].axis == 0


def test_square_dense_kernel_is_transposed_too():
  integers = np.array([[1, 2], [3, 4]])
  x = image((2,))
  program = lowered(x, layers.Dense(2, name="l")(x), kernels={"l": integers})
  assert program.tensors["l/kernel"].data.tolist() == [[1, 3], [2, 4]]


def test_kernel_of_a_sequence_is_an_image_of_one_row():
  integers = np.arange(-12, 12).reshape(3, 4, 2)  # [k, in, out]
  x = image((9, 4))
  kernel = lowered(x, layers.Conv1D(2, 3, name="l")(x), kernels={"l": integers}).tensors["l/kernel"]
  assert (kernel.shape, kernel.axis) == ((2, 1, 3, 4), 0)
  for k, i, o in np.ndindex(3, 4, 2):
    assert kernel.data[o, 0, k, i] == integers[k, i, o]


def test_transposed_convolution_kernel_moves_its_outputs_first_and_is_given_the_output_shape():
  integers = np.arange(-60, 60).reshape(3, 2, 5, 4)  # [h, w, out, in]
  x = image()
  program = lowered(x, layers.Conv2DTranspose(5, (3, 2), strides=2, name="l")(x), kernels={"l": integers})
  kernel = program.tensors["l/kernel"]
  assert (kernel.shape, kernel.axis) == ((5, 3, 2, 4), 0)
  for h, w, o, i in np.ndindex(3, 2, 5, 4):
    assert kernel.data[o, h, w, i] == integers[h, w, o, i]
  op = operator(program, "TRANSPOSE_CONV")
  assert op.inputs[1:] == ["l/kernel", "image", "l/bias"]
  shape = program.tensors[op.inputs[0]]
  assert (shape.dtype, shape.data.tolist()) == ("int32", [1, 13, 16, 5])


def test_bias_is_int32_with_a_scale_a_channel():
  x = image()
  bias = lowered(x, layers.Conv2D(5, 1, name="l")(x)).tensors["l/bias"]
  assert (bias.dtype, bias.shape, bias.axis) == ("int32", (5,), 0)
  assert bias.data.tolist() == [100, 101, 102, 103, 104]
  np.testing.assert_array_equal(bias.scale, np.float32(0.25) * (
      np.float32(0.01) * np.arange(1, 6, dtype=np.float32)))


def test_shared_layer_is_two_operators_on_one_kernel():
  x = image()
  shared = layers.Conv2D(4, 1, name="l")
  program = lowered(x, shared(shared(x)))
  first, second = program.ops
  assert first.inputs == ["image", "l/kernel", "l/bias"]
  assert second.inputs == ["l", "l/kernel", "l@1/bias"]
  assert second.outputs == ["l@1"]


def test_paddings_axes_and_sizes_are_int32_constants():
  x = image()
  y = layers.UpSampling2D(2, name="up")(layers.ZeroPadding2D(((1, 2), (3, 0)), name="pad")(x))
  program = lowered(x, layers.GlobalAveragePooling2D(name="mean")(y))
  constants = {op.kind: program.tensors[op.inputs[1]] for op in program.ops}
  assert {tensor.dtype for tensor in constants.values()} == {"int32"}
  assert constants["PAD"].data.tolist() == [[0, 0], [1, 2], [3, 0], [0, 0]]
  assert constants["RESIZE_NEAREST_NEIGHBOR"].data.tolist() == [18, 22]
  assert constants["MEAN"].data.tolist() == [1, 2]
  x = image((9, 4), "sequence")
  program = lowered(x, layers.GlobalAveragePooling1D()(layers.ZeroPadding1D((1, 2))(x)))
  paddings, axes = (program.tensors[op.inputs[1]].data.tolist() for op in program.ops)
  assert (paddings, axes) == ([[0, 0], [1, 2], [0, 0]], [1])


def test_cropping_is_given_its_begin_end_and_strides():
  x = image()
  program = lowered(x, layers.Cropping2D(((1, 2), (3, 0)), name="l")(x))
  op = operator(program, "STRIDED_SLICE")
  assert [program.tensors[name].data.tolist() for name in op.inputs[1:]] == [
      [0, 1, 3, 0], [1, 4, 8, 4], [1, 1, 1, 1]]


def test_causal_padding_lies_before_the_first_step():
  x = image((9, 4))
  program = lowered(x, layers.Conv1D(5, 3, dilation_rate=2, padding="causal", name="l")(x))
  assert program.tensors[operator(program, "PAD").inputs[1]].data.tolist() == [[0, 0], [4, 0], [0, 0]]


@pytest.mark.parametrize("constant_first", [False, True])
def test_constant_operand_keeps_its_side(constant_first):
  x = image()
  y = _operator(tf.math.subtract, constant_first)(x)
  program = lowered(x, y)
  names = [program.outputs[0] + "/constant", "image"]
  assert program.ops[0].inputs == (names if constant_first else names[::-1])


def test_subtraction_keeps_the_order_of_its_tensors():
  first, second = image(name="first"), image(name="second")
  assert lowered([first, second], layers.Subtract()([second, first])).ops[0].inputs == ["second", "first"]


@pytest.mark.parametrize("begin, end, strides, cut", [
    ([0, 1, 0, 1], [1, 5, 8, 4], [1, 2, 1, 1], lambda x: x[:, 1:5:2, ..., 1:]),
    ([0, 0, 7, 0], [1, 6, 8, 4], [1, 1, 1, 1], lambda x: x[:, :, -1]),
    ([0, 2, 0, 0], [1, 3, 8, 4], [1, 1, 1, 1], lambda x: x[:, 2]),
    ([0, 0, 0, 2], [1, 6, 8, 4], [1, 1, 1, 1], lambda x: tf.split(x, [2, 2], axis=3)[1]),
    ([0, 5, 0, 0], [1, 6, 8, 4], [1, 1, 1, 1], lambda x: tf.unstack(x, axis=1)[5])])
def test_slice_is_given_its_begin_end_and_strides(begin, end, strides, cut):
  x = image()
  program = lowered(x, cut(x))
  op = [op for op in program.ops if op.kind == "STRIDED_SLICE"][-1]
  assert [program.tensors[name].data.tolist() for name in op.inputs[1:]] == [begin, end, strides]


def test_permutation_counts_the_batch():
  x = image()
  program = lowered(x, layers.Permute((3, 1, 2), name="l")(x))
  assert program.tensors[program.ops[0].inputs[1]].data.tolist() == [0, 3, 1, 2]


def test_table_holds_the_function_of_every_integer_of_the_input():
  x = image((3,))
  grid = Encoding([0.25], [-100])
  program = lowered(x, layers.Activation("exponential", name="l")(x),
                    grids={"image": Encoding([0.05], [10]), "l": grid})
  gather = operator(program, "GATHER")
  table = program.tensors[gather.inputs[0]]
  reals = np.float32(0.05).astype(np.float64) * (np.arange(-128, 128) - 10)
  expected = np.clip(np.rint(np.exp(reals) / 0.25) - 100, -128, 127)
  assert table.data.shape == (256,) and np.abs(table.data - expected).max() <= 1
  assert (table.data == expected).mean() > 0.99
  assert (table.scale.tolist(), table.zero_point.tolist()) == ([0.25], [-100])
  index = operator(program, "ADD")
  assert program.tensors[index.inputs[1]].data.tolist() == [128] and gather.inputs[1] == index.outputs[0]


def test_tensors_carry_their_grids():
  x = image()
  program = lowered(x, layers.LeakyReLU(name="l")(x), grids={"l": Encoding([0.125], [17])})
  tensor = program.tensors["l"]
  assert (tensor.dtype, tensor.scale.tolist(), tensor.zero_point.tolist()) == ("int8", [0.125], [17])


# --- fused activations -----------------------------------------------------------------------------

# A ReLU's cap, the grid behind it, and the fused activation that it needs.
CLAMPS = [
    (None, Encoding([0.1], [-128]), "NONE"),   # the grid begins at 0
    (None, Encoding([0.1], [-127]), "RELU"),   # it begins at -0.1
    (None, Encoding([0.1], [0]), "RELU"),
    (6.0, Encoding([6 / 255], [-128]), "NONE"),  # [0, 6]
    (6.0, Encoding([3 / 255], [-128]), "NONE"),  # [0, 3]
    (6.0, Encoding([6 / 254.6], [-128]), "NONE"),  # ends 0.4 steps above 6
    (6.0, Encoding([6 / 254.4], [-128]), "RELU6"),  # ends 0.6 steps above 6
    (6.0, Encoding([0.1], [-128]), "RELU6"),
    (6.0, Encoding([0.1], [0]), "RELU6"),
    (6.0, Encoding([0.04], [0]), "RELU"),   # [-5.12, 5.08]
    (4.0, Encoding([4 / 255], [-128]), "NONE"),
]


@pytest.mark.parametrize("cap, grid, activation", CLAMPS)
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "Dense", "Conv1D", "Add"])
def test_relu_is_fused_as_the_grid_behind_it_needs(kind, cap, grid, activation):
  x = image((9, 4) if kind == "Conv1D" else (6, 8, 4))
  layer = {"Conv2D": layers.Conv2D(3, 1), "DepthwiseConv2D": layers.DepthwiseConv2D(2),
           "Dense": layers.Dense(3), "Conv1D": layers.Conv1D(3, 2), "Add": layers.Add()}[kind]
  y = layer([x, x] if kind == "Add" else x)
  program = lowered(x, layers.ReLU(cap, name="relu")(y), grids={"relu": grid})
  fused = [op for op in program.ops if "fused_activation_function" in op.options]
  assert [op.options["fused_activation_function"] for op in fused] == [activation]
  assert not {op.kind for op in program.ops} & {"RELU", "RELU6"}
  assert program.outputs == ["relu"] and layer.name not in program.tensors


def test_cap_that_no_fused_activation_holds_is_an_error():
  x = image()
  y = layers.ReLU(4.0, name="cap4")(layers.Conv2D(3, 1)(x))
  with pytest.raises(ValueError, match=r"'cap4': its grid ends at 25.5, above its cap 4"):
    lowered(x, y, grids={"cap4": Encoding([0.1], [-128])})


@pytest.mark.parametrize("grid, kind", [
    (Encoding([6 / 255], [-128]), "RELU"), (Encoding([0.1], [-128]), "RELU6"),
    (Encoding([0.04], [0]), "RELU")])
def test_lone_relu6_is_an_operator_of_its_own(grid, kind):
  x = image()
  program = lowered(x, layers.ReLU(6.0, name="relu")(x), grids={"relu": grid})
  assert [op.kind for op in program.ops] == [kind]


def test_relu_with_other_readers_before_it_is_an_operator_of_its_own():
  x = image()
  y = layers.Conv2D(4, 1, name="conv")(x)
  program = lowered(x, layers.Add(name="add")([y, layers.ReLU(name="relu")(y)]))
  assert [op.kind for op in program.ops] == ["CONV_2D", "RELU", "ADD"]
  assert program.ops[0].options["fused_activation_function"] == "NONE"


def test_requantization_states_its_reason():
  x = image()
  program = lowered(x, layers.Activation("linear", name="l")(x))
  assert "l" in program.ops[0].reason


# --- errors ----------------------------------------------------------------------------------------


def test_open_shape_is_an_error_that_names_the_tensor_and_the_remedy():
  x = keras.Input((None, 8, 4), name="open")
  model = keras.Model(x, layers.MaxPooling2D(2)(x))
  with pytest.raises(UnsupportedLayerError, match=r"'open' has the open shape \(None, None, 8, 4\).*fixed"):
    lower(model, encode(model))


def test_layer_without_a_row_is_an_error_that_names_it():
  x = image()
  either = layers.Lambda(lambda y: tf.cond(tf.size(y) > 0, lambda: y, lambda: -y), name="bad")
  model = keras.Model(x, either(x))
  with pytest.raises(UnsupportedLayerError, match=r"'bad' \(Lambda\) has no integer operator"):
    lower(model, encode(model))


def test_batch_norm_left_in_a_final_model_is_an_error():
  x = image()
  model = keras.Model(x, layers.BatchNormalization(name="bad")(x))
  with pytest.raises(UnsupportedLayerError, match="'bad'"):
    lower(model, encode(model))


def test_encodings_of_another_model_are_an_error_that_names_the_tensor():
  x = image()
  model = keras.Model(x, layers.LeakyReLU(name="l")(x))
  encodings = encode(model)
  del encodings.grids["l"]
  with pytest.raises(ValueError, match="no grid for tensor 'l'; they belong to another model"):
    lower(model, encodings)


def test_grid_that_no_file_holds_is_an_error_that_names_the_tensor():
  x = image()
  model = keras.Model(x, layers.LeakyReLU(name="l")(x))
  with pytest.raises(ValueError, match="'l' has a 4-bit grid"):
    lower(model, encode(model, grids={"l": Encoding([0.1], [0], bits=4)}))


# --- borders ---------------------------------------------------------------------------------------


def bordered(io):
  first, second = image((4,), "first"), image((4,), "second")
  outputs = [layers.Add(name="sum")([first, second]), layers.LeakyReLU(name="leaky")(second)]
  program = lowered([first, second], outputs)
  before = list(program.tensors), list(program.ops), list(program.inputs)
  result = with_border(program, io)
  assert (list(program.tensors), list(program.ops), list(program.inputs)) == before
  check(result)
  return program, result


def test_int8_border_is_the_program_itself():
  program, result = bordered("int8")
  assert result is program


def test_uint8_border_moves_zero_points_by_128():
  program, result = bordered("uint8")
  assert result.inputs == ["first/uint8", "second/uint8"] and result.outputs == ["sum/uint8", "leaky/uint8"]
  assert [(op.kind, op.version) for op in result.ops] == [
      ("QUANTIZE", 2), ("QUANTIZE", 2), *((op.kind, op.version) for op in program.ops),
      ("QUANTIZE", 2), ("QUANTIZE", 2)]
  for name in ("first", "second", "sum", "leaky"):
    inner, outer = result.tensors[name], result.tensors[f"{name}/uint8"]
    assert outer.dtype == "uint8" and outer.shape == inner.shape
    np.testing.assert_array_equal(outer.scale, inner.scale)
    np.testing.assert_array_equal(outer.zero_point, inner.zero_point + 128)


def test_float_border_quantizes_first_and_dequantizes_last():
  program, result = bordered("float32")
  assert [(op.kind, op.version, op.inputs, op.outputs) for op in result.ops] == [
      ("QUANTIZE", 1, ["first/float32"], ["first"]), ("QUANTIZE", 1, ["second/float32"], ["second"]),
      *((op.kind, op.version, op.inputs, op.outputs) for op in program.ops),
      ("DEQUANTIZE", 2, ["sum"], ["sum/float32"]), ("DEQUANTIZE", 2, ["leaky"], ["leaky/float32"])]
  assert result.tensors["sum/float32"].scale is None


def test_other_border_types_are_an_error():
  with pytest.raises(ValueError, match="int8, uint8 or float32, got 'int16'"):
    bordered("int16")


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_tensor_that_is_an_output_twice_has_one_border(io):
  x = image((4,))
  y = layers.LeakyReLU(name="leaky")(x)
  result = with_border(lowered(x, [y, y]), io)
  check(result)
  assert result.outputs == [f"leaky/{io}"] * 2
