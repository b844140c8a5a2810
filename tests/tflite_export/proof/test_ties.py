"""Inputs on rounding ties: they lie where they should, and find what random inputs do not."""

import dataclasses

import numpy as np
import pytest

import kquant as kq
import tflite_export
from tests import models
from tests.tflite_export import faults
from tests.tflite_export.operator_fuzz import delegates
from tests.tflite_export.random_operators import random_case
from tflite_export.file.writer import to_bytes
from tflite_export.kernels import elementwise, linear
from tflite_export.kernels.call import Call
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof import ties
from tflite_export.proof.delegation import arithmetic_of
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import not_simulated, simulate

ON_TIES = [kind for kind, record in OPERATORS.items() if record.sums or record.pair or record.unary]


def probes_of(program, seed=0):
  return ties.tie_probes(program, np.random.default_rng(seed))


def zoo_program(name, path, io="int8"):
  model = models.build(name)
  result = kq.quantize(model, models.sample_inputs(model), effort=None)
  return tflite_export.export(result, path / "m.tflite", io=io).program


def call_of(program):
  (op,) = program.ops
  inputs, outputs = (tuple(program.tensors[n] for n in names) for names in (op.inputs, op.outputs))
  return Call(op, inputs, outputs, "reference")


def dense(scales, *, bias=(0, 0)):
  """Two outputs of three inputs, output grid of scale 1 and zero point 3."""
  program = IntProgram(inputs=["x"], outputs=["y"])
  for tensor in (IntTensor("x", (1, 3), "int8", 1.0, 5),
                 IntTensor("k", (2, 3), "int8", scales, [0, 0], 0, np.array([[90, 7, 1], [-3, 50, 2]])),
                 IntTensor("b", (2,), "int32", scales, [0, 0], 0, np.array(bias)),
                 IntTensor("y", (1, 2), "int8", 1.0, 3)):
    program.add_tensor(tensor)
  program.ops.append(IntOp("FULLY_CONNECTED", ["x", "k", "b"], ["y"],
                           {"keep_num_dims": False, "fused_activation_function": "NONE"}, 5, "dense"))
  return program


def test_a_dense_layer_is_solved_for_exact_ties():
  (probe,) = probes_of(dense([2.0**-4, 2.0**-5], bias=(11, -40)))
  acc = linear.DENSE.accumulators(call_of(probe.program), *probe.inputs, *[
      probe.program.tensors[name].data for name in ("k", "b")])
  on_tie = acc * [2.0**-4, 2.0**-5] % 1 == 0.5
  assert on_tie.any(axis=1).mean() > 0.8


def test_the_nearest_tie_is_found_where_none_is_exact():
  scales = np.array([0.0417, 0.0389], np.float32)
  (probe,) = probes_of(dense(scales))
  acc = linear.DENSE.accumulators(call_of(probe.program), *probe.inputs, *[
      probe.program.tensors[name].data for name in ("k", "b")])
  apart = np.abs(acc * scales.astype(np.float64) % 1 - 0.5).min(axis=1)
  assert np.median(apart) < 1e-3  # half a step of the accumulator is 0.02


def test_pairs_of_a_product_lie_on_ties():
  program = IntProgram(inputs=["a", "b"], outputs=["y"])
  for name, grid in (("a", (0.5, 3)), ("b", (0.25, -7)), ("y", (4.0, 10))):
    program.add_tensor(IntTensor(name, (1, 6, 6, 2), "int8", *grid))
  program.ops.append(IntOp("MUL", ["a", "b"], ["y"], {"fused_activation_function": "NONE"}, 2, "mul"))
  (probe,) = probes_of(program)
  a, b = (x.astype(int) - z for x, z in zip(probe.inputs, (3, -7)))
  assert (a * b / 32 % 1 == 0.5).mean() > 0.6  # 1 in 32 of random pairs


def test_a_broadcast_operand_and_a_constant_keep_their_shapes():
  program = IntProgram(inputs=["g", "x"], outputs=["y"])
  for name, shape in (("g", (1, 1, 1, 3)), ("x", (1, 4, 5, 3)), ("p", (1, 4, 5, 3)), ("m", (1, 4, 5, 3)),
                      ("y", (1, 4, 5, 3))):
    data = np.arange(60) if name == "p" else None
    program.add_tensor(IntTensor(name, shape, "int8", 0.07, 4, data=data))
  options = {"fused_activation_function": "NONE"}
  program.ops += [IntOp("MUL", ["g", "x"], ["m"], options, 2, "mul"),
                  IntOp("ADD", ["m", "p"], ["y"], options, 2, "add")]
  gate, plus = probes_of(program)
  assert [x.shape[1:] for x in gate.inputs] == [(1, 1, 3), (4, 5, 3)]
  assert [x.shape[1:] for x in plus.inputs] == [(4, 5, 3)]
  assert gate.inputs[0].shape[0] == gate.inputs[1].shape[0] > 10


