"""Files of Keras 1 to 2.15 and of Windows: what their weights compute comes back."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tf_keras import layers
from tf_keras.src.engine.base_layer import TensorFlowOpLayer

import kquant as kq
from kquant.graph.model_files import load_weights
from tests import models, old_files

RANDOM = np.random.default_rng(0)


def array(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


def several():
  """Layers of one class with and without weights, a nested model and layers in layers."""
  inner = keras.Sequential([layers.Dense(5, input_shape=(6,)), layers.Dense(4)], name="inner")
  x = image = keras.Input((8, 8, 3))
  for channels in (4, 6):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(channels, 3)(x)))
  x = layers.Bidirectional(layers.GRU(3))(layers.Reshape((16, 6))(x))
  x = layers.Dense(2)(inner(x))
  return models.randomized(keras.Model(image, layers.Dense(3)(x)))


# --- the .keras format of TensorFlow 2.12 to 2.15 --------------------------------------------------


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("old", [False, True], ids=["2.14", "2.13"])
def test_a_keras_archive_of_2_13_and_of_windows_is_read(old, separator, tmp_path):
  model = several()
  model.save(tmp_path / "new.keras")
  rename = old_files.of_2_13(model, separator) if old else lambda path: path.replace("/", separator)
  old_files.rewritten_archive(tmp_path / "new.keras", tmp_path / "m.keras", rename=rename)
  x = array(2, 8, 8, 3)
  np.testing.assert_array_equal(kq.load_model(tmp_path / "m.keras")(x), model(x))


def test_names_of_2_13_are_those_that_its_users_report():
  model = keras.Sequential([layers.Conv2D(2, 1, input_shape=(4, 4, 1)), layers.Conv2D(2, 1), layers.Flatten(),
                            layers.Dense(3), layers.Dense(2)])
  rename = old_files.of_2_13(model, "\\")
  assert [rename(f"layers/{name}") for name in ("conv2d_1", "dense", "dense_1")] == [
      r"_layer_checkpoint_dependencies\conv2d_2", r"_layer_checkpoint_dependencies\dense",
      r"_layer_checkpoint_dependencies\dense_2"]


def test_an_archive_of_npz_weights_is_refused_in_one_line(tmp_path):
  several().save(tmp_path / "new.keras")
  old_files.rewritten_archive(tmp_path / "new.keras", tmp_path / "m.keras", weights_name="model.weights.npz")
  with pytest.raises(ValueError, match="has no model.weights.h5; save the model again"):
    kq.load_model(tmp_path / "m.keras")


# --- losses, metrics and optimizers ----------------------------------------------------------------


def own_loss(y_true, y_pred):
  return keras.backend.mean(keras.backend.square(y_true - y_pred))


class OwnMetric(keras.metrics.MeanAbsoluteError):
  """A metric of nobody."""


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m"])
def test_losses_metrics_and_optimizers_never_decide_whether_a_file_loads(name, tmp_path):
  inner = keras.Sequential([layers.Dense(5, input_shape=(6,))], name="inner")
  inner.compile(keras.optimizers.legacy.SGD(0.1), own_loss)
  image = keras.Input((6,))
  model = keras.Model(image, layers.Dense(2)(inner(image)))
  model.compile("adam", own_loss, metrics=[OwnMetric()])
  model.fit(array(4, 6), array(4, 2), verbose=0)
  model.save(tmp_path / name)
  x = array(2, 6)
  np.testing.assert_array_equal(kq.load_model(tmp_path / name)(x), model(x))


class OwnInitializer(keras.initializers.Initializer):
  """An initializer of nobody."""

  def __call__(self, shape, dtype=None, **kwargs):
    return tf.ones(shape)


class OwnRegularizer(keras.regularizers.Regularizer):
  """A regularizer of nobody."""

  def __call__(self, x):
    return tf.reduce_sum(x)

  def get_config(self):
    return {}


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m"])
def test_initializers_and_regularizers_of_nobody_do_not_either(name, tmp_path):
  model = keras.Sequential([layers.Dense(3, kernel_initializer=OwnInitializer(), input_shape=(4,),
                                         kernel_regularizer=OwnRegularizer()),
                            layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))])
  model.save(tmp_path / name)
  loaded, x = kq.load_model(tmp_path / name), array(5, 4)
  np.testing.assert_array_equal(loaded(x), model(x))
  assert loaded.layers[-1].kernel_regularizer.l2 == 0.5 and loaded.layers[-2].kernel_regularizer is None


# --- SavedModels -----------------------------------------------------------------------------------


def test_a_saved_model_of_2_4_is_read(tmp_path):
  model = several()
  model.save(tmp_path / "m", save_format="tf")
  old_files.to_2_4(tmp_path / "m")
  x = array(2, 8, 8, 3)
  np.testing.assert_array_equal(kq.load_model(tmp_path / "m")(x), model(x))


class Subclassed(keras.Model):
  """No graph of layers."""

  def __init__(self):
    super().__init__()
    self.dense = layers.Dense(2)

  def call(self, x):
    return self.dense(x)


def test_weights_of_a_subclassed_saved_model_go_into_one_that_was_built(tmp_path):
  model, other, x = Subclassed(), Subclassed(), array(5, 3)
  model(x)
  model.save(tmp_path / "m", save_format="tf")
  other(x)
  load_weights(other, tmp_path / "m")
  np.testing.assert_array_equal(other(x), model(x))


# --- Keras 1 and early Keras 2 ---------------------------------------------------------------------


def keras_1_layers():
  """A convolutional network in the words of Keras 1.2, as a list of layers."""
  shared = {"trainable": True, "activation": "relu", "border_mode": "same", "dim_ordering": "tf",
            "bias": True, "init": "glorot_uniform", "W_regularizer": None, "b_regularizer": None,
            "W_constraint": None, "b_constraint": None, "activity_regularizer": None}
  return [
      {"class_name": "Convolution2D", "config": {
          **shared, "name": "convolution2d_1", "nb_filter": 4, "nb_row": 3, "nb_col": 3, "subsample": [2, 2],
          "batch_input_shape": [None, 8, 8, 3], "input_dtype": "float32"}},
      {"class_name": "BatchNormalization", "config": {
          "name": "bn", "mode": 0, "axis": -1, "epsilon": 0.001, "momentum": 0.99, "beta_init": "zero",
          "gamma_init": "one", "gamma_regularizer": None, "beta_regularizer": None, "trainable": True}},
      {"class_name": "MaxPooling2D", "config": {
          "name": "pool", "pool_size": [2, 2], "strides": [2, 2], "border_mode": "valid",
          "dim_ordering": "tf", "trainable": True}},
      {"class_name": "Dropout", "config": {"name": "dropout_1", "p": 0.25, "trainable": True}},
      {"class_name": "Flatten", "config": {"name": "flatten_1", "trainable": True}},
      {"class_name": "Dense", "config": {
          "name": "dense_1", "output_dim": 5, "init": "glorot_uniform", "activation": "softmax", "bias": True,
          "input_dim": 16, "W_regularizer": None, "b_regularizer": None, "activity_regularizer": None,
          "W_constraint": None, "b_constraint": None, "trainable": True}}]


WEIGHTS = {"convolution2d_1": [array(3, 3, 3, 4), array(4)],
           "bn": [array(4), array(4), array(4), np.abs(array(4)) + 0.5], "pool": [], "dropout_1": [],
           "flatten_1": [], "dense_1": [array(16, 5), array(5)]}


def keras_2_model():
  model = keras.Sequential([
      layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", input_shape=(8, 8, 3)),
      layers.BatchNormalization(), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(5, "softmax")])
  model.set_weights([values for arrays in WEIGHTS.values() for values in arrays])
  return model


def test_a_sequential_model_of_keras_1_is_read(tmp_path):
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": keras_1_layers()}, WEIGHTS)
  x = array(2, 8, 8, 3)
  np.testing.assert_allclose(kq.load_model(tmp_path / "m.h5")(x), keras_2_model()(x), atol=1e-6)


MERGES = {"sum": lambda a, b: a + b, "mul": lambda a, b: a * b, "ave": lambda a, b: (a + b) / 2,
          "max": np.maximum, "concat": lambda a, b: np.concatenate([a, b], -1)}


@pytest.mark.parametrize("mode", MERGES)
def test_a_merge_of_keras_1_is_the_layer_of_today(mode, tmp_path):
  dense = lambda name: {"class_name": "Dense", "name": name, "inbound_nodes": [[["input_1", 0, 0]]],
                        "config": {"name": name, "output_dim": 3, "activation": "linear", "bias": True}}
  config = {"class_name": "Model", "config": {
      "name": "model_1", "input_layers": [["input_1", 0, 0]], "output_layers": [["merge_1", 0, 0]],
      "layers": [{"class_name": "InputLayer", "name": "input_1", "inbound_nodes": [], "config": {
          "name": "input_1", "batch_input_shape": [None, 6], "input_dtype": "float32", "sparse": False}},
                 dense("a"), dense("b"),
                 {"class_name": "Merge", "name": "merge_1", "inbound_nodes": [[["a", 0, 0], ["b", 0, 0]]],
                  "config": {"name": "merge_1", "mode": mode, "concat_axis": -1, "dot_axes": -1}}]}}
  weights = {"input_1": [], "a": [array(6, 3), array(3)], "b": [array(6, 3), array(3)], "merge_1": []}
  old_files.write_h5(tmp_path / "m.h5", config, weights)
  x = array(4, 6)
  expected = MERGES[mode](*(x @ weights[name][0] + weights[name][1] for name in "ab"))
  np.testing.assert_allclose(kq.load_model(tmp_path / "m.h5")(x), expected, atol=1e-5)


def test_other_merges_and_modes_are_refused_with_the_remedy(tmp_path):
  merge = {"class_name": "Merge", "config": {"name": "m", "mode": "cos"}}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [merge]}, {})
  with pytest.raises(ValueError, match="'m' .Merge of mode 'cos'. has no form in Keras 2; build it from Add"):
    kq.load_model(tmp_path / "m.h5")
  norm = {"class_name": "BatchNormalization", "config": {"name": "bn", "mode": 2}}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [norm]}, {})
  with pytest.raises(ValueError, match="'bn' .*train it in mode 0"):
    kq.load_model(tmp_path / "m.h5")


def test_a_gru_of_keras_2_1_has_no_reset_after(tmp_path):
  gru = {"class_name": "GRU", "config": {
      "name": "gru_1", "units": 3, "activation": "tanh", "recurrent_activation": "hard_sigmoid",
      "use_bias": True, "batch_input_shape": [None, 4, 2], "dtype": "float32", "implementation": 1}}
  weights = {"gru_1": [array(2, 9), array(3, 9), array(9)]}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [gru]}, weights,
                     version="2.1.6")
  model = keras.Sequential([layers.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False,
                                       input_shape=(4, 2))])
  model.set_weights(weights["gru_1"])
  x = array(2, 4, 2)
  np.testing.assert_allclose(kq.load_model(tmp_path / "m.h5")(x), model(x), atol=1e-6)


def test_an_lstm_of_cudnn_is_an_lstm(tmp_path):
  kernel, recurrent, bias = array(2, 12), array(3, 12), array(24)
  lstm = {"class_name": "CuDNNLSTM", "config": {"name": "l", "units": 3, "batch_input_shape": [None, 4, 2]}}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [lstm]},
                     {"l": [kernel, recurrent, bias]}, version="2.2.4")
  gates = lambda matrix, change: np.hstack([change(part) for part in np.hsplit(matrix, 4)])
  model = keras.Sequential([layers.LSTM(3, input_shape=(4, 2))])
  model.set_weights([gates(kernel, lambda part: part.T.reshape(part.shape, order="F")),
                     gates(recurrent, np.transpose), bias[:12] + bias[12:]])
  x = array(2, 4, 2)
  np.testing.assert_allclose(kq.load_model(tmp_path / "m.h5")(x), model(x), atol=1e-6)


def test_kernels_of_theano_are_mirrored(tmp_path):
  kernel = array(3, 3, 2, 4)
  conv = {"class_name": "Conv2D", "config": {
      "name": "c", "filters": 4, "kernel_size": [3, 3], "use_bias": False,
      "batch_input_shape": [None, 6, 6, 2]}}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [conv]}, {"c": [kernel]},
                     version="2.0.8", backend="theano")
  (loaded,) = kq.load_model(tmp_path / "m.h5").get_weights()
  np.testing.assert_array_equal(loaded, kernel[::-1, ::-1])


def test_relu6_of_early_mobilenets_is_a_relu(tmp_path):
  part = {"class_name": "Activation", "config": {"name": "relu", "activation": "relu6"}}
  dense = {"class_name": "Dense", "config": {"name": "d", "units": 2, "batch_input_shape": [None, 2]}}
  old_files.write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": [dense, part]},
                     {"d": [10 * np.eye(2, dtype=np.float32), np.zeros(2, np.float32)], "relu": []},
                     version="2.1.3")
  assert kq.load_model(tmp_path / "m.h5")(np.array([[1.0, -1.0]])).numpy().tolist() == [[6.0, 0.0]]


def test_words_of_keras_1_in_layers_of_others_are_left_alone(tmp_path):
  @keras.utils.register_keras_serializable("old_files")
  class Own(layers.Layer):
    """Has an argument that Keras 1 used for something else."""

    def __init__(self, p=1.0, **options):
      super().__init__(**options)
      self.p = p

    def call(self, x):
      return x * self.p

    def get_config(self):
      return {**super().get_config(), "p": self.p}

  keras.Sequential([layers.Dense(2, input_shape=(2,)), Own(3.0)]).save(tmp_path / "m.h5")
  assert kq.load_model(tmp_path / "m.h5").layers[-1].p == 3.0


# --- operations of TensorFlow 2.0 to 2.3 ------------------------------------------------------------


def operation(op, constants=None, **attributes):
  """A layer that holds one operation of TensorFlow, as those versions made of `x + 1`."""
  node = NodeDef(name=op.lower(), op=op, input=["x", "y"][:2 if constants or op in BINARY else 1])
  node.attr["T"].type = tf.float32.as_datatype_enum
  for name, value in attributes.items():
    node.attr[name].CopyFrom(value)
  return TensorFlowOpLayer(node.SerializeToString(), name=op.lower(), constants=constants)


INT32 = AttrValue(type=tf.int32.as_datatype_enum)
BINARY = ("AddV2", "Mul", "Sub", "RealDiv", "Maximum", "SquaredDifference")
OPERATIONS = {
    **{f"{op} constant": lambda op=op: operation(op, {1: np.float32(1.5)}) for op in BINARY},
    "constant first": lambda: operation("Sub", {0: np.float32(1.5)}),
    "Relu6": lambda: operation("Relu6"), "Sigmoid": lambda: operation("Sigmoid"),
    "Mean": lambda: operation("Mean", {1: np.int32([1])}, Tidx=INT32, keep_dims=AttrValue(b=True)),
    "Reshape": lambda: operation("Reshape", {1: np.int32([-1, 2, 6])}, Tshape=INT32),
    "Transpose": lambda: operation("Transpose", {1: np.int32([0, 2, 1])}, Tperm=INT32)}


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation_is_a_function_of_today(case, tmp_path):
  image = keras.Input((4, 3), name="x")
  model = keras.Model(image, layers.Dense(2)(OPERATIONS[case]()(layers.Dense(3)(image))))
  model.save(tmp_path / "m.h5")
  loaded, x = kq.load_model(tmp_path / "m.h5"), array(5, 4, 3)
  np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
  assert [type(layer).__name__ for layer in loaded.layers] == ["InputLayer", "Dense", "TFOpLambda", "Dense"]


@pytest.mark.parametrize("op", BINARY)
def test_an_operation_of_two_tensors_is_a_function_of_today(op, tmp_path):
  a, b = keras.Input((4,), name="x"), keras.Input((4,), name="y")
  model = keras.Model([a, b], layers.Dense(2)(operation(op)([layers.Dense(3)(a), layers.Dense(3)(b)])))
  model.save(tmp_path / "m.h5")
  inputs = [array(5, 4), array(5, 4)]
  loaded = kq.load_model(tmp_path / "m.h5")
  np.testing.assert_allclose(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-5)


def test_an_operation_without_a_function_is_named(tmp_path):
  image = keras.Input((4,), name="x")
  keras.Model(image, layers.Dense(2)(operation("Softsign")(image))).save(tmp_path / "m.h5")
  with pytest.raises(ValueError, match="_softsign' holds the operation 'Softsign' .*2.4 or later"):
    kq.load_model(tmp_path / "m.h5")
