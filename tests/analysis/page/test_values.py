"""What the figures show: distributions on a grid, and ranges of kernels, worked by hand."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.analysis.page import figures
from kquant.analysis.page.values import histograms, kernel_ranges


@pytest.fixture(scope="module")
def dense():
  """A layer of two channels with kernels [1, -2, 0] and [0.5, 0.25, 0], its result and its analysis."""
  layer = keras.layers.Dense(2, name="dense", input_shape=(3,))
  model = keras.Sequential([layer])
  layer.set_weights([np.array([[1, 0.5], [-2, 0.25], [0, 0]], np.float32), np.zeros(2, np.float32)])
  images = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
  result = kq.quantize(model, images, effort=None)
  return result, kq.analyze(result, images), [images]


def test_histogram_counts_float_values(dense):
  result, analysis, images = dense
  rows = [row for row in analysis.rows if row.name == "dense" and row.part == "activation"]
  (found,) = histograms(result.qmodel, result.float_params, rows, images)
  # outputs (1, 0.5) twice, (-2, 0.25), (0, 0), and the smallest and the largest once more
  assert found.counts.sum() == 10 and found.name == "dense"
  centres = (found.edges[1:] + found.edges[:-1]) / 2
  width = found.edges[1] - found.edges[0]
  assert {value: int(found.counts[np.abs(centres - value) <= 0.51 * width].sum())
          for value in (-2.0, 0.25, 0.5, 1.0)} == {-2.0: 2, 0.25: 1, 0.5: 2, 1.0: 3}
  assert found.range == pytest.approx((-2, 1), abs=0.02) and found.step == pytest.approx(3 / 255, rel=1e-3)
  assert found.edges[0] <= -2 and found.edges[-1] >= 1


def test_kernel_ranges_are_by_output_channel(dense):
  result, analysis, _ = dense
  (found,) = kernel_ranges(result.qmodel, result.float_params, analysis.rows)
  np.testing.assert_allclose(found.before, [[-2, 0], [1, 0.5]])
  np.testing.assert_allclose(found.after, [[-2, 0], [1, 0.5]], atol=2 / 127)
  np.testing.assert_allclose(found.limit, [2, 0.5], rtol=1e-6)


def test_rows_of_the_other_part_are_left_out(dense):
  result, analysis, images = dense
  weights = [row for row in analysis.rows if row.part == "weights"]
  assert histograms(result.qmodel, result.float_params, weights, images) == []
  assert kernel_ranges(result.qmodel, None, [row for row in analysis.rows if row not in weights]) == []


def test_long_names_keep_both_ends():
  name = "expanded_conv_10/squeeze_excite/Conv_1/BiasAdd"
  assert len(figures.short(name)) <= 38
  assert figures.short(name).startswith("expanded_conv_10") and figures.short(name).endswith("Conv_1/BiasAdd")
  assert figures.short("conv") == "conv"