def test_a_function_gets_every_integer_and_a_float_border_every_tie(tmp_path):
  program = zoo_program("convolutions", tmp_path, io="float32")
  by_kind = {probe.op.kind: probe for probe in probes_of(program)}
  for kind in ("LEAKY_RELU", "TANH", "LOGISTIC"):
    assert np.array_equal(np.sort(by_kind[kind].inputs[0].ravel()), np.arange(-128, 128))
  border, (x,) = program.tensors[program.ops[0].outputs[0]], by_kind["QUANTIZE"].inputs
  quotient = x.astype(np.float64) / border.scale[0] + border.zero_point[0]
  assert len(set(np.floor(quotient[0]))) >= 256 and np.abs(quotient % 1 - 0.5).max() < 1e-4


@pytest.mark.parametrize("kind", ON_TIES)
def test_random_operators_are_exact_on_ties_and_run_where_delegation_says(kind):
  """Random scales, zero points, windows, activations: the operator fuzz, with inputs on ties."""
  compared = 0
  for number in range(12):
    case = random_case(kind, np.random.default_rng([7, number]))
    for probe in probes_of(case.program, number):
      for mode in ("xnnpack", "reference"):
        if not_simulated(probe.program, mode=mode):
          continue
        runtime = Runtime(to_bytes(probe.program), kernels=mode)
        found = simulate(probe.program, probe.inputs, mode=mode)[probe.program.outputs[0]]
        np.testing.assert_array_equal(runtime.run_many(probe.inputs)[0], found, f"{kind} {number} {mode}")
        compared += 1
        if OPERATORS[kind].delegated:
          call = call_of(probe.program)
          assert delegates(runtime) == (arithmetic_of(call.op, call.inputs, call.outputs, mode) == "xnnpack")
  assert compared > 12


@pytest.mark.parametrize("name, kind, module, primitive, replacement", [
    ("convolutions", "CONV_2D", linear, "multiply_float", "multiply_double"),
    ("functions", "MUL", elementwise, "multiply_float", "multiply_double")])
def test_a_wrong_rounding_is_found_on_ties_alone(name, kind, module, primitive, replacement, tmp_path,
                                                 monkeypatch):
  """The reference operator's rounding in the place of the delegate's: random inputs hardly show it."""
  wrong = {"tied": 0, "random": 0}
  rng = np.random.default_rng(3)
  for probe in probes_of(zoo_program(name, tmp_path)):
    if probe.op.kind == kind:
      drawn = [rng.integers(-128, 128, x.shape).astype(np.int8) for x in probe.inputs]
      for label, inputs in (("tied", probe.inputs), ("random", drawn)):
        right = simulate(probe.program, inputs)[probe.program.outputs[0]]
        with monkeypatch.context() as patch:
          patch.setattr(module, primitive, getattr(module, replacement))
          changed = simulate(probe.program, inputs)[probe.program.outputs[0]]
        wrong[label] += np.count_nonzero(changed != right)
  assert wrong["tied"] > 20 and wrong["tied"] > 5 * wrong["random"]


def test_a_fault_on_ties_fails_the_certificate(tmp_path, monkeypatch):
  model = models.build("functions")
  inputs = models.sample_inputs(model)

  def on_pairs_alone(right, call, *arrays):
    (y,) = right(call, *arrays)
    return [y ^ np.int8(1) if y.ndim == 3 else y]  # the probe of two tensors has rank 2, an image rank 4

  faults.plant(monkeypatch, "MUL", on_pairs_alone)
  with pytest.raises(tflite_export.VerificationError, match="MUL differs on rounding ties"):
    tflite_export.export(kq.quantize(model, inputs,
                                     effort=None), tmp_path / "m.tflite", verify=[x[:2] for x in inputs],
                         certify=True)


def test_an_operator_that_other_kernels_run_alone_is_counted(tmp_path, monkeypatch):
  program = zoo_program("convolutions", tmp_path)
  (probe,) = [p for p in probes_of(program) if p.op.kind == "TRANSPOSE_CONV"]
  assert ties.runs_as_in_file(probe, program, "xnnpack")
  gapped = dataclasses.replace(probe.op, options={**probe.op.options, "padding": "SAME", "stride_h": 4})
  assert not ties.runs_as_in_file(dataclasses.replace(probe, op=gapped), program, "xnnpack")
  monkeypatch.setattr(tflite_export.proof.certificate, "runs_as_in_file", lambda *_: False)
  certificate = tflite_export.certify(to_bytes(program), [np.zeros((1, 12, 12, 3), np.int8)])
  assert certificate["kernel_sets"]["xnnpack"]["ties"]["left_out"]["TRANSPOSE_CONV"] == 1
