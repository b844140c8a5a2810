import numpy as np
import pytest

from kquant.core import nested_codes as nested

ALL = np.arange(9, 248, dtype=np.uint8)  # every code of 8 bits


def test_by_hand():
  # v = 0.4: 119 v = 47.6, code 48 + 128 = 176 = 0b10110000
  codes = nested.codes_of(np.rint(119 * np.array([0.4, -1.0, 1.0])))
  assert codes.tolist() == [0b10110000, 9, 247]
  assert nested.narrower(codes, 3).tolist() == [0b101, 0, 7]
  assert nested.integers_of(codes, 3).tolist() == [3, -7, 7]  # 2 * 5 - 7
  assert nested.integers_of(codes, 4).tolist() == [3, -7, 7]  # (176 + 8) >> 4 = 11; 48 / 16 = 3
  assert nested.integers_of(codes, 5).tolist() == [13, -29, 29]  # 2 * 22 + 1 - 32; 13 * 4 = 52


@pytest.mark.parametrize("bits", nested.WIDTHS)
def test_shifted_codes_are_floor_codes_and_rounded_at_four_bits(bits):
  v = np.random.default_rng(bits).uniform(-1, 1, 10_000)
  floor_codes = np.floor(2 ** bits * (119 * v + 128.5 + (8 if bits == 4 else 0)) / 256)
  np.testing.assert_array_equal(nested.narrower(nested.codes_of(np.rint(119 * v)), bits), floor_codes)


@pytest.mark.parametrize("bits", nested.WIDTHS)
def test_integers_and_codes_tell_each_other(bits):
  integers = nested.integers_of(ALL, bits)
  np.testing.assert_array_equal(nested.codes_of(integers, bits), nested.narrower(ALL, bits))
  assert (integers.min(), integers.max()) == (-nested.largest_integer(bits), nested.largest_integer(bits))
  assert (np.diff(integers.astype(int)) >= 0).all()


@pytest.mark.parametrize(("bits", "room"), [(1, 4), (2, 4), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8)])
def test_integers_fit_what_stores_them(bits, room):
  assert nested.grid_bits(bits) <= room
  assert nested.largest_integer(bits) <= 2 ** (room - 1) - 1


@pytest.mark.parametrize(("bits", "most"), [(8, 0.5), (7, 1.5), (6, 2.5), (5, 4.5), (4, 8.5), (3, 16.5),
                                            (2, 32.5)])
def test_an_integer_is_within_its_bucket(bits, most):
  """In steps of 8 bits: half a bucket, and half a step where it lies between two."""
  error = nested.integers_of(ALL, bits) * nested.steps(bits) - (ALL - 128.0)
  assert np.abs(error).max() + 0.5 <= most


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 6, 7, 8])
def test_other_widths_are_the_leading_bits(bits):
  np.testing.assert_array_equal(nested.narrower(ALL, bits), ALL >> (8 - bits))


@pytest.mark.parametrize("bits", nested.WIDTHS)
def test_codes_within_are_those_that_shift_to_a_code(bits):
  first, last = nested.codes_within(nested.narrower(ALL, bits), bits)
  assert (first <= ALL).all() and (last >= ALL).all()
  assert set(last - first) == {2 ** (8 - bits) - 1}


def test_four_bits_are_rounded_not_floored():
  eight = ALL.astype(int) - 128
  np.testing.assert_array_equal(nested.integers_of(ALL, 4), np.floor(eight / 16 + 0.5))


@pytest.mark.parametrize("bits", [0, 9, 32])
def test_other_widths_are_errors(bits):
  with pytest.raises(ValueError, match=f"1 to 8 bits, got {bits}"):
    nested.factor_and_offset(bits)


@pytest.mark.parametrize(("integers", "bits"), [([0], 1), ([8], 4), ([-129], 8), ([120, 4], 6)])
def test_integers_of_no_code_are_errors(integers, bits):
  with pytest.raises(ValueError, match="no nested code"):
    nested.codes_of(integers, bits)
