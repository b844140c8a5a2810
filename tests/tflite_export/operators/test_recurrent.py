"""The fused LSTM: its arithmetic by hand, its rules, a state that is set in every run."""

import copy
import dataclasses

import numpy as np
import pytest

from tests.tflite_export.random_draws import Draw
from tests.tflite_export.random_recurrent import fill, recurrent
from tflite_export.file import writer
from tflite_export.kernels import fixed_point, lstm
from tflite_export.operators.batch import with_batch
from tflite_export.operators.check import check
from tflite_export.operators.check_weights import ACCUMULATOR_LIMIT, matrix_bounds
from tflite_export.program.memory import activation_memory, tensor_bytes
from tflite_export.program.program import IntOp, IntTensor
from tflite_export.proof.certificate import certify
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import not_simulated, simulate


@pytest.fixture
def case():
  return recurrent(Draw(np.random.default_rng(11)))


def test_the_tables_are_sigmoid_and_tanh():
  q = np.arange(2**16).astype(np.uint16).view(np.int16).astype(np.float64)
  for whole in range(7):
    x = q / 2**(15 - whole)
    assert np.abs(fixed_point.tanh_table(whole) / 2**15 - np.tanh(x)).max() < 4e-4
  assert np.abs(fixed_point.sigmoid_table(3) / 2**15 - 1 / (1 + np.exp(-q / 2**12))).max() < 2e-4
  assert fixed_point.look_up(fixed_point.sigmoid_table(3), np.array([0, 2**15 - 1, -2**15])).tolist() == [
      16384, 32756, 11]
  assert fixed_point.look_up(fixed_point.tanh_table(0), np.array([0, 1, -2])).tolist() == [0, -8, 4]  # coarse


def test_a_step_by_hand(case):
  """All gates are 1 and the candidate is -1: the cell of 1.5 becomes 0.5."""
  program = case.program
  names = program.ops[-1].inputs
  for place in (*lstm.KERNELS, *lstm.RECURRENT_KERNELS):
    program.tensors[names[place]].data[:] = 0
  for place, sign in zip(lstm.BIASES, (1, 1, -1, 1)):
    bias = program.tensors[names[place]]
    bias.data = np.full(bias.shape, sign * 10 / bias.scale[0], np.int32)
  for name in ("y0", "state18", "start18"):
    program.tensors[name].scale, program.tensors[name].zero_point = np.float32([1 / 128]), np.array([5])
  for name in ("state19", "start19"):
    program.tensors[name].scale = np.float32([2.0**-12])
  program.tensors["start19"].data = np.array(1.5 * 2**12, np.int16)
  check(program)
  y = simulate(program, case.inputs)["y0"]
  np.testing.assert_array_equal(y[:, 0], 64)  # 128 tanh(0.5) is 59.15
  np.testing.assert_array_equal(y, Runtime(writer.to_bytes(program)).run_many(case.inputs)[0])


def test_every_run_starts_from_the_state_that_the_file_sets(case):
  runtime = Runtime(writer.to_bytes(case.program))
  x = [case.inputs[0][:1]]
  (first,), (again,) = runtime.run(x), runtime.run(x)
  np.testing.assert_array_equal(first, again)
  alone = copy.deepcopy(case.program)
  del alone.ops[:2]
  runtime = Runtime(writer.to_bytes(alone))
  (first,), (again,) = runtime.run(x), runtime.run(x)
  assert not np.array_equal(first, again)  # which is why there is a FILL
  assert "nothing sets its state 'state18'" in not_simulated(alone)[0]


def test_its_states_take_up_memory_all_the_time(case):
  program = case.program
  alive = {name: tensor_bytes(program, name) for name in ("state18", "state19", "x", "y0")}
  assert activation_memory(program, alignment=1).arena == sum(alive.values())
  program.outputs = [program.add_tensor(IntTensor("z", (1, 10**4), "int8", [1], [0]))]
  program.ops.append(IntOp("RELU", ["y0"], ["z"]))
  expected = 10**4 + sum(alive.values()) - alive["x"]
  assert activation_memory(program, alignment=1).peak == expected


