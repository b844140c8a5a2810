"""Tiled squeeze-and-excite: every way to write a block, means by hand, and what must not change."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.graph import Graph
from kquant.rewrites.approximate.gates import find_blocks

CHANNELS = 4


def keepdims(x):
  return layers.GlobalAveragePooling2D(keepdims=True)(x)


def reshaped(x):
  return layers.Reshape((1, 1, CHANNELS))(layers.GlobalAveragePooling2D()(x))


def reduced(x):
  return tf.reduce_mean(x, [1, 2], keepdims=True)


def pooled(x):
  return layers.AveragePooling2D(x.shape[1:3])(x)


def in_lambda(x):
  return layers.Lambda(lambda t: tf.reduce_mean(t, axis=(1, 2), keepdims=True))(x)


def convolutions(x, last="sigmoid"):
  return layers.Conv2D(CHANNELS, 1, activation=last)(layers.Conv2D(3, 1, activation="relu")(x))


def dense(x):
  return layers.Dense(CHANNELS, activation="sigmoid")(layers.Dense(3, activation="swish")(x))


def normalized(x):
  x = layers.BatchNormalization()(layers.Conv2D(3, 1, use_bias=False)(x))
  return convolutions(layers.ReLU()(x))


def hard_sigmoid(x):
  return layers.ReLU(6.0)(convolutions(x, None) + 3.0) * (1.0 / 6.0)


def swish_inside(x):
  x = layers.Conv2D(3, 1)(x)
  return convolutions(layers.Dropout(0.5)(layers.Multiply()([x, tf.sigmoid(x)])))


def flat(x):
  x = layers.Dense(3)(layers.Flatten()(x))
  x = layers.Activation("relu")(layers.BatchNormalization()(x))
  return tf.reshape(layers.Dense(CHANNELS, "hard_sigmoid")(x), (-1, 1, 1, CHANNELS))


def sliced(x):
  return tf.expand_dims(layers.Dense(CHANNELS, "sigmoid")(tf.squeeze(x, [1, 2])), 1)[:, :, None]


def capped(x):
  """A cap that few values reach is no identity."""
  return convolutions(tf.clip_by_value(layers.Conv2D(3, 1)(x) * 50.0, -9.0, 9.0))


def reversed_vector(x):
  return convolutions(x)[..., ::-1]


def gate_last(x, gate):
  return layers.Multiply()([x, gate])


def gate_first(x, gate):
  return gate * x


def network(mean=keepdims, gate=convolutions, product=gate_last, size=(6, 5)):
  image = keras.Input((*size, CHANNELS))
  x = layers.Conv2D(CHANNELS, 3, padding="same")(image)
  model = keras.Model(image, product(x, gate(mean(x))))
  shake(model)
  return model


def shake(model):
  """Gives batch norms and biases values that show."""
  rng = np.random.default_rng(3)
  model.set_weights([w + rng.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])


def images(size=(6, 5), count=3):
  return np.random.default_rng(0).normal(size=(count, *size, CHANNELS)).astype(np.float32)


def by_hand(model, x, tile):
  """Each tile alone through the float model's block: an image of nothing but that tile has its mean."""
  inner = keras.Model(model.inputs, model.layers[1].output)
  y, (rows, columns) = inner(x).numpy(), x.shape[1:3]
  block = keras.Model(model.layers[1].output, model.output)
  result = np.empty_like(y)
  for top in range(0, rows, tile[0]):
    for left in range(0, columns, tile[1]):
      part = y[:, top:top + tile[0], left:left + tile[1]]
      alike = np.broadcast_to(part.mean((1, 2), keepdims=True), y.shape)
      gate = block(alike).numpy()[:, :1, :1] / alike[:, :1, :1]
      result[:, top:top + tile[0], left:left + tile[1]] = part * gate
  return result


