"""What a row-streaming pipeline holds, against counts by hand and the formula of tiled squeeze-and-excite."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from tests.rewrites.approximate.test_squeeze_excite import convolutions, keepdims


def held(build, size=(16, 10, 4), **options):
  image = keras.Input(size)
  return kq.pipeline_buffer(keras.Model(image, build(image)), **options)


def rows(build, **options):
  """Rows of windows and rows that wait, of images 10 columns wide with 4 channels."""
  buffer = held(build, **options)
  return buffer.kernels / 40, buffer.residuals / 40


def conv(size, strides=1, **options):
  return layers.Conv2D(4, size, strides=strides, padding="same", **options)


def chain(x, *parts):
  for part in parts:
    x = part(x)
  return x


@pytest.mark.parametrize("build, expected", [
    (lambda x: conv(1)(x), (0, 0)),
    (lambda x: conv(3)(x), (3, 0)),
    (lambda x: layers.Conv2D(4, 3)(x), (3, 0)),
    (lambda x: conv(3, 2)(x), (3, 0)),
    (lambda x: conv(3, dilation_rate=2)(x), (5, 0)),
    (lambda x: layers.DepthwiseConv2D(5, padding="same")(x), (5, 0)),
    (lambda x: chain(x, conv(3), layers.BatchNormalization(), layers.ReLU(), conv(3)), (6, 0)),
    (lambda x: layers.MaxPooling2D(2)(x), (2, 0)),
    (lambda x: layers.Conv2D(4, 3)(layers.ZeroPadding2D(1)(x)), (3, 0)),
    (lambda x: layers.Dense(5)(layers.GlobalAveragePooling2D()(x)), (0, 0)),
    (lambda x: layers.Dense(5)(layers.Flatten()(x)), (16, 0)),
    # row r of the sum is made when row r + 1, r + 2, r + 3 of the image comes: rows r .. r + n are held
    (lambda x: layers.Add()([x, chain(x, conv(3))]), (3, 0)),
    (lambda x: layers.Add()([x, chain(x, conv(3), conv(3))]), (6, 0)),
    (lambda x: layers.Add()([x, chain(x, conv(3), conv(3), conv(3))]), (9, 1)),
    (lambda x: layers.Add()([x, chain(x, conv(7))]), (7, 0)),
    # a row of the half image is made with every second row, and repeated
    (lambda x: conv(1)(layers.Concatenate()([x, layers.UpSampling2D(2)(layers.AveragePooling2D(2)(x))])),
     (0, 2)),
    (lambda x: layers.Multiply()([x, convolutions(keepdims(layers.ReLU()(x)))]), (0, 16))])
def test_rows_by_hand(build, expected):
  assert rows(build) == expected


def test_several_rows_at_a_time():
  assert rows(lambda x: conv(3)(x), rows_per_step=2) == (4, 0)
  assert rows(lambda x: conv(1)(x), rows_per_step=4) == (0, 0)
  with pytest.raises(ValueError, match="rows_per_step is 1 or more, got 0"):
    held(conv(1), rows_per_step=0)


def block(x):
  return layers.Multiply()([x, convolutions(keepdims(x))])


@pytest.mark.parametrize("tile", [1, 2, 5, 8, 16])
def test_a_block_holds_the_rows_of_a_tile(tile):
  image = keras.Input((16, 10, 4))
  model = keras.Model(image, conv(3)(block(conv(3)(image))))
  before, after = kq.pipeline_buffer(model), kq.pipeline_buffer(kq.tile_squeeze_excite(model, rows=tile))
  assert [found.held_rows for found in before.blocks] == [16]
  assert [found.held_rows for found in after.blocks] == [tile]
  assert after.kernels == before.kernels == 6 * 40
  assert after.blocks[0].name == before.blocks[0].name == "global_average_pooling2d"
  assert (before.squeeze_excite, after.squeeze_excite) == (16 * 40, tile * 40)


def test_a_residual_waits_as_long_as_the_gate():
  """Row r of the image waits for row r of the product, which is made 6 rows later."""
  image = keras.Input((14, 10, 4))
  model = keras.Model(image, layers.Add()([image, block(conv(1)(image))]))
  assert kq.pipeline_buffer(model).residuals == 14 * 40
  tiled = kq.pipeline_buffer(kq.tile_squeeze_excite(model, rows=7))
  assert (tiled.residuals, tiled.squeeze_excite) == (7 * 40, 7 * 40)


def test_tiles_of_columns_save_nothing_where_rows_come():
  image = keras.Input((16, 10, 4))
  model = keras.Model(image, block(conv(1)(image)))
  assert kq.pipeline_buffer(kq.tile_squeeze_excite(model, columns=2)).blocks[0].held_rows == 16
  assert kq.pipeline_buffer(kq.tile_squeeze_excite(model, tile=(4, 3))).blocks[0].held_rows == 4


def test_other_sizes():
  image = keras.Input((None, None, 3))
  model = keras.Model(image, block(conv(3)(image)))
  assert kq.pipeline_buffer(model, (20, 30, 3)).squeeze_excite == 20 * 30 * 4
  with pytest.raises(ValueError, match="has an open size .*; give input_shape"):
    kq.pipeline_buffer(model)
  fixed = keras.Model(image := keras.Input((16, 10, 4)), block(conv(3)(image)))
  assert kq.pipeline_buffer(fixed, (8, 6, 4)).squeeze_excite == 8 * 6 * 4
  with pytest.raises(ValueError, match=r"does not take images of \(8, 6, 4\); build it for that size"):
    kq.pipeline_buffer(kq.tile_squeeze_excite(fixed, rows=3), (8, 6, 4))
  with pytest.raises(ValueError, match="expected a model of one image"):
    kq.pipeline_buffer(keras.Sequential([layers.Dense(2, input_shape=(3,))]))


def test_table_and_data():
  image = keras.Input((16, 10, 4))
  buffer = kq.pipeline_buffer(kq.tile_squeeze_excite(keras.Model(image, block(conv(3)(image))), rows=5))
  assert " ".join(str(buffer).splitlines()[2].split()) == "global_average_pooling2d 16 x 10 x 4 640 5 200"
  assert buffer.to_json()["total"] == buffer.total == 200 + 3 * 40
  assert buffer.to_json()["blocks"][0]["elements"] == 200


def test_picture_of_what_blocks_hold():
  block = kq.BlockBuffer("se", rows=56, columns=56, channels=96, held_rows=7)
  (axes,) = kq.PipelineBuffer((block,), kernels=1, residuals=2).plot().axes
  assert [bar.get_width() for bar in axes.patches] == [0.301056, 0.037632]
  assert [label.get_text() for label in axes.get_yticklabels()] == ["se"]
  with pytest.raises(ValueError, match="no squeeze-and-excite block"):
    kq.PipelineBuffer((), kernels=1, residuals=2).plot()



@pytest.mark.slow
def test_the_formula_on_efficientnet_b2():
  """Vosco et al. state 50 M -> 4.77 M for EfficientDet-D2, which has this backbone at this size."""
  model = keras.applications.EfficientNetB2(weights=None, include_top=False, input_shape=(768, 768, 3))
  before, after = kq.pipeline_buffer(model), kq.pipeline_buffer(kq.tile_squeeze_excite(model, rows=7))
  images = [layer.input_shape[1:] for layer in model.layers if layer.name.endswith("se_squeeze")]
  assert [(found.rows, found.columns, found.channels) for found in after.blocks] == images
  assert before.squeeze_excite == after.untiled == sum(map(np.prod, images)) == 43_600_896
  assert after.squeeze_excite == sum(7 * columns * channels for _, columns, channels in images) == 4_185_216
  assert (before.squeeze_excite + before.residuals, after.squeeze_excite + after.residuals) == (
      50_715_648, 4_876_800)