@pytest.mark.parametrize("batch", [1, 3])
def test_the_certificate_is_exact(case, batch):
  program = with_batch(case.program, batch)
  check(program)
  x = np.random.default_rng(0).integers(-128, 128, (6, *program.tensors["x"].shape[1:])).astype(np.int8)
  certificate = certify(writer.to_bytes(program), [x])
  assert certificate["exact"]
  for result in certificate["kernel_sets"].values():
    assert list(result["operators"]) == ["UNIDIRECTIONAL_SEQUENCE_LSTM"]
  bounds = matrix_bounds(program, program.ops[-1])
  assert len(bounds) == 8
  assert certificate["accumulators"]["bound"] in [bound for bound, _ in bounds]
  assert certificate["largest_bias"]["tensor"].startswith("bias")


def _coupled(program):
  """The gate of the input is 1 minus that of forgetting: its operands are absent."""
  for places in (lstm.KERNELS, lstm.RECURRENT_KERNELS, lstm.BIASES):
    program.ops[-1].inputs[places[0]] = ""


def _of_floats(program):
  for name, tensor in program.tensors.items():
    if tensor.scale is not None:
      program.tensors[name] = dataclasses.replace(tensor, dtype="float32", scale=None)
  program.ops[-1].intermediates = []


@pytest.mark.parametrize("change, reason", [(_coupled, "an input is absent"), (_of_floats, "of float32")])
def test_forms_of_other_makers_are_named_in_the_certificate(case, change, reason):
  change(case.program)
  x = np.zeros(case.program.tensors["x"].shape, case.program.tensors["x"].dtype)
  certificate = certify(writer.to_bytes(case.program), [x])
  assert not certificate["exact"] and certificate["accumulators"]["bound"] == 0
  assert certificate["largest_bias"] == {"value": 0, "tensor": ""}
  for result in certificate["kernel_sets"].values():
    assert reason in result["not_simulated"][-1]


@pytest.mark.parametrize("place", [*lstm.KERNELS, *lstm.RECURRENT_KERNELS, *lstm.BIASES])
def test_computed_weights_are_not_simulated(case, place):
  program = case.program
  program.tensors[program.ops[-1].inputs[place]].data = None
  assert f"the {'bias' if place in lstm.BIASES else 'kernel'} is computed" in not_simulated(program)[-1]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_computed_value_is_not_simulated(shape):
  program = fill(Draw(np.random.default_rng(0))).program
  value = program.ops[-1].inputs[1]
  program.tensors[value].shape, program.tensors[value].data = shape, None
  program.inputs.append(value)
  assert "the value is computed" in not_simulated(program)[-1]
  inputs = [np.zeros((1, 2), np.int8), np.zeros(1, np.int8)]
  with pytest.raises(ValueError, match="Not simulated"):
    simulate(program, inputs)


def test_an_open_batch_is_refused(case):
  with pytest.raises(ValueError, match="its operator FILL holds the batch in a constant"):
    with_batch(case.program, "dynamic")


def _set(place, **fields):
  def change(program):
    for field, value in fields.items():
      setattr(program.tensors[program.ops[-1].inputs[place]], field, value)
  return change


def _no_intermediates(program):
  program.ops[-1].intermediates = []


def _large_sums(program):
  bias = program.tensors[program.ops[-1].inputs[lstm.BIASES[0]]]
  bias.data = np.full(bias.shape, ACCUMULATOR_LIMIT - 1, np.int32)


FAULTS = {
    "zero points 0": _set(lstm.KERNELS[1], zero_point=np.array([3])),
    "constant int8": _set(lstm.RECURRENT_KERNELS[0], dtype="int16"),
    "expected scale": _set(lstm.BIASES[2], scale=np.float32([0.1])),
    "one grid for 'state18'": _set(lstm.STATE, scale=np.float32([0.7])),
    "expected int16 at 2": _set(lstm.CELL, scale=np.float32([0.0003])),
    "expected int16 at 2\\^-15": _set(lstm.CELL, scale=np.float32([2.0**-8])),
    "variables": _set(lstm.CELL, variable=False),
    "five intermediates": _no_intermediates,
    r"every \|accumulator\|": _large_sums,
}


@pytest.mark.parametrize("message", FAULTS)
def test_rules(case, message):
  check(case.program)
  FAULTS[message](case.program)
  with pytest.raises(ValueError, match=message):
    check(case.program)
