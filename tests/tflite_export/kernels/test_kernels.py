"""The integer kernels: primitives by hand, rules by small programs, all kinds by fuzz against LiteRT."""

import numpy as np
import pytest

from kquant.core.encodings import activation_grid
from tests.tflite_export import faults, operator_fuzz
from tests.tflite_export.random_chains import random_chain
from tests.tflite_export.random_operators import DRAWS, KINDS
from tflite_export.file import writer
from tflite_export.kernels import multipliers
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.delegation import MODES
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import not_simulated, simulate

CASES = 60
"""Programs for each kind and mode, a third of them for int4 and int16; the command line runs thousands."""


# --- primitives by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("real, q, exponent", [
    (0.5, 2**30, 0), (1.0, 2**30, 1), (0.75, 3 * 2**29, 0), (3.0, 3 * 2**29, 2), (2.0**-32, 2**30, -31),
    (1 - 2.0**-40, 2**30, 1),  # The mantissa rounds up to 1.
    (2.0**-33, 0, 0)])
def test_quantize_multiplier(real, q, exponent):
  assert tuple(int(part) for part in multipliers.quantize_multiplier(real)) == (q, exponent)


def test_quantize_multiplier_per_channel():
  q, exponent = multipliers.quantize_multiplier(np.array([0.5, 3.0]))
  assert q.tolist() == [2**30, 3 * 2**29] and exponent.tolist() == [0, 2]


@pytest.mark.parametrize("v, away, up", [
    (5, 3, 3), (-5, -3, -2), (4, 2, 2), (-1, -1, 0), (1, 1, 1), (0, 0, 0)])
def test_shifts_by_one_bit_round_halves(v, away, up):
  assert multipliers.shift_away(np.int64(v), 1) == away and multipliers.shift_up(np.int64(v), 1) == up


def test_shifts_by_no_bits_change_nothing():
  v = np.array([-3, -1, 0, 2], np.int64)
  assert multipliers.shift_away(v, 0).tolist() == multipliers.shift_up(v, 0).tolist() == v.tolist()
  assert multipliers.shift_away(v, np.array([1, 0, 1, 2])).tolist() == [-2, -1, 0, 1]


@pytest.mark.parametrize("v, product", [(3, 2), (-3, -1), (2, 1), (-2, -1), (2**31 - 1, 2**30)])
def test_high_multiply_by_a_half_rounds_up(v, product):
  assert multipliers.high_multiply(np.int64(v), np.int64(2**30)) == product


@pytest.mark.parametrize("v, real, double, double_up, once, exact, floats", [
    (5, 0.25, 2, 2, 1, 1, 1),         # 1.25: 2.5 -> 3, then 1.5 -> 2
    (-6, 0.25, -2, -1, -1, -2, -2),   # -1.5: -3, then -1.5
    (-10, 0.25, -3, -2, -2, -3, -2),  # -2.5: -5, then -2.5
    (10, 0.25, 3, 3, 3, 3, 2),        # 2.5
    (5, 3.0, 15, 15, 15, 15, 15),
    (2**24 + 1, 1.0, 2**24 + 1, 2**24 + 1, 2**24 + 1, 2**24 + 1, 2**24)])
def test_products(v, real, double, double_up, once, exact, floats):
  functions = (multipliers.multiply_double, multipliers.multiply_double_up, multipliers.multiply_once,
               multipliers.multiply_exact, multipliers.multiply_float)
  found = [int(function(np.array([v]), real)[0]) for function in functions]
  assert found == [double, double_up, once, exact, floats]


def test_products_overflow_as_int32():
  v = np.array([2**30, -2**30])
  assert multipliers.multiply_double(v, 3.0).tolist() == [0, 0]  # 2^30 << 2 leaves nothing of 32 bits.
  assert multipliers.multiply_exact(v, 3.0).tolist() == [-2**31, -2**31]
  assert multipliers.cast_int32(np.array([3e9, -3e9, 5.0, -7.0])).tolist() == [-2**31, -2**31, 5, -7]
  assert multipliers.wrap_int32(np.array([2**31, -2**31 - 1, 7])).tolist() == [-2**31, 2**31 - 1, 7]


