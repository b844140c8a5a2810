"""What batch norms know, carried through graphs: by hand and against what data show."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant import InputRange
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.rewrites.scaling.channel_statistics import measure_channels
from kquant.rewrites.scaling.moment_propagation import as_statistics, propagate_moments
from kquant.rewrites.scaling.scale_groups import scale_channels, scale_groups
from tests import models

SHAPE = (10, 10, 3)


def folded(model):
  return kq.fold_batch_norm(kq.standardize(Graph.from_model(model)))


def of(graph, name, known=None):
  (node,) = [node for node in graph.nodes if node.name == name]
  return propagate_moments(graph, known).get(Ref(node))


def batch_norm(mean, deviation, name=None):
  """A batch norm of fixed output moments: beta, gamma; its inputs are standard normal."""
  fixed = {"beta": mean, "gamma": deviation}
  return layers.BatchNormalization(name=name, epsilon=1e-9, **{
      f"{key}_initializer": keras.initializers.Constant(value) for key, value in fixed.items()})


def test_a_folded_batch_norm_leaves_beta_and_gamma():
  image = keras.Input(SHAPE, name="image")
  x = layers.Conv2D(2, 1, name="conv")(image)
  graph = folded(keras.Model(image, layers.ReLU(6.0, name="relu")(batch_norm([1.0, 5.0], [-0.5, 1.0])(x))))
  conv, relu = of(graph, "conv"), of(graph, "relu")
  np.testing.assert_allclose([conv.mean, conv.deviation], [[1.0, 5.0], [0.5, 1.0]])
  np.testing.assert_allclose([conv.low, conv.high], [[-2.0, -1.0], [4.0, 11.0]])
  np.testing.assert_allclose([relu.low, relu.high], [[0.0, 0.0], [4.0, 6.0]])
  assert relu.mean[0] == pytest.approx(1.0, abs=0.01) and relu.mean[1] < 5.0
  assert of(graph, "image") is None


def test_a_kernel_by_hand():
  """Both channels of mean 1, variance 4, through weights 3 and -1 and a bias of 0.5."""
  x = keras.Input((2,), name="x")
  y = layers.Dense(1, name="last")(batch_norm([1.0, 1.0], [2.0, 2.0])(layers.Dense(2, name="first")(x)))
  model = keras.Model(x, y)
  model.get_layer("last").set_weights([np.array([[3.0], [-1.0]]), np.array([0.5])])
  last = of(folded(model), "last")
  np.testing.assert_allclose([last.mean, last.variance], [[2.5], [40.0]])


def of_others(x):
  """Each channel from the one before it: another tensor, independent of x channel by channel."""
  kernel = np.roll(np.eye(4), 1, axis=1).reshape(1, 1, 4, 4)
  return layers.Conv2D(4, 1, kernel_initializer=keras.initializers.Constant(kernel))(x)


@pytest.mark.parametrize("build, atol", [
    (lambda x: layers.Add(name="out")([x, layers.DepthwiseConv2D(3, name="dw", padding="same")(x)]), 0.2),
    (lambda x: layers.Conv2DTranspose(4, 3, strides=2, name="out")(x), 0.2),
    (lambda x: layers.Conv2D(4, 3, groups=2, name="out")(x), 0.1),
    (lambda x: layers.Multiply(name="out")([x, layers.Activation("sigmoid")(of_others(x))]), 0.05),
    (lambda x: layers.LeakyReLU(0.2, name="out")(x), 0.05),
    (lambda x: layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones", name="out")(x), 0.05),
    (lambda x: layers.Activation("tanh", name="out")(x), 0.05),
    (lambda x: layers.Activation("softplus", name="out")(x), 0.05),
    (lambda x: layers.Concatenate(name="out")([x, layers.ReLU()(x)]), 0.1),
    (lambda x: layers.Concatenate(axis=1, name="out")([x, layers.ReLU()(x)]), 0.1),
    (lambda x: layers.Subtract(name="out")([layers.ReLU()(x), of_others(x) + 1.0]), 0.05),
    (lambda x: layers.Dense(3, name="out")(layers.Flatten()(layers.Cropping2D(2)(x))), 0.2)])
def test_means_and_deviations_are_those_of_normal_data(build, atol):
  """Normal images through an identity that a batch norm is folded into, then the layer."""
  image = keras.Input((10, 10, 4), name="image")
  kernel = keras.initializers.Constant(np.eye(4).reshape(1, 1, 4, 4))
  x = layers.Conv2D(4, 1, kernel_initializer=kernel)(image)
  x = batch_norm([0.5, -1.0, 0.0, 2.0], [1.0, 0.5, 2.0, 0.7])(x)
  graph = folded(keras.Model(image, build(x)))
  data = np.random.default_rng(0).normal(size=(200, 10, 10, 4)).astype(np.float32)
  measured, moments = measure_channels(graph, data), propagate_moments(graph, None)
  (ref,) = graph.output_refs
  deviation = measured.deviation(ref)
  np.testing.assert_allclose(moments[ref].mean, measured.mean[ref], atol=atol)
  np.testing.assert_allclose(moments[ref].deviation, deviation, rtol=0.35, atol=0.1)
  assert (moments[ref].low <= measured.low[ref] + 1.5 * deviation).all()
  assert (moments[ref].high >= measured.high[ref] - 1.5 * deviation).all()


def test_a_batch_norm_knows_its_input_too():
  """Behind a sum that others read nothing is folded back: the sum keeps the recorded moments."""
  image = keras.Input(SHAPE, name="image")
  left, right = (layers.Conv2D(2, 1, name=side)(image) for side in ("left", "right"))
  total = layers.Add(name="sum")([left, right])
  bn = layers.BatchNormalization(name="bn", moving_mean_initializer=keras.initializers.Constant([3.0, -1.0]),
                                 moving_variance_initializer=keras.initializers.Constant([4.0, 9.0]))
  graph = folded(keras.Model(image, layers.Add()([total, layers.ReLU()(bn(total))])))
  found = of(graph, "sum")
  np.testing.assert_allclose([found.mean, found.deviation], [[3.0, -1.0], [2.0, 3.0]])
  np.testing.assert_allclose(of(graph, "bn").mean, 0.0)  # now a 1x1 depthwise


def test_an_affine_function_is_no_batch_norm():
  image = keras.Input(SHAPE, name="image")
  graph = folded(keras.Model(image, layers.Conv2D(2, 1, name="conv")(image) * 3.0 + 1.0))
  with pytest.raises(ValueError, match="remembers no batch norms.*kq.fold_batch_norm.*calibration images"):
    propagate_moments(graph, None)


@pytest.mark.parametrize("seed", range(2))
def test_moments_survive_scaling_and_a_rebuild(seed):
  graph = folded(models.build("mobile_block", seed))
  before = propagate_moments(graph, InputRange(-1, 1))
  groups = scale_groups(graph)
  scale = np.where(groups.free, np.exp(np.random.default_rng(seed).normal(size=groups.count)), 1.0)
  scale_channels(graph, groups, scale)
  again = Graph.from_model(graph.to_model())
  after = {ref.key: moments for ref, moments in propagate_moments(again, InputRange(-1, 1)).items()}
  for ref, moments in before.items():
    factor = scale[groups.index[ref]]
    np.testing.assert_allclose(after[ref.key].mean, factor * moments.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after[ref.key].high, factor * moments.high, rtol=1e-4, atol=1e-4)


def test_pruning_and_splitting_keep_them_in_step():
  graph = folded(models.build("mobile_block"))
  statistics = as_statistics(propagate_moments(graph, InputRange(-1, 1)))
  (node,) = [node for node in graph.nodes if node.name == "expand"]
  statistics.high[Ref(node)][3] = -5.0  # never passes the ReLU
  kq.prune_dead_channels(graph, statistics=statistics)
  assert (of(graph, "expand").mean[3], of(graph, "expand").variance[3]) == (0.0, 0.0)
  kq.split_outlier_channels(graph)
  known = [node for node in graph.nodes if node.layer.output_moments is not None]
  assert known and all(len(node.layer.output_moments[0]) == node.shapes[0][-1] for node in known)


def test_a_shared_layer_remembers_nothing():
  image = keras.Input(SHAPE, name="image")
  shared = layers.ReLU(name="shared")
  x = shared(batch_norm([1.0, 2.0], [1.0, 1.0])(layers.Conv2D(2, 1, name="conv")(image)))
  x = layers.Conv2D(2, 3, padding="same", name="last")(batch_norm([0.0, 0.0], [1.0, 1.0])(shared(x)))
  graph = folded(keras.Model(image, x))
  assert all(node.layer.output_moments is None for node in graph.find("ReLU"))


def test_a_layer_without_a_rule_is_named_where_all_must_be_known():
  image = keras.Input(SHAPE, name="image")
  x = batch_norm([1.0, 2.0], [1.0, 1.0])(layers.Conv2D(2, 1, name="conv")(image))
  graph = folded(keras.Model(image, tf.nn.depth_to_space(layers.Conv2D(4, 1)(x), 2)))
  with pytest.raises(kq.UnsupportedLayerError, match="depth_to_space.*give calibration images"):
    propagate_moments(graph, InputRange(0, 1))
  assert of(graph, "conv") is not None


@pytest.mark.parametrize("form", ["keras", "h5", "tf"])
def test_files_of_a_float_model_forget_and_those_of_a_quantized_one_do_not(form, tmp_path):
  model = kq.rewrite(models.build("conv_bn_relu"), [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(model), InputRange(-1, 1))
  (x,) = models.sample_inputs(model, images=2)
  for each in (model, qmodel):
    path = str(tmp_path / (each.name + ("" if form == "tf" else f".{form}")))
    each.save(path, **({"save_format": "tf"} if form == "tf" else {}))
    again = keras.models.load_model(path)
    np.testing.assert_array_equal(again(x).numpy(), each(x).numpy())
    if each is qmodel:
      assert Graph.from_model(again).notes() == Graph.from_model(qmodel).notes()
    elif form != "tf":
      with pytest.raises(ValueError, match="files forget them"):
        propagate_moments(Graph.from_model(again), InputRange(-1, 1))
