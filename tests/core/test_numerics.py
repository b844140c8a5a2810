"""The grid: worked cases, zero on the grid, ties, channel axes, NumPy and TensorFlow bit for bit."""

import numpy as np
import pytest
import tensorflow as tf
from tf_keras import layers

from kquant.core import numerics
from kquant.core.fake_quantization import GridTensors, affine_grid_tf, fake_quantize, symmetric_grid_tf
from kquant.core.numerics import affine_grid, dequantize, grid_limits, quantize, symmetric_grid

BITS = range(2, 9)


def random_ranges(seed, count=2000):
  """Ranges of every size from 1e-12 to 1e12: around 0, on one side of it, empty, and one point."""
  rng = np.random.default_rng(seed)
  ends = rng.normal(size=(2, count)) * 10.0 ** rng.integers(-12, 13, (2, count))
  ends[:, ::50] = 0.0
  ends[1, 1::50] = ends[0, 1::50]
  return ends.min(0), ends.max(0)


def assert_same_bits(mine, theirs):
  mine, theirs = np.asarray(mine), np.asarray(theirs)
  assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()


# --- worked by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, narrow, limits", [
    (8, False, (-128, 127)), (8, True, (-127, 127)), (4, False, (-8, 7)), (4, True, (-7, 7)),
    (2, False, (-2, 1)), (2, True, (-1, 1)), (32, False, (-2**31, 2**31 - 1)),
    (32, True, (1 - 2**31, 2**31 - 1))])
def test_limits_by_hand(bits, narrow, limits):
  assert grid_limits(bits, narrow=narrow) == limits


@pytest.mark.parametrize("low, high, scale, zero_point", [
    (-1.0, 1.55, 0.01, -28),  # 255 steps of 0.01; -128 + 100
    (0.0, 2.55, 0.01, -128),
    (-2.55, 0.0, 0.01, 127),
    (1.0, 2.55, 0.01, -128),  # widened to 0
    (-2.55, -1.0, 0.01, 127),
    (-127.0, 128.0, 1.0, -1),
    (-127.5, 127.5, 127.5 / 127, 0)])  # -0.5 rounds to the even 0; 127.5 is not clipped
def test_affine_grid_by_hand(low, high, scale, zero_point):
  got_scale, got_zero_point = affine_grid(low, high, 8)
  assert got_scale.tolist() == [np.float32(scale)] and got_zero_point.tolist() == [zero_point]
  assert (got_scale.dtype, got_zero_point.dtype) == (np.float32, np.int64)


def test_an_empty_range_still_has_a_scale():
  scale, zero_point = affine_grid(0.0, 0.0, 8)
  assert scale.tolist() == [np.float32(4e-6 / 255)] and zero_point.tolist() == [-128]


def test_symmetric_grid_puts_the_magnitude_on_the_last_integer():
  assert symmetric_grid([12.7, 254.0, 0.0], 8).tolist() == [np.float32(0.1), 2.0, np.float32(1e-9)]
  assert symmetric_grid(3.5, 4).tolist() == [0.5]
  assert symmetric_grid(0.0, 8, smallest=1e-3).tolist() == [np.float32(1e-3)]


def test_quantize_by_hand():
  # scale 0.5, zero point 3: 2 -> 4 + 3, 100 and -100 are clipped to the 4-bit grid.
  x = [0.0, 0.5, 2.0, -1.5, 100.0, -100.0]
  q = quantize(x, 0.5, 3, bits=4)
  assert q.tolist() == [3, 4, 7, 0, 7, -8] and q.dtype == np.int64
  values = dequantize(q, 0.5, 3)
  assert values.tolist() == [0.0, 0.5, 2.0, -1.5, 2.0, -5.5] and values.dtype == np.float32


def test_ties_go_to_the_even_integer():
  ties = np.arange(-6, 6) + 0.5
  expected = [-6, -4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6]
  assert quantize(ties, 1.0, 0, bits=8).tolist() == expected
  # The tie is decided before the zero point is added: an odd one does not turn it.
  assert quantize(ties, 1.0, 5, bits=8).tolist() == [q + 5 for q in expected]
  faked = fake_quantize(tf.constant(ties, tf.float32), GridTensors(1.0, 5.0, bits=8))
  assert faked.numpy().tolist() == expected