def test_round_away():
  x = np.array([0.5, -0.5, 2.5, -2.5, 0.49999997, -1.2], np.float32)
  assert multipliers.round_away(x).tolist() == [1, -1, 3, -3, 0, -1]


@pytest.mark.parametrize("seed", range(5))
def test_every_product_is_next_to_the_exact_one(seed):
  rng = np.random.default_rng(seed)
  v, real = rng.integers(-2**20, 2**20, 5000), 2.0**rng.uniform(-25, 0, 5000)
  for function in operator_fuzz.CANDIDATES:
    assert np.abs(function(v, real) - v * real).max() <= 1.0, function


# --- rules of LiteRT, each shown by numbers worked by hand -------------------------------------------


def unary(kind, x_grid, y_grid, *, width=1, version=2, x_dtype="int8", shape=None, y_shape=None, constants=(),
          **options) -> IntProgram:
  """A program of one operator over x [1, width]; constants are int32."""
  program = IntProgram(inputs=["x"], outputs=["y"])
  shape = shape or (1, width)
  program.add_tensor(IntTensor("x", shape, x_dtype, *(x_grid or (None, None))))
  names = [program.add_tensor(IntTensor(f"c{i}", np.shape(data), "int32", data=data))
           for i, data in enumerate(constants)]
  program.add_tensor(IntTensor("y", y_shape or shape, "int8", *y_grid))
  program.ops.append(IntOp(kind, ["x", *names], ["y"], options, version, "layer"))
  return program


def weighted(kind, *, bias, real, zero_point=0, size=1, channels=1) -> IntProgram:
  """A layer of weights 0 whose accumulator is its bias; s_x = s_w = 1, s_y = 1 / real."""
  program = IntProgram(inputs=["x"], outputs=["y"])
  flat, n = kind == "FULLY_CONNECTED", channels
  shape = {"CONV_2D": (n, size, size, n), "DEPTHWISE_CONV_2D": (1, size, size, n),
           "FULLY_CONNECTED": (n, n)}[kind]
  axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
  program.add_tensor(IntTensor("x", (1, n) if flat else (1, size, size, n), "int8", [1], [0]))
  program.add_tensor(IntTensor("w", shape, "int8", np.ones(n), np.zeros(n), axis, np.zeros(shape)))
  program.add_tensor(IntTensor("b", (n,), "int32", np.ones(n), np.zeros(n), 0, np.full(n, bias)))
  program.add_tensor(IntTensor("y", (1, n) if flat else (1, 1, 1, n), "int8", [1 / real], [zero_point]))
  options = {} if flat else {"padding": "VALID", "stride_h": 1, "stride_w": 1}
  if kind == "DEPTHWISE_CONV_2D":
    options["depth_multiplier"] = 1
  program.ops.append(IntOp(kind, ["x", "w", "b"], ["y"], options, 5 if flat else 3, "layer"))
  return program


def agreed(program: IntProgram, x, mode: str) -> list:
  """Returns the output of one image, flat, after the simulator and LiteRT have agreed on it."""
  shape, dtype = program.tensors["x"].shape, program.tensors["x"].dtype
  image = np.broadcast_to(np.asarray(x, dtype), shape[1:]).reshape(shape)
  (expected,) = Runtime(writer.to_bytes(program), kernels=mode).run([image])
  found = simulate(program, [image], mode=mode)["y"]
  np.testing.assert_array_equal(found, expected)
  return found.reshape(-1).tolist()


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_ties_of_weighted_operators(kind):
  program = weighted(kind, bias=-10, real=0.25)  # -2.5
  assert agreed(program, 0, "reference") == [-3]
  assert agreed(program, 0, "xnnpack") == [-2]


def test_reference_dense_rounds_once_and_convolution_twice():
  # 1.25: the dense layer takes the product in float64, the convolution rounds 2.5 up first.
  assert agreed(weighted("FULLY_CONNECTED", bias=5, real=0.25), 0, "reference") == [1]
  assert agreed(weighted("CONV_2D", bias=5, real=0.25), 0, "reference") == [2]


@pytest.mark.parametrize("kind, size, channels, expected", [
    ("FULLY_CONNECTED", 1, 4, 127), ("CONV_2D", 1, 4, 127), ("CONV_2D", 3, 1, -128),
    ("DEPTHWISE_CONV_2D", 3, 4, -128), ("DEPTHWISE_CONV_2D", 6, 4, 127)])
