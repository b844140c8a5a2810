"""XnorQuantizer: the paper's weights by hand, and its float branch."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.quantizers import XnorQuantizer
from tests.quantizers.test_dorefa import KERNEL, fitted


@pytest.mark.parametrize("axis", [None, (3,)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_are_those_of_the_paper(bits, axis):
  quantizer, most = XnorQuantizer(bits=bits, axis=axis), 2 ** bits - 1
  bent = np.tanh(KERNEL.astype(np.float64))
  unit = np.rint((bent / (2 * np.abs(bent).max()) + 0.5) * most) / most
  values = quantizer.transform(KERNEL, fitted(quantizer, KERNEL))
  np.testing.assert_allclose(values, np.abs(KERNEL).mean() * (2 * unit - 1), rtol=1e-5)


def test_32_bits_are_normalized_and_not_rounded():
  quantizer = XnorQuantizer(bits=32)
  values = quantizer(tf.constant(KERNEL), False, fitted(quantizer, KERNEL)).numpy()
  bent = np.tanh(KERNEL)
  np.testing.assert_allclose(values, np.abs(KERNEL).mean() * bent / np.abs(bent).max(), rtol=1e-5)


def test_other_widths_are_errors():
  with pytest.raises(ValueError, match="XnorQuantizer: .* of 1 to 8 bits"):
    XnorQuantizer(bits=16)
