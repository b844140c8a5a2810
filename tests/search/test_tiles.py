"""The auto-tiler: measured changes are those of tiled models, limits hold, the report adds up."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.search.tile_changes import TileChanges

ROWS = (2, 4, 8)


def network(size=16):
  """Three blocks on maps of 16, 16 and 8 rows; the gates of the second hardly depend on the image."""
  image = keras.Input((size, size, 3))
  x = layers.Conv2D(6, 3, padding="same", activation="relu")(image)
  for name, strides in (("first", 1), ("second", 2), ("third", 1)):
    mean = layers.GlobalAveragePooling2D(name=name)(x)
    gate = layers.Dense(6, "sigmoid")(layers.Dense(4, "swish", name=f"{name}_reduce")(mean))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(gate)])
    x = layers.Conv2D(6, 3, strides=strides, padding="same", activation="relu")(x)
  model = keras.Model(image, layers.Dense(5, "softmax")(layers.GlobalAveragePooling2D(name="pool")(x)))
  for name, factor in (("first", 5), ("second", 1e-3), ("third", 5)):
    kernel = model.get_layer(f"{name}_reduce").kernel
    kernel.assign(kernel * factor)
  return model


def images(count=24, size=16):
  """Brighter from top to bottom."""
  x = np.random.default_rng(0).random((count, size, size, 3), np.float32)
  return x * np.linspace(0, 2, size, dtype=np.float32)[:, None, None]



def test_a_change_is_that_of_the_tiled_model():
  model, x = network(), images(6)
  body = keras.Model(model.inputs, model.layers[-2].output)
  head = model.layers[-1]
  before = body(x) @ head.kernel + head.bias
  variants = [{}, {"first": 4}, {"third": 2}, {"first": 4, "second": 8, "third": 2}]
  found = TileChanges(model).measure(variants, [x])
  for tiles, row in zip(variants, found):
    tiled = kq.rewrite(body, [kq.tile_squeeze_excite(rows=rows, match=name) for name, rows in tiles.items()])
    after = tiled(x) @ head.kernel + head.bias
    expected = np.square(after - before).sum(1) / np.square(before).sum(1)
    np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-12)
  assert found[1].min() > 1e-8


def test_a_block_that_the_standardized_network_lacks_is_an_error():
  with pytest.raises(ValueError, match="expected blocks .* first, second, third, got elsewhere"):
    TileChanges(network()).measure([{"first": 4}, {"elsewhere": 4}], [images(2)])


@pytest.mark.parametrize("max_change", [0.0005, 0.005, 0.5])
def test_the_change_stays_below_the_limit(max_change):
  choice = kq.choose_tiles(network(), images(), max_change=max_change, rows=ROWS)
  assert choice.change <= max_change and choice.predicted <= 1.01 * max_change and choice.images == 6
  assert [block.name for block in choice.blocks] == ["first", "second", "third"]
  assert choice.untiled == 6 * (16 * 16 + 16 * 16 + 8 * 8) > choice.buffer
  assert choice.blocks[1].rows == 2  # its gates are nearly constant
  buffer = kq.pipeline_buffer(choice.model)
  assert [block.held_rows for block in buffer.blocks] == [
      block.rows or block.image[0] for block in choice.blocks]
  assert buffer.squeeze_excite == choice.buffer


def test_more_change_takes_less_buffer():
  model, x = network(), images()
  small, large = (kq.choose_tiles(model, x, max_change=limit, rows=ROWS) for limit in (0.0005, 0.5))
  assert large.buffer < small.buffer
  assert {block.rows for block in large.blocks} == {2}


def test_the_least_change_for_a_buffer():
  model, x = network(), images()
  choice = kq.choose_tiles(model, x, max_buffer=1200, rows=ROWS)
  assert choice.buffer <= 1200
  assert choice.change > 0 and choice.error > 0
  assert kq.choose_tiles(model, x, max_buffer=10**6, rows=(8,)).change == 0
  with pytest.raises(ValueError, match="max_buffer=100: the smallest tiles hold 480 elements"):
    kq.choose_tiles(model, x, max_buffer=100, rows=(2,))


def test_nothing_is_tiled_where_every_tile_changes_too_much():
  choice = kq.choose_tiles(network(), images(), max_change=1e-9, rows=(8,))
  assert choice.change == 0 and choice.buffer == choice.untiled
  assert {block.rows for block in choice.blocks} == {None} and choice.error == choice.predicted == 0


def test_the_report():
  choice = kq.choose_tiles(network(), images(), max_change=0.5, rows=(4, 12))
  lines = str(choice).splitlines()
  assert lines[2].split()[:9] == ["first", "16", "x", "16", "x", "6", "4", "1,536", "384"]
  assert lines[-1].startswith("3,456 -> 960 elements; the output changes by ")
  assert choice.to_json()["blocks"][2]["rows"] == 4 and choice.to_json()["buffer"] == choice.buffer == 960


@pytest.mark.parametrize("options, message", [
    ({"max_change": 0.1, "max_buffer": 10}, "got both"), ({"max_change": 0}, "max_change is above 0"),
    ({"rows": ()}, "rows are numbers of 1 or more"), ({"rows": (0, 2)}, "rows are numbers of 1 or more")])
def test_wrong_limits(options, message):
  with pytest.raises(ValueError, match=message):
    kq.choose_tiles(network(), images(), **options)


def test_too_few_images_and_no_block():
  with pytest.raises(ValueError, match="expected 4 images or more, some to hold back, got 3"):
    kq.choose_tiles(network(), images(3))
  with pytest.raises(ValueError, match="has no squeeze-and-excite block"):
    kq.choose_tiles(keras.Sequential([layers.Conv2D(3, 3, input_shape=(8, 8, 3))]), images(8, 8))