def test_delegate_wraps_around_below_int32_but_not_in_depthwise_kernels(kind, size, channels, expected):
  program = weighted(kind, bias=-2**30, real=3.5, zero_point=-102, size=size, channels=channels)
  assert agreed(program, 0, "xnnpack") == [expected] * channels
  agreed(program, 0, "reference")


@pytest.mark.parametrize("zero_point, reference, xnnpack", [
    (101, 103, 102), (100, 102, 102), (-128, -126, -126)])
def test_clamp_of_relu6_is_rounded_with_the_zero_point_in_the_delegate(zero_point, reference, xnnpack):
  # 6 / 4 = 1.5: away from zero it is 2; 1.5 + 101 = 102.5 goes to the even 102.
  grid = ([4.0], [zero_point])
  program = unary("MAX_POOL_2D", grid, grid, shape=(1, 1, 1, 1), padding="VALID", stride_h=1, stride_w=1,
                  filter_height=1, filter_width=1, fused_activation_function="RELU6")
  assert agreed(program, 127, "reference") == [reference]
  assert agreed(program, 127, "xnnpack") == [xnnpack]


@pytest.mark.parametrize("zero_point, reference, xnnpack", [(0, 1, 0), (1, 2, 2), (2, 3, 2), (-3, -2, -2)])
def test_mean_is_rounded_with_the_zero_point_in_the_delegate(zero_point, reference, xnnpack):
  program = unary("MEAN", ([1.0], [0]), ([1.0], [zero_point]), shape=(1, 2, 1), y_shape=(1, 1),
                  constants=([1],), keep_dims=False)
  assert agreed(program, [[1], [0]], "reference") == [reference]  # 0.5
  assert agreed(program, [[1], [0]], "xnnpack") == [xnnpack]


def test_stand_alone_relu_divides_the_scales_in_float32():
  # s_x / s_y is 1.25 - 4.5e-8, in float32 1.25; 26 * 1.25 = 32.5.
  scales = np.nextafter(np.float32([1.25, 1.0]), np.float32(0))
  program = unary("RELU", ([scales[0]], [0]), ([scales[1]], [0]))
  assert agreed(program, 26, "reference") == agreed(program, 26, "xnnpack") == [33]


def test_requantizing_outside_of_the_delegate_rounds_ties_by_position():
  # -6 / 4 = -1.5: vectors of 16 round up, the 17th element away from zero.
  program = unary("QUANTIZE", ([1.0], [128]), ([4.0], [0]), width=17, x_dtype="uint8")
  assert agreed(program, 122, "xnnpack") == [-1] * 16 + [-2]
  assert agreed(program, 122, "reference") == [-2] * 17


@pytest.mark.parametrize("zero_point, reference", [(0, -128), (-1, 127)])
def test_reference_quantize_of_huge_floats_overflows(zero_point, reference):
  program = unary("QUANTIZE", None, ([1.0], [zero_point]), x_dtype="float32", version=1, width=2)
  assert agreed(program, [1e30, -1e30], "reference") == [reference, reference]
  assert agreed(program, [1e30, -1e30], "xnnpack") == [127, -128]


def test_quantize_of_floats_divides_in_the_reference_and_multiplies_in_the_delegate():
  program = unary("QUANTIZE", None, ([0.5], [0]), x_dtype="float32", version=1, width=3)
  assert agreed(program, [0.25, 0.75, -0.25], "reference") == [1, 2, -1]
  assert agreed(program, [0.25, 0.75, -0.25], "xnnpack") == [0, 2, 0]


@pytest.mark.parametrize("old, new", [(248, 371), (256, 376), (393, 313), (354, 217)])
@pytest.mark.parametrize("kind", ["RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"])
def test_places_of_large_resizes_are_float32(kind, old, new):
  grid = ([0.1], [0])
  program = unary(kind, grid, grid, shape=(1, 1, old, 1), y_shape=(1, 1, new, 1), version=3,
                  constants=([1, new],), align_corners=False, half_pixel_centers=True)
  x = np.random.default_rng(0).integers(-128, 128, (1, old, 1))
  for mode in MODES:
    agreed(program, x, mode)


