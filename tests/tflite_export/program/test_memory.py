"""Memory of activations: by hand, and never less than a brute-force count."""

import numpy as np
import pytest

import kquant as kq
from tests import models
from tflite_export.lowering.lower import lower
from tflite_export.program.memory import activation_memory
from tflite_export.program.program import IntOp, IntProgram, IntTensor


def program(sizes, ops, inputs, outputs):
  """A program of int8 tensors of those sizes; ops: (inputs, outputs)."""
  tensors = {name: IntTensor(name, (1, size), "int8", 1.0, 0) for name, size in sizes.items()}
  return IntProgram(tensors, [IntOp("ADD", reads, makes) for reads, makes in ops], inputs, outputs)


def test_a_chain_by_hand():
  found = activation_memory(program({"x": 100, "a": 40, "y": 16}, [(["x"], ["a"]), (["a"], ["y"])],
                                    ["x"], ["y"]))
  assert (found.total, found.peak, found.arena) == (112 + 48 + 16, 160, 160)
  assert found.busiest == "a"


def test_a_skip_connection_keeps_its_tensor():
  found = activation_memory(program(
      {"x": 32, "a": 64, "b": 64, "y": 32}, [(["x"], ["a"]), (["a"], ["b"]), (["b", "x"], ["y"])],
      ["x"], ["y"]), alignment=1)
  assert (found.total, found.peak) == (192, 160) and found.busiest == "b"


def test_an_output_lives_to_the_end_and_types_have_sizes():
  made = program({"x": 10, "first": 10, "y": 10}, [(["x"], ["first"]), (["x"], ["y"])], ["x"], ["first", "y"])
  assert activation_memory(made, alignment=1).peak == 30
  made.tensors["first"] = IntTensor("first", (1, 10), "int32")
  assert activation_memory(made, alignment=1).peak == 60


def test_a_plan_may_need_more_than_the_peak():
  # u (4) at 0; p (3) meets it: at 4; q (3) meets p alone: at 0; v (2) meets both, between them is 1: at 7.
  holes = program({"u": 4, "p": 3, "q": 3, "v": 2, "y": 1},
                  [(["u"], ["p"]), (["p"], ["q"]), (["p", "q"], ["v"]), (["v"], ["y"])], ["u"], ["y"])
  assert activation_memory(holes, alignment=1).peak == 8
  assert activation_memory(holes, alignment=1).arena == 9


def test_constants_are_not_counted_and_odd_types_refused():
  made = program({"x": 16, "y": 16}, [(["x", "w", ""], ["y"])], ["x"], ["y"])
  made.tensors["w"] = IntTensor("w", (1000,), "int8", data=np.zeros(1000))
  assert activation_memory(made).total == 32
  made.tensors["y"].dtype = "string"
  with pytest.raises(ValueError, match="'y'.*'string'"):
    activation_memory(made)


@pytest.mark.parametrize("name", ["mobile_block", "branches", "rearranged"])
def test_a_network_fits_between_its_bounds(name):
  model = models.build(name)
  result = kq.quantize(model, models.sample_inputs(model, images=4), effort=None)
  found = activation_memory(lower(result.model, result.encodings))
  assert 0 < found.peak <= found.arena <= found.total