WRITTEN = [
    (keepdims, convolutions, gate_last), (reshaped, convolutions, gate_first), (reduced, dense, gate_last),
    (pooled, hard_sigmoid, gate_last), (in_lambda, normalized, gate_first),
    (keepdims, swish_inside, gate_last), (keepdims, flat, gate_last), (reduced, sliced, gate_first),
    (reshaped, reversed_vector, gate_last), (keepdims, capped, gate_last)]


@pytest.mark.parametrize("mean, gate, product", WRITTEN, ids=lambda part: part.__name__)
def test_every_written_form(mean, gate, product):
  model, x = network(mean, gate, product), images()
  tiled = kq.rewrite(model, [kq.tile_squeeze_excite(rows=4)])
  np.testing.assert_allclose(tiled(x), by_hand(model, x, (4, 5)), rtol=1e-4, atol=1e-5)
  assert [w.shape for w in tiled.get_weights()] == [w.shape for w in model.get_weights()]
  for mine, its in zip(tiled.get_weights(), model.get_weights()):
    np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("options, tile", [
    ({"rows": 1}, (1, 5)), ({"rows": 3}, (3, 5)), ({"rows": 5}, (5, 5)), ({"columns": 2}, (6, 2)),
    ({"columns": 1}, (6, 1)), ({"tile": (2, 5)}, (2, 5)), ({"tile": (4, 3)}, (4, 3)),
    ({"tile": (1, 1)}, (1, 1)), ({"tile": (99, 3)}, (6, 3))], ids=str)
def test_every_tile_has_the_mean_of_its_own_pixels(options, tile):
  model, x = network(), images()
  tiled = kq.tile_squeeze_excite(model, **options)
  np.testing.assert_allclose(tiled(x), by_hand(model, x, tile), rtol=1e-4, atol=1e-5)


def test_means_of_a_border_tile():
  """Rows 0..6 in tiles of 3: means 1, 4 and, of the last row alone, 6; the gate is the mean itself."""
  image = keras.Input((7, 2, 1))
  gate = layers.Conv2D(1, 1, kernel_initializer="ones")(layers.GlobalAveragePooling2D(keepdims=True)(image))
  model = kq.tile_squeeze_excite(keras.Model(image, layers.Multiply()([image, gate])), rows=3)
  x = np.broadcast_to(np.arange(7, dtype=np.float32)[:, None], (7, 2))[None, ..., None]
  np.testing.assert_array_equal(model(x)[0, :, 0, 0], [0, 1, 2, 12, 16, 20, 36])


@pytest.mark.parametrize("options", [{"rows": 6}, {"rows": 50}, {"columns": 5}, {"tile": (6, 5)}], ids=str)
def test_one_tile_that_holds_the_image_changes_no_bit(options):
  model, x = network(), images()
  graph = Graph.from_model(model)
  kq.tile_squeeze_excite(graph, **options)
  np.testing.assert_array_equal(graph.to_model()(x), model(x))
  assert [skip.reason for skip in graph.skips] == ["one tile holds its image of 6 x 5"]


@pytest.mark.parametrize("tile", [(1, 5), (4, 5), (6, 2), (4, 3)], ids=str)
def test_an_image_that_is_constant_in_space_keeps_its_gate(tile):
  model = network()
  block = keras.Model(model.layers[1].output, model.output)
  x = np.broadcast_to(images()[:, :1, :1], (3, 6, 5, CHANNELS))
  np.testing.assert_allclose(kq.tile_squeeze_excite(block, tile=tile)(x), block(x), rtol=1e-5)


def test_swapped_tiles_swap_their_outputs():
  model = network(size=(6, 4))
  block = kq.tile_squeeze_excite(keras.Model(model.layers[1].output, model.output), tile=(3, 2))
  x = images((6, 4))
  swapped = np.concatenate([np.concatenate([x[:, 3:, 2:], x[:, 3:, :2]], 2), x[:, :3]], 1)
  y, z = block(x).numpy(), block(swapped).numpy()
  np.testing.assert_array_equal(z[:, :3, :2], y[:, 3:, 2:])
  np.testing.assert_array_equal(z[:, 3:], y[:, :3])
  assert np.abs(z[:, :3] - y[:, :3]).max() > 0.1


