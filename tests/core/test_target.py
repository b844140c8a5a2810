"""What the runtime can hold."""

import pytest

from kquant.core.encodings import Encoding
from kquant.core.target import LITERT, TARGETS, target
from kquant.graph.kinds.table import LAYERS


def test_targets_are_found_by_their_name():
  assert target("litert") is LITERT
  for name, found in TARGETS.items():
    assert found.name == name


def test_an_unknown_target_names_the_known_ones():
  with pytest.raises(ValueError, match="Unknown target 'litter'; expected one of litert"):
    target("litter")


@pytest.mark.parametrize("kind, grid, low, high", [
    ("Softmax", Encoding(1 / 256, -128), 0.0, 255 / 256),
    ("Sigmoid", Encoding(1 / 256, -128), 0.0, 255 / 256),
    ("Tanh", Encoding(1 / 128, 0), -1.0, 127 / 128)])
def test_fixed_grids_of_the_runtime_by_hand(kind, grid, low, high):
  fixed = LITERT.fixed[LAYERS[kind].fixed_grid]
  assert fixed == grid
  assert [end.tolist() for end in fixed.range] == [[low], [high]]


def test_every_kind_of_role_fixed_has_a_grid_and_no_other_does():
  assert all(bool(facts.fixed_grid) == (facts.role == "fixed") for facts in LAYERS.values())
  fixed = {facts.fixed_grid for facts in LAYERS.values() if facts.role == "fixed"}
  for found in TARGETS.values():
    assert set(found.fixed) == fixed
    assert all(grid.bits in found.activation_bits and not grid.narrow for grid in found.fixed.values())


def test_fixed_grids_of_16_bits_hold_1_and_are_symmetric():
  for name in LITERT.fixed:
    grid = LITERT.fixed_grid(name, 16)
    step = 1 if name == "mask" else 1 / 32768
    assert grid == Encoding(step, 0, 16) and LITERT.fixed_grid(name, 8) == LITERT.fixed[name]
  conv = LAYERS["Conv2D"].fixed_grid
  assert LITERT.fixed_grid(conv, 16) is None is LITERT.fixed_grid(conv, 8)


def test_accumulator_limits_of_dense_and_other_layers_by_widths():
  int8, int4 = Encoding(0.1, 0, 8), Encoding(0.1, 0, 4)
  assert LITERT.accumulator_limits(False, int8, 8) == (2**30, 2**31)
  assert LITERT.accumulator_limits(False, int4, 8) == (2**30, 2**31)
  assert LITERT.accumulator_limits(True, int4, 8) == (2**26, 2**27)  # 16 times as large in the delegate
  assert LITERT.accumulator_limits(True, int4, 16) == (2**32, 2**47)


def test_limits_leave_room_in_32_bits():
  assert LITERT.largest_bias <= 2**31 and LITERT.largest_accumulator == 2**31
  assert LITERT.weight_bits == tuple(range(2, 9))
