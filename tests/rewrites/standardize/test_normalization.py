"""Normalizations over any axes, in float."""

import pytest
from tf_keras import layers

from tests.rewrites.standardize.written import assert_written


@pytest.mark.parametrize("axis", [-1, 1, 2, [1, 2], [2, 3], [1, 3], [1, 2, 3]])
def test_layers_normalize_over_any_axes(axis):
  assert "LayerNormalization" not in assert_written(layers.LayerNormalization(axis), (4, 5, 6))
  assert "UnitNormalization" not in assert_written(layers.UnitNormalization(axis), (4, 5, 6))


@pytest.mark.parametrize("axis, shape", [(1, (4, 5, 6)), (2, (3, 4, 5)), (1, (4, 5)), (-1, (4,))])
def test_groups_lie_along_any_axis(axis, shape):
  assert "GroupNormalization" not in assert_written(layers.GroupNormalization(2, axis=axis), shape)