def test_blocks_by_name():
  image = keras.Input((8, 8, CHANNELS))
  x = image
  for name in ("one", "two"):
    x = gate_last(x, convolutions(layers.GlobalAveragePooling2D(keepdims=True, name=name)(x)))
  model = keras.Model(image, x)
  graph = Graph.from_model(model)
  kq.tile_squeeze_excite(graph, rows=2, match="^two$")
  assert [block.name for block in find_blocks(graph)[0]] == ["one"]
  assert [edit.what for edit in graph.edits] == ["gates of 'two' for tiles of 2 x 8"]
  with pytest.raises(ValueError, match="'three' finds none of the 2 blocks; expected a part of .* 'one'"):
    kq.tile_squeeze_excite(model, rows=2, match="three")


def test_nested_and_shared_models():
  inner = network(reshaped, size=(6, 6))
  image = keras.Input((6, 6, CHANNELS))
  model = keras.Model(image, inner(inner(image)))
  x = images((6, 6), 2)
  graph = Graph.from_model(model)
  kq.tile_squeeze_excite(graph, rows=4)
  assert len(graph.edits) == 2
  expected = by_hand(inner, by_hand(inner, x, (4, 6)), (4, 6))
  np.testing.assert_allclose(graph.to_model()(x), expected, rtol=1e-4, atol=1e-5)
  assert graph.to_model().count_params() == inner.count_params()


def test_a_tiled_block_is_not_tiled_again():
  tiled = kq.tile_squeeze_excite(network(), rows=4)
  graph = Graph.from_model(tiled)
  kq.tile_squeeze_excite(graph, rows=2)
  assert not graph.edits and graph.skips[0].reason == "the model has no squeeze-and-excite"


def other_mean(x):
  return convolutions(keepdims(layers.ReLU()(x)))


def largest(x):
  return convolutions(layers.GlobalMaxPooling2D(keepdims=True)(x))


def both(x):
  return convolutions(keepdims(x) + layers.GlobalMaxPooling2D(keepdims=True)(x))


def part_of_the_mean(x):
  return convolutions(layers.AveragePooling2D((5, 5))(x))


def one_axis_then_the_other(x):
  return convolutions(tf.reduce_mean(tf.reduce_mean(x, 1, keepdims=True), 2, keepdims=True))


def no_weights(x):
  return tf.sigmoid(keepdims(x))


def along_channels(x):
  x = layers.Conv1D(1, 3, padding="same")(layers.Reshape((CHANNELS, 1))(keepdims(x)))
  return layers.Reshape((1, 1, CHANNELS))(layers.Activation("sigmoid")(x))


def wide_convolution(x):
  return layers.Conv2D(CHANNELS, 3, padding="same")(keepdims(x))


def across_the_map(x):
  return convolutions(tf.nn.softmax(layers.Flatten()(keepdims(x)), 1)[:, None, None])


def with_slopes(x):
  return convolutions(layers.PReLU()(keepdims(x)))


@pytest.mark.parametrize("gate, reason", [
    (other_mean, "takes the mean of 're_lu', but 'conv2d' is multiplied"),
    (largest, "lies in front of its gate and is no mean over the image"),
    (both, "lies in front of its gate and is no mean over the image"),
    (part_of_the_mean, "takes no mean over the whole image"),
    (one_axis_then_the_other, "takes the mean of 'tf.math.reduce_mean'"),
    (no_weights, "no layer with weights lies between"),
    (along_channels, "lies in front of its gate and is no mean"),
    (wide_convolution, "works on more than the channels of one vector"),
    (across_the_map, "does not treat each vector of a map alike"),
    (with_slopes, "has weights of one position")], ids=lambda part: getattr(part, "__name__", ""))