def test_reference_softmax_of_many_equal_elements_is_refused_since_the_kernel_aborts():
  grids = ([0.1], [0]), ([1 / 256], [-128])
  program = unary("SOFTMAX", *grids, width=512, beta=1.0)
  image = np.zeros((1, 512), np.int8)
  with pytest.raises(ValueError, match="SOFTMAX of layer 'layer': the reference kernel ends the process"):
    simulate(program, [image], mode="reference")
  assert agreed(program, 0, "xnnpack") == [-127] * 512  # 1/512 is half a step.
  assert agreed(unary("SOFTMAX", *grids, width=511, beta=1.0), 0, "reference") == [-127] * 511


def test_reference_softmax_of_tiny_steps_is_refused_since_the_kernel_aborts():
  output, beta = ([1 / 256], [-128]), 1.0
  with pytest.raises(ValueError, match="SOFTMAX of layer 'layer': the reference kernel ends the process"):
    simulate(unary("SOFTMAX", ([2.0**-26], [0]), output, width=4, beta=beta), [np.zeros((1, 4), np.int8)],
             mode="reference")
  smallest = activation_grid(0.0, 0.0, bits=8, symmetric=False).scale[0]
  program = unary("SOFTMAX", ([smallest], [0]), output, width=4, beta=beta)
  assert agreed(program, 0, "reference") == agreed(program, 0, "xnnpack") == [-64] * 4


@pytest.mark.parametrize("mode", MODES)
def test_softmax_rounds_the_largest_number_below_a_half_down(mode):
  program = unary("SOFTMAX", ([0.0016], [0]), ([1 / 256], [-128]), shape=(1, 2048, 503), beta=1.0)
  x = np.random.default_rng(2).integers(-20, 21, (2048, 503))  # nine of its quotients are 0.49999997
  agreed(program, x, mode)


# --- fuzz ------------------------------------------------------------------------------------------


def test_kernels_and_draws_cover_every_operator_of_the_writer():
  assert set(DRAWS) == set(OPERATORS)
  assert {kind for kind, record in OPERATORS.items() if record.kernel is None} == {"LOGISTIC", "TANH"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_exact_on_random_programs(kind, mode):
  cases = CASES // 3 if "/" in kind else CASES
  tally = operator_fuzz.fuzz(kind, mode, cases=cases, seed=1)
  assert not tally.first, tally.first
  assert tally.mismatches == tally.misplaced == 0
  assert tally.cases >= 0.8 * cases and tally.elements > 500


@pytest.mark.parametrize("kind", [
    "ADD", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LEAKY_RELU", "MAX_POOL_2D",
    "MEAN", "MUL", "QUANTIZE", "RESIZE_BILINEAR", "SUB", "TRANSPOSE_CONV"])
def test_the_fuzz_is_sharp_enough_to_tell_the_kernels_apart(kind, monkeypatch):
  monkeypatch.setattr(operator_fuzz, "simulate", lambda program, inputs, mode: simulate(
      program, inputs, mode="reference"))
  assert operator_fuzz.fuzz(kind, "xnnpack", cases=5 * CASES, seed=1).mismatches


def test_mismatches_are_reduced_to_one_element(monkeypatch, capsys):
  for kind in ("CONV_2D", "ADD", "RELU"):
    faults.plant(monkeypatch, kind, faults.off_by_one)
  assert operator_fuzz.main(["--cases=2", "--kinds=CONV_2D,ADD,RELU,SUB", "--modes=reference"]) == 1
  printed = capsys.readouterr().out
  assert "CONV_2D reference, case 0: CONV_2D {'padding':" in printed
  for words in ("by reference, which runs it", "accumulator", "multiply_double_up", "zero point",
                "input element"):
    assert words in printed
  assert "SUB reference," not in printed
  assert operator_fuzz.main(["--cases=2", "--kinds=SUB", "--seed=3"]) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(60))
def test_chains_are_exact(seed, mode):
  case = random_chain(np.random.default_rng([seed, 1]))
  assert not not_simulated(case.program, mode=mode)
  expected = Runtime(writer.to_bytes(case.program), kernels=mode).run_many(case.inputs)
  found = simulate(case.program, case.inputs, mode=mode)
  for name, right in zip(case.program.outputs, expected):
    np.testing.assert_array_equal(found[name], right, err_msg=name)