def test_narrow_grids_leave_out_the_lowest_integer():
  for bits in BITS:
    qmax = 2 ** (bits - 1) - 1
    assert quantize([-1e9, 1e9], 1.0, 0, bits=bits, narrow=True).tolist() == [-qmax, qmax]
    assert quantize([-1e9, 1e9], 1.0, 0, bits=bits, narrow=False).tolist() == [-qmax - 1, qmax]
    narrow = fake_quantize(tf.constant([-1e9, 1e9]), GridTensors(1.0, 0.0, bits, narrow=True))
    assert narrow.numpy().tolist() == [-qmax, qmax]


# --- the grid of a range ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_zero_lies_exactly_on_every_grid(bits, seed):
  scale, zero_point = affine_grid(*random_ranges(seed), bits)
  qmin, qmax = grid_limits(bits, narrow=False)
  assert (zero_point >= qmin).all() and (zero_point <= qmax).all()
  zeros = np.zeros(len(scale))
  q = quantize(zeros, scale, zero_point, bits=bits, axis=(0,))
  np.testing.assert_array_equal(q, zero_point)
  np.testing.assert_array_equal(dequantize(q, scale, zero_point, axis=(0,)), zeros)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_every_value_of_the_range_comes_back_within_half_a_step(bits, seed):
  low, high = random_ranges(seed)
  scale, zero_point = affine_grid(low, high, bits)
  share = np.random.default_rng(seed).uniform(size=(20, len(low)))
  share[:3] = [[0], [1], [0.5]]
  x = low + share * (high - low)
  back = dequantize(quantize(x, scale, zero_point, bits=bits, axis=(1,)), scale, zero_point, axis=(1,))
  assert (np.abs(back - x) <= scale * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_scale_is_the_smallest_that_clips_neither_end(bits):
  qmin, qmax = grid_limits(bits, narrow=False)
  low, high = random_ranges(5)
  wide = (high > 0.01 * -low) & (low < 0) & (-low > 0.01 * high) & (high - low > 1e-5)
  scale, zero_point = affine_grid(low[wide], high[wide], bits)
  room = (zero_point > qmin) & (zero_point < qmax)
  first, last = low[wide] / scale + zero_point, high[wide] / scale + zero_point
  assert (first >= qmin - 1e-4)[room].all() and (last <= qmax + 1e-4)[room].all()
  assert ((first < qmin + 1e-4) | (last > qmax - 1e-4))[room].all()
  assert room.mean() > 0.1


def test_pixels_of_a_symmetric_range_lie_near_the_grid():
  # v / 127.5 - 1 over [-1, 1]: zero point 0 and scale 1 / 127, not 2 / 255 with each pixel on a tie.
  scale, zero_point = affine_grid(-1.0, 1.0, 8)
  assert (scale.tolist(), zero_point.tolist()) == ([np.float32(1 / 127)], [0])


@pytest.mark.parametrize("bits", [*BITS, 16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_tensorflow_and_numpy_choose_the_same_grid_bit_for_bit(bits, seed):
  low, high = random_ranges(seed)
  scale, zero_point = affine_grid(low, high, bits)
  scale_tf, zero_point_tf = affine_grid_tf(tf.constant(low), tf.constant(high), bits)
  assert_same_bits(scale, scale_tf)
  assert_same_bits(zero_point.astype(np.float64), zero_point_tf + 0.0)
  magnitude = np.maximum(np.abs(low), np.abs(high))
  assert_same_bits(symmetric_grid(magnitude, bits),
                   symmetric_grid_tf(tf.constant(magnitude), bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("unit", [1.0, 0.1, 1 / 3])
def test_both_decide_the_ties_of_round_ranges_alike(bits, unit):
  # low * 255 / (high - low) is half way between integers for many of them.
  low, high = unit * np.indices((60, 60)).reshape(2, -1) * np.array([[-1], [1]])
  scale, zero_point = affine_grid(low, high, bits)
  scale_tf, zero_point_tf = affine_grid_tf(tf.constant(low), tf.constant(high), bits)
  assert_same_bits(scale, scale_tf)
  np.testing.assert_array_equal(zero_point, zero_point_tf)


@pytest.mark.parametrize("bits", BITS)
def test_float32_ranges_give_the_same_grid_in_both(bits):
  low, high = (end.astype(np.float32) for end in random_ranges(11))
  compiled = tf.function(affine_grid_tf, jit_compile=False)
  scale, zero_point = affine_grid(low, high, bits)
  scale_tf, zero_point_tf = compiled(tf.constant(low), tf.constant(high), bits)
  assert_same_bits(scale, scale_tf)
  np.testing.assert_array_equal(zero_point, zero_point_tf)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_float64_fake_quantize_is_quantize_then_dequantize_bit_for_bit(bits, narrow, seed):
  rng = np.random.default_rng(seed)
  low, high = random_ranges(seed, count=64)
  if narrow:
    scale = symmetric_grid(np.maximum(np.abs(low), np.abs(high)), bits)
    zero_point = np.zeros(64, np.int64)
  else:
    scale, zero_point = affine_grid(low, high, bits)
  # Grid points, ties, their float32 neighbours, and values far outside.
  steps = rng.integers(-2 ** bits, 2 ** bits + 1, (200, 64)) + rng.choice([0, 0.5, 0.25], (200, 64))
  x = (steps * scale).astype(np.float32)
  x = np.nextafter(x, (x + rng.choice([-1, 0, 1], x.shape)).astype(np.float32), dtype=np.float32)
  q = quantize(x, scale, zero_point, axis=(1,), bits=bits, narrow=narrow)
  faked = fake_quantize(tf.constant(x), GridTensors(scale, zero_point, bits, narrow), dtype=tf.float64)
  # + 0: the grid has one zero, TensorFlow's product may bear a sign.
  assert_same_bits(dequantize(q, scale, zero_point, axis=(1,)) + np.float32(0), faked.numpy() + np.float32(0))


def test_a_scale_that_float32_cannot_hold_is_rounded_once():
  # 0.1 is no float32; x / 0.1 and x / float32(0.1) differ in the tie below.
  scale = symmetric_grid(12.7, 8)
  assert float(scale[0]) != 0.1 and scale[0] == np.float32(0.1)
  x = np.float64(scale[0]) * 2.5  # a tie of the rounded scale: goes to 2; 2.5 of the exact one goes to 3
  assert x / 0.1 > 2.5
  assert quantize(x, scale, 0, bits=8) == 2
  assert quantize(x, 0.1, 0, bits=8) == 3


def test_the_quotient_is_formed_in_float64():
  # In float32 the quotient is the tie 2.5 and would go to 2; in truth it lies just above.
  scale = np.float32(3.0)
  x = np.float64(7.5) * (1 + 1e-9)
  assert np.float32(x) / scale == 2.5
  assert quantize(x, scale, 0, bits=8) == 3


def test_quantizing_a_grid_point_gives_its_integer():
  for seed in range(5):
    scale, zero_point = affine_grid(*random_ranges(seed, count=300), 8)
    q = np.repeat(np.arange(-128, 128)[:, None], 300, axis=1)
    back = dequantize(q, scale, zero_point, axis=(1,))
    np.testing.assert_array_equal(quantize(back, scale, zero_point, bits=8, axis=(1,)), q)


# --- channel axes ----------------------------------------------------------------------------------


def test_along_puts_channels_on_their_axes():
  shape = (2, 2, 3, 4)
  assert numerics.along(np.arange(4), shape, (3,)).shape == (1, 1, 1, 4)
  assert numerics.along(np.arange(3), shape, (2,)).shape == (1, 1, 3, 1)
  # Output channel of a depthwise kernel: in * multipliers + multiplier.
  spread = numerics.along(np.arange(12), shape, (2, 3))
  assert spread.shape == (1, 1, 3, 4) and spread[0, 0, 2, 1] == 2 * 4 + 1
  assert numerics.along([7], shape, (3,)).shape == numerics.along([7], shape, None).shape == ()


def test_depthwise_grids_by_hand():
  x = np.float64([[[[1.0, 1.0], [1.0, 1.0]]]])  # [1, 1, in 2, multiplier 2]
  q = quantize(x, [1.0, 0.5, 0.25, 0.125], [0, 0, 0, 1], bits=8, axis=(2, 3))
  assert q.reshape(-1).tolist() == [1, 2, 4, 9]
  assert dequantize(q, [1.0, 0.5, 0.25, 0.125], [0, 0, 0, 1], axis=(2, 3)).tolist() == x.tolist()


@pytest.mark.parametrize("axis", [(0,), (1,), (2,), (3,), (2, 3), (0, 3)])
def test_per_channel_is_each_channel_alone(axis):
  shape = (2, 3, 4, 5)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    moved = np.moveaxis(x, axis, range(len(axis)))
    channels = moved.reshape(-1, *moved.shape[len(axis):])
    scale = rng.uniform(0.01, 0.1, len(channels)).astype(np.float32)
    zero_point = rng.integers(-100, 100, len(channels))
    whole = quantize(x, scale, zero_point, bits=8, axis=axis)
    alone = [quantize(c, s, z, bits=8) for c, s, z in zip(channels, scale, zero_point)]
    back = np.moveaxis(whole, axis, range(len(axis))).reshape(channels.shape)
    np.testing.assert_array_equal(back, alone)


def test_along_inputs_by_hand():
  values = np.arange(4.0)
  assert numerics.along_inputs(values, (3, 3, 4, 6), 2).shape == (1, 1, 4, 1)
  assert numerics.along_inputs(values, (4, 6), 0).shape == (4, 1)
  assert numerics.along_inputs(values, (3, 3, 6, 4), 3).shape == (1, 1, 1, 4)
  # Two groups: outputs 0..2 read inputs 0, 1; outputs 3..5 read inputs 2, 3.
  spread = numerics.along_inputs(values, (3, 3, 2, 6), 2)
  assert spread[0, 0].tolist() == [[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]


@pytest.mark.parametrize("kind, groups", [("Conv2D", 1), ("Conv2D", 2), ("Conv2D", 4), ("Dense", 1),
                                          ("DepthwiseConv2D", 1), ("Conv2DTranspose", 1)])
def test_along_inputs_of_a_kernel_is_scaling_the_input(kind, groups):
  layer = {"Conv2D": lambda: layers.Conv2D(8, 2, groups=groups), "Dense": lambda: layers.Dense(5),
           "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(2, depth_multiplier=3),
           "Conv2DTranspose": lambda: layers.Conv2DTranspose(5, 2)}[kind]()
  rng = np.random.default_rng(groups)
  x = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
  scale = rng.uniform(0.1, 3, 4).astype(np.float32)
  expected = layer(x * scale)
  kernel = layer.weights[0]
  axis = {"Conv2DTranspose": 3, "Dense": 0}.get(kind, 2)
  kernel.assign(kernel.numpy() * numerics.along_inputs(scale, kernel.shape, axis))
  np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_scale_is_the_float32_product():
  input_scale, kernel_scale = np.float32([0.1]), np.float32([0.3, 1e-9])
  product = numerics.bias_scale(input_scale, kernel_scale)
  assert product.dtype == np.float32
  assert product.tolist() == [np.float32(0.1) * np.float32(0.3), np.float32(0.1) * np.float32(1e-9)]


def test_short_scales_by_hand():
  # 1 + 2^-7 is the next bfloat16 after 1; 1 + 2^-8 is a tie and goes to the even one, 1.
  steps = np.float32([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-7])
  np.testing.assert_array_equal(numerics.short_scale(steps), np.float32([1, 1 + 2.0**-7, 1 + 2.0**-7]))
  np.testing.assert_array_equal(numerics.short_scale([1 + 2.0**-20, 1.0], up=True),
                                np.float32([1 + 2.0**-7, 1]))


def test_integers_stay_on_a_short_scale():
  scale = np.exp(np.random.default_rng(0).uniform(-20, 3, 2000)).astype(np.float32)
  short, integers = numerics.short_scale(scale), np.arange(-127, 128)
  assert not (short.view(np.uint32) & 0xFFFF).any()
  for one, other in zip(scale, short):
    np.testing.assert_array_equal(np.rint(np.float64(one) * integers / np.float64(other)), integers)