def test_what_is_none_is_left_alone(gate, reason):
  graph = Graph.from_model(network(lambda x: x, gate))
  kq.tile_squeeze_excite(graph, rows=2)
  assert not graph.edits
  assert reason in graph.skips[0].reason and graph.skips[0].reason.startswith("it is no squeeze-and-excite")


def test_a_mean_that_others_read_is_left_alone():
  image = keras.Input((6, 5, CHANNELS))
  mean = keepdims(image)
  product = layers.Multiply()([image, convolutions(mean)])
  for other, reason in ((layers.Dense(2, name="head")(mean), "'head' reads "), (mean, "is an output of")):
    graph = Graph.from_model(keras.Model(image, [product, other]))
    kq.tile_squeeze_excite(graph, rows=2)
    assert not graph.edits and reason in graph.skips[0].reason


def test_a_gate_of_another_input_is_left_alone():
  image, condition = keras.Input((6, 5, CHANNELS)), keras.Input((1, 1, CHANNELS), name="condition")
  gate = convolutions(keepdims(image) + condition)
  graph = Graph.from_model(keras.Model([image, condition], layers.Multiply()([image, gate])))
  kq.tile_squeeze_excite(graph, rows=2)
  assert "depends on the input 'condition' too" in graph.skips[0].reason


def test_an_image_of_open_size_is_left_alone():
  graph = Graph.from_model(network(size=(None, None)))
  kq.tile_squeeze_excite(graph, rows=2)
  assert "open size" in graph.skips[0].reason


@pytest.mark.parametrize("options", [{}, {"rows": 2, "columns": 2}, {"rows": 0}, {"tile": (2, 0)},
                                     {"tile": (2,)}, {"rows": 2.5}], ids=str)
def test_wrong_sizes(options):
  with pytest.raises(ValueError, match="tile_squeeze_excite: "):
    kq.tile_squeeze_excite(network(), **options)


def test_trains_and_is_saved(tmp_path):
  tiled, x = kq.tile_squeeze_excite(network(gate=flat), rows=4), images()
  tiled.compile("sgd", "mse")
  kernels = [weight for weight in tiled.trainable_weights if "kernel" in weight.name]
  before = [kernel.numpy() for kernel in kernels]
  tiled.fit(x, x, epochs=1, verbose=0)
  assert len(kernels) == 3
  assert all(np.abs(mine - its).max() > 0 for mine, its in zip(kernels, before))
  tiled.save(tmp_path / "model.keras")
  np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), tiled(x))


applications = keras.applications


@pytest.mark.slow
@pytest.mark.parametrize("build, part", [
    (applications.efficientnet.EfficientNetB0, "se_expand"),
    (applications.efficientnet_v2.EfficientNetV2B0, "se_expand"),
    (applications.MobileNetV3Small, "squeeze_excite/Conv_1"),
    (applications.MobileNetV3Large, "squeeze_excite/Conv_1"),
    (applications.regnet.RegNetY002, "squeeze_and_excite_ex")],
                         ids=lambda part: getattr(part, "__name__", ""))
def test_applications(build, part):
  model = build(weights=None, input_shape=(128, 128, 3), include_top=False)
  graph = Graph.from_model(model)
  blocks, others = find_blocks(graph)
  assert len(blocks) == sum(part in layer.name for layer in model.layers) > 0 and not others
  x = np.random.default_rng(0).uniform(0, 255, (1, 128, 128, 3)).astype(np.float32)
  whole, tiled = graph.copy(), graph.copy()
  kq.tile_squeeze_excite(whole, rows=128)
  np.testing.assert_array_equal(whole.to_model()(x), model(x))
  kq.tile_squeeze_excite(tiled, rows=7)
  assert len(tiled.edits) == sum(block.size[0] > 7 for block in blocks) > 0
  assert tiled.to_model().count_params() == model.count_params()
