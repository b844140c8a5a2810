"""Costs by hand, and against the files that they are of."""

import zlib

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.allocation.costs import layer_bops, layer_bytes, multiplications, stored_bytes
from kquant.allocation.rounded import RoundedLayer
from kquant.core.target import LITERT, LITERT_UNPACKED
from kquant.graph.graph import Graph
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower


def layer_of(layer, shape):
  """Returns (graph, the layer in it)."""
  graph = Graph.from_model(keras.Sequential([keras.layers.InputLayer(shape), layer]))
  return graph, next(each for each in graph.layers if each.name == layer.name)


@pytest.mark.parametrize("layer, shape, wanted", [
    (layers.Conv2D(5, 3, padding="same"), (8, 6, 4), 8 * 6 * 9 * 4 * 5),
    (layers.Conv2D(6, 3, groups=2, strides=2, padding="same"), (8, 6, 4), 4 * 3 * 9 * 2 * 6),
    (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="valid"), (8, 6, 4), 6 * 4 * 9 * 4 * 2),
    (layers.Conv2DTranspose(5, 3, strides=2), (8, 6, 4), 8 * 6 * 9 * 4 * 5),
    (layers.Dense(7), (4,), 28), (layers.Dense(7), (10, 4), 280), (layers.ReLU(), (4,), 0)])
def test_multiplications_by_hand(layer, shape, wanted):
  graph, layer = layer_of(layer, shape)
  assert multiplications(graph, layer) == wanted


def test_multiplications_of_all_calls():
  shared, x = layers.Dense(4), keras.Input((4,))
  graph = Graph.from_model(keras.Model(x, shared(shared(x))))
  assert multiplications(graph, next(each for each in graph.layers if each.name == shared.name)) == 32


def test_bit_operations_by_hand():
  graph, layer = layer_of(layers.Dense(7), (4,))
  assert layer_bops(graph, layer, (4, 8), (8, 16)).tolist() == [[28 * 32, 28 * 64], [28 * 64, 28 * 128]]


def test_bytes_by_hand():
  """A kernel of 45 integers: 48 bytes with alignment, 32 packed; 5 biases: 32 bytes, 48 of 64 bits."""
  _, layer = layer_of(layers.Dense(5), (9,))
  integers = np.zeros((9, 5), np.int8)
  at = RoundedLayer({"kernel": integers}, {}, {"bias": np.zeros(5, np.float32)})
  rounded = {4: at, 5: at}
  assert layer_bytes(layer, rounded, (8, 16), LITERT, "file").tolist() == [[64, 96], [80, 96]]
  assert layer_bytes(layer, rounded, (8,), LITERT_UNPACKED, "file").tolist() == [[80], [80]]


def test_packed_bytes_are_those_of_a_compressed_file():
  integers = np.array([[1, -2], [3, -8], [7, 0]], np.int8)
  packed = bytes([0x1 | 0xE << 4, 0x3 | 0x8 << 4, 0x7])
  assert stored_bytes(integers, packed=True, storage="entropy") == len(zlib.compress(packed, 9))


@pytest.mark.parametrize("bits", [4, 5])
def test_bytes_of_a_width_are_what_a_file_has_more_or_less(bits):
  keras.utils.set_random_seed(0)
  model = keras.Sequential([layers.Conv2D(24, 3, input_shape=(9, 9, 3)), layers.Flatten(), layers.Dense(10)])
  images = np.random.default_rng(0).random((8, 9, 9, 3), np.float32)

  def size(rule):
    result = kq.quantize(model, images, config=kq.QuantConfig((rule, kq.Rule())), effort=None)
    return len(to_bytes(lower(result.model, result.encodings)))

  name = model.layers[-1].name
  _, layer = layer_of(layers.Dense(10), (7 * 7 * 24,))
  at = RoundedLayer({"kernel": np.zeros((7 * 7 * 24, 10), np.int8)}, {}, {"bias": np.zeros(10)})
  narrow, wide = layer_bytes(layer, {bits: at, 8: at}, (8,), LITERT, "file")[:, 0]
  rule = kq.Rule(match=f"^{name}$")
  less = size(rule) - size(kq.Rule(match=f"^{name}$", weights=kq.TensorSpec(bits=bits)))
  assert abs(less - (wide - narrow)) <= 16
