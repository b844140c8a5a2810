"""A layer of the user's own becomes integer operators through one call."""

import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import Ref
from tests import models
from tflite_export.lowering.elementwise import lower_table
from tflite_export.lowering.lower import LOWERINGS


@keras.saving.register_keras_serializable("tests")
class Cube(layers.Layer):
  def call(self, x):
    return x**3


@keras.saving.register_keras_serializable("tests")
class Turn(layers.Layer):
  """Swaps height and width."""

  def call(self, x):
    return tf.transpose(x, [0, 2, 1, 3])


class ScaledByChannel(layers.Layer):
  def call(self, x):
    return x * tf.range(1.0, 5.0)


class ScaledByLargest(layers.Layer):
  """The same in any order of the elements, yet no function of one."""

  def call(self, x):
    return x / tf.reduce_max(tf.abs(x))


class SoftmaxOfMine(layers.Layer):
  def call(self, x):
    return tf.nn.softmax(x)


class Weighted(layers.Layer):
  def build(self, shape):
    self.factor = self.add_weight("factor", (), initializer="ones")

  def call(self, x):
    return x * self.factor


@pytest.fixture(autouse=True)
def _tables_as_before():
  kept = dict(LAYERS), dict(LOWERINGS)
  yield
  for table, before in zip((LAYERS, LOWERINGS), kept):
    table.clear()
    table.update(before)


def model_with(layer):
  image = keras.Input((6, 4, 3), name="image")
  x = layers.Conv2D(4, 3, name="conv")(image)
  return models.randomized(keras.Model(image, layers.Conv2D(2, 1, name="out")(layer(x))))


def exported(model, tmp_path):
  (x,) = models.sample_inputs(model)
  return tflite_export.export(kq.quantize(model, x, effort=None), tmp_path / "m.tflite", verify=x[:4])


class Choosing(layers.Layer):
  def call(self, x):
    return x**3 if tf.size(x) > 0 else x  # cannot be traced


def test_an_unregistered_layer_is_traced_or_refused_by_name(tmp_path):
  assert exported(model_with(Cube(name="cube")), tmp_path).program.operator_counts()["GATHER"] == 1
  with pytest.raises(UnsupportedLayerError, match="'choosing'"):
    kq.quantize(model_with(Choosing(name="choosing")), models.sample_inputs(model_with(Cube()))[0],
                effort=None)


def test_a_function_of_one_element_needs_no_code(tmp_path):
  tflite_export.register_lowering(Cube)
  written = exported(model_with(Cube()), tmp_path)
  assert written.program.operator_counts()["GATHER"] == 1
  assert written.verification.max_lsb <= 1


@pytest.mark.parametrize("layer_class, reason", [
    (Turn, "not the same function of one element"), (ScaledByChannel, "fails on a row of values"),
    (ScaledByLargest, "not the same function of one element"),
    (SoftmaxOfMine, "not the same function of one element"), (Weighted, "has weights")])
def test_a_table_is_refused_for_a_layer_that_is_no_function_of_one_element(layer_class, reason):
  tflite_export.register_lowering(layer_class)
  model = model_with(layer_class(name="mine"))
  with pytest.raises(UnsupportedLayerError, match=f"'mine' .*{reason}.*lower_call") as raised:
    kq.quantize(model, models.sample_inputs(model)[0], effort=None)
  assert "\n" not in str(raised.value)


def test_a_layer_that_moves_integers_gives_its_operator(tmp_path):
  def lower_turn(builder, node):
    order = builder.constant(f"{node.name}/perm", [0, 2, 1, 3])
    builder.add(node, "TRANSPOSE", [*builder.inputs(node), order], [builder.activation(Ref(node))],
                version=2)

  tflite_export.register_lowering(Turn, lower_turn, role="move")
  written = exported(model_with(Turn(name="turn")), tmp_path)
  tensors = written.program.tensors
  assert tensors["turn"].scale == tensors["conv"].scale
  assert written.verification.ok


def test_errors_name_the_role_and_the_class():
  with pytest.raises(ValueError, match="role must be own, move or average, got 'linear'"):
    tflite_export.register_lowering(Cube, role="linear")
  with pytest.raises(ValueError, match="Conv2D is a layer of Keras"):
    tflite_export.register_lowering(layers.Conv2D)


def test_a_lowering_of_ones_own_may_use_the_table_where_the_layer_is_said_to_be_elementwise(tmp_path):
  def lower_cube(builder, node):
    lower_table(builder, node)

  tflite_export.register_lowering(Cube, lower_cube, elementwise=True)
  assert exported(model_with(Cube(name="cube")), tmp_path).verification.ok
  tflite_export.register_lowering(Cube, lower_cube)
  with pytest.raises(UnsupportedLayerError, match="'cube' .* has no table .*elementwise=True"):
    exported(model_with(Cube(name="cube")), tmp_path)
