"""Which tensor is at fault and which remedy it gets, worked by hand."""

import pytest

from kquant.doctor.choosing import Option, assign, at_fault, choose, threshold

RANGE = Option("range mse", 4.0, 6.0, 0.5)
ROUNDING = Option("closed-form rounding", 2.0, 9.0, 0.5)
WIDE = Option("16 bits", 0.0, 60.0, 0.5, wide=True)
OPTIONS = [RANGE, ROUNDING, WIDE]
NOISE = 16.0


def test_the_threshold_is_the_median_and_three_deviations():
  assert threshold([5.0, 1.0, 2.0, 100.0]) == 3.5 + 3 * 2.0  # deviations 1.5, 2.5, 1.5, 96.5
  assert threshold([2.0, 2.0, 2.0]) == 2.0


@pytest.mark.parametrize("noises, coverage, wanted", [
    ([1.0, 1.0, 1.0, 1.0], 0.8, []),  # none stands out
    ([1.0, 50.0, 1.0, 1.0], 0.8, [1]),
    ([40.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0], 0.8, [2, 0]),
    ([40.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0], 0.5, [2]),
    ([0.0, 0.0, 0.0], 0.8, []),
])
def test_tensors_at_fault_stand_out_and_make_most_of_the_noise(noises, coverage, wanted):
  assert at_fault(noises, coverage) == wanted


@pytest.mark.parametrize("limit, wanted", [(5.0, RANGE), (4.0, RANGE), (3.0, ROUNDING), (1.0, WIDE)])
def test_the_cheapest_that_is_enough_is_chosen(limit, wanted):
  assert choose(OPTIONS, NOISE, limit) is wanted


def test_where_none_is_enough_the_least_noise_counts():
  assert choose(OPTIONS[:2], NOISE, 1.0) is ROUNDING
  assert choose(OPTIONS, NOISE, -1.0) is WIDE


@pytest.mark.parametrize("most_wide, wanted", [
    (0, [ROUNDING, RANGE, None]),
    (1, [ROUNDING, RANGE, WIDE]),  # left are 2, 4 and 5
    (2, [ROUNDING, WIDE, WIDE]),
    (9, [WIDE, WIDE, WIDE]),
])
def test_sixteen_bits_go_where_most_noise_is_left(most_wide, wanted):
  assert assign([NOISE, 8.0, 5.0], [OPTIONS, [RANGE, WIDE], [WIDE]], 1.0, most_wide) == wanted


def test_sixteen_bits_are_not_spent_where_a_cheaper_remedy_is_enough():
  assert assign([NOISE], [OPTIONS], 2.0, 9) == [ROUNDING]


@pytest.mark.parametrize("option", [
    Option("range mse", 20.0, -1.0, 0.1), Option("range mse", 15.0, 0.2, 0.3)])
def test_what_does_not_help_beyond_chance_is_left_out(option):
  assert choose([option], NOISE, 15.5) is None


def test_nothing_to_choose_from():
  assert choose([], NOISE, 1.0) is None
