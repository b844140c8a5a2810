"""NestedQuantizer: integers by hand, truncation at every width, gradient, what is stored."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.core import nested_codes
from kquant.quantizers import DoReFaQuantizer, NestedQuantizer
from tests.quantizers.test_dorefa import KERNEL, assert_gradient_is_of_the_unrounded, fitted

WIDTHS = nested_codes.WIDTHS


def stored(bits, axis=(3,), kernel=KERNEL):
  """Returns (integers, encoding, values) of a kernel at a width."""
  quantizer = NestedQuantizer(bits=bits, axis=axis)
  variables = fitted(quantizer, kernel)
  encoding, values = quantizer.encoding(variables), quantizer.transform(kernel, variables)
  return encoding.quantize(values), encoding, values


def test_two_bits_by_hand():
  # v = tanh(w) / 0.5: -1, -0.5, 0, 0.6, 1; 119 v rounded: -119, -60 (a tie of -59.5), 0, 71, 119;
  # + 128: 9, 68, 128, 199, 247; >> 6: 0, 1, 2, 3, 3; 2 c - 3: -3, -1, 1, 3, 3.
  kernel = np.arctanh(np.float32([-0.5, -0.2501, 0.0, 0.3, 0.5]))
  quantizer = NestedQuantizer(bits=2)
  variables = fitted(quantizer, kernel)
  integers = np.array([-3, -1, 1, 3, 3])
  assert quantizer.codes(kernel).tolist() == [9, 68, 128, 199, 247]
  scale = np.sum(np.abs(kernel * integers)) / 29
  np.testing.assert_allclose(variables["scale"], [scale], rtol=1e-6)
  np.testing.assert_allclose(quantizer.transform(kernel, variables), scale * integers, rtol=1e-6)


@pytest.mark.parametrize("axis", [None, (3,), (2, 3)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_is_shifted_from_eight_bits(bits, axis):
  eight, _, _ = stored(8, axis)
  integers, encoding, values = stored(bits, axis)
  codes = nested_codes.codes_of(eight)
  np.testing.assert_array_equal(nested_codes.codes_of(integers, bits), nested_codes.narrower(codes, bits))
  np.testing.assert_array_equal(NestedQuantizer(bits=bits, axis=axis).codes(KERNEL), codes)
  np.testing.assert_array_equal(encoding.dequantize(integers), values)
  assert encoding.bits == nested_codes.grid_bits(bits)


def test_truncating_the_papers_code_is_another_code():
  """The trap: why this quantizer exists. Shares of Gaussian weights, in percent."""
  weights = np.random.default_rng(0).normal(size=200_000).astype(np.float32) * 0.1

  def codes(bits):
    quantizer = DoReFaQuantizer(bits=bits)
    return (quantizer._integers(tf.constant(weights)).numpy() + 2 ** bits - 1).astype(int) // 2

  changed = {bits: 100 * np.mean(codes(8) >> (8 - bits) != codes(bits)) for bits in (1, 2, 4, 6)}
  assert changed[1] == 0 and all(1 < changed[bits] < 12 for bits in (2, 4, 6)), changed


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradient_is_that_of_the_unrounded_function(bits):
  assert_gradient_is_of_the_unrounded(NestedQuantizer(bits=bits, axis=(3,)), 119 / nested_codes.steps(bits))


def test_scale_is_positive_where_rounding_changes_signs():
  kernel = np.full((1, 1, 100, 1), -1e-4, np.float32)  # round to 0, whose code is that of 1 at 1 bit
  kernel[0, 0, 0] = 0.5
  _, encoding, _ = stored(1, (3,), kernel)
  np.testing.assert_allclose(encoding.scale, np.abs(kernel).mean(), rtol=1e-6)


def test_dead_channel_is_next_to_nothing():
  kernel = KERNEL.copy()
  kernel[..., 1] = 0.0
  _, _, values = stored(3, (3,), kernel)
  assert np.isfinite(values).all() and np.abs(values[..., 1]).max() < 1e-6
