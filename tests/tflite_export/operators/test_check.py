"""Each rule: a sound program passes, one change breaks it, the message names the layer."""

import copy

import numpy as np
import pytest

from tflite_export.operators.check import check
from tflite_export.program.program import IntOp, IntProgram, IntTensor

X_SCALE = np.float32(0.05)
KERNEL_SCALES = np.float32([0.001, 0.002, 0.003])


def network() -> IntProgram:
  """float x -> QUANTIZE -> conv (3 channels) -> pool -> requantize -> logistic -> DEQUANTIZE."""
  program = IntProgram(inputs=["x"], outputs=["y"])
  add = program.add_tensor
  shape = (1, 4, 4, 3)
  add(IntTensor("x", (1, 4, 4, 2), "float32"))
  add(IntTensor("q", (1, 4, 4, 2), "int8", [X_SCALE], [-28]))
  add(IntTensor("kernel", (3, 1, 1, 2), "int8", KERNEL_SCALES, np.zeros(3), 0, [127] * 6))
  add(IntTensor("bias", (3,), "int32", X_SCALE * KERNEL_SCALES, np.zeros(3), 0, [1, -2, 3]))
  add(IntTensor("c", shape, "int8", [0.1], [0]))
  add(IntTensor("p", shape, "int8", [0.1], [0]))
  add(IntTensor("r", shape, "int8", [0.2], [0]))
  add(IntTensor("l", shape, "int8", [1 / 256], [-128]))
  add(IntTensor("y", shape, "float32"))
  window = {"padding": "SAME", "stride_h": 1, "stride_w": 1}
  program.ops = [
      IntOp("QUANTIZE", ["x"], ["q"], source="input"),
      IntOp("CONV_2D", ["q", "kernel", "bias"], ["c"], window, 3, "conv"),
      IntOp("MAX_POOL_2D", ["c"], ["p"], {**window, "filter_height": 2, "filter_width": 2}, 2,
            "pool"),
      IntOp("QUANTIZE", ["p"], ["r"], version=2, source="pool", reason="joins a wider range"),
      IntOp("LOGISTIC", ["r"], ["l"], version=2, source="sigmoid"),
      IntOp("DEQUANTIZE", ["l"], ["y"], version=2, source="sigmoid")]
  return program


def test_a_sound_program_passes_unchanged():
  program = network()
  before = copy.deepcopy(program)
  check(program)
  assert before.ops == program.ops
  assert [t.difference(program.tensors[n]) for n, t in before.tensors.items()] == [None] * 9
  check(program.with_outputs(["c", "p", "q"]))
  check(IntProgram())


def _set(name, /, **fields):
  """Returns a change: sets fields of tensor `name`."""
  def change(program):
    for field, value in fields.items():
      setattr(program.tensors[name], field, value)
  return change


def _op(position, **fields):
  """Returns a change: sets fields of an operator."""
  def change(program):
    for field, value in fields.items():
      setattr(program.ops[position], field, value)
  return change


def _swap(program):
  program.ops[1], program.ops[2] = program.ops[2], program.ops[1]


def _second_float(program):
  """A float island: DEQUANTIZE (with a reason) -> EXP."""
  program.add_tensor(IntTensor("f", (1, 4, 4, 3), "float32"))
  program.add_tensor(IntTensor("g", (1, 4, 4, 3), "float32"))
  program.ops.insert(3, IntOp("EXP", ["f"], ["g"], source="exp"))
  program.ops.insert(3, IntOp("DEQUANTIZE", ["c"], ["f"], source="exp", reason="no kernel"))


def _float_constant(program):
  program.add_tensor(IntTensor("alpha", (1,), "float32", data=[0.5]))
  program.ops[4].kind, program.ops[4].inputs = "MUL", ["r", "alpha"]


def _wide_accumulator(program):
  """z_x = -28: the largest |q_x - z_x| is 155, 155 * 254 = 39,370 beside the bias."""
  program.tensors["bias"].data = np.int32([0, 2**31 - 39370, 0])


BROKEN = {
    "no tensor": (_op(2, inputs=["lost"]), "MAX_POOL_2D of layer 'pool': input 'lost' is not a"),
    "absent input": (_op(1, inputs=["q", "kernel", ""]), "layer 'conv': input '' is not a tensor"),
    "no output tensor": (_op(2, outputs=["lost"]), "output 'lost' is not a tensor"),
    "no inputs": (_op(2, inputs=[]), "expected inputs and outputs"),
    "order": (_swap, "layer 'pool': input 'c' is used before any operator produces it"),
    "two origins": (_op(3, outputs=["c"]), "output 'c' is a graph input, a constant or made twice"),
    "key": (_set("c", name="d"), "Tensor 'd': expected a name, and that as its key, got key 'c'"),
    "graph input": (lambda p: p.inputs.append("kernel"), "Graph input 'kernel'"),
    "graph output": (lambda p: p.outputs.append("lost"), "Graph output 'lost'"),
    "float inside": (_second_float, "DEQUANTIZE of layer 'exp': tensor 'f' is float32"),
    "float constant": (_float_constant, "MUL of layer 'sigmoid': tensor 'alpha' is float32"),
    "float input": (_op(0, kind="RELU"), "RELU of layer 'input': tensor 'x' is float32"),
    "float output": (_op(5, kind="RELU"), "tensor 'y' is float32"),
    "float alone": (lambda p: p.add_tensor(IntTensor("f", (1,), "float32")), "'f' is float32 and"),
    "no reason": (_op(3, reason=""), "QUANTIZE of layer 'pool': expected it at the graph's border"),
    "no scale": (_set("c", scale=None), "layer 'conv': int8 tensor 'c' has no scale"),
    "scale 0": (_set("c", scale=np.float32([0])), "'c': expected scales that are positive"),
    "scale nan": (_set("c", scale=np.float32([np.nan])), "'c': expected scales that are positive"),
    "axis": (_set("kernel", axis=4), "'kernel': axis 4 is outside of "),
    "scales": (_set("kernel", axis=3), "'kernel': expected 2 scales .* got 3 and 3"),
    "zero points": (_set("kernel", zero_point=np.zeros(1)), "got 3 and 1"),
    "many scales": (_set("c", axis=3, scale=np.ones(3, np.float32), zero_point=np.zeros(3)),
                    "activation 'c': expected one scale, got 3"),
    "zero point": (_set("c", zero_point=np.int64([128])), r"zero point in \[-128, 127\], got 128"),
    "tie scale": (_set("p", scale=np.nextafter(np.float32([0.1]), np.float32(1))),
                  "layer 'pool': expected one grid for all its tensors"),
    "tie zero point": (_set("p", zero_point=np.int64([1])), "point 0. for 'c' and .* point 1. "),
    "tie dtype": (_set("p", dtype="int16"), "expected one grid for all its tensors, got int8"),
    "fixed": (_set("l", scale=np.float32([1 / 255])), "LOGISTIC of layer 'sigmoid': expected an"),
    "fixed zero": (_set("l", zero_point=np.int64([-127])), "scale 0.00390625, zero point -128"),
    "two inputs": (_op(1, inputs=["q", "kernel"]), "expected 3 inputs, bias included, got 2"),
    "y type": (_set("c", dtype="uint8"), "expected int8 or int16 for both 'q' and 'c'"),
    "kernel type": (_set("kernel", dtype="int16"), "kernel 'kernel': expected constant int8"),
    "kernel zero": (_set("kernel", zero_point=np.int64([0, 3, 0])), "zero points 0, got 3"),
    "kernel -128": (_set("kernel", data=np.full((3, 1, 1, 2), -128, np.int8)), "got -128"),
    "kernel axis": (_set("kernel", shape=(3, 1, 1, 3), axis=3), "along axis 0, got axis 3"),
    "bias type": (_set("bias", dtype="int64"), r"constant int32 of shape \(3,\), got int64"),
    "bias shape": (_set("bias", shape=(1, 3), axis=1), r"got int32 of shape \(1, 3\)"),
    "bias activation": (_set("bias", data=None), "layer 'conv': input 'bias' is used before"),
    "bias bare": (_set("bias", scale=None), "bias 'bias': expected scales, without them other"),
    "bias scale": (_set("bias", scale=np.nextafter(X_SCALE * KERNEL_SCALES, np.float32(1))),
                   "'conv': bias 'bias': expected scale float32.s_x. . float32.s_w. in every"),
    "bias zero": (_set("bias", zero_point=np.int64([0, 0, 1])), "'bias': expected zero points 0"),
    "accumulator": (_wide_accumulator, "channel 1: expected .* got 2147483648; raise the scale"),
    "ratio": (_set("c", scale=np.float32([5e-7])), "s_x . s_w / s_y < 256, got 300; widen"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_is_asserted(case):
  program = network()
  change, message = BROKEN[case]
  change(program)
  with pytest.raises(ValueError, match=message) as error:
    check(program)
  assert "\n" not in str(error.value)


def test_the_accumulator_bound_is_exact():
  program = network()
  _wide_accumulator(program)
  program.tensors["bias"].data[1] -= 1
  check(program)
  program.tensors["kernel"].data[1, 0, 0, 0] = -127  # the sign does not matter
  check(program)


def test_ratio_below_the_limit_passes():
  program = network()
  for name in ("c", "p"):
    program.tensors[name].scale = np.float32([5.87e-7])  # 255.5
  check(program)


def test_dense_has_one_scale_or_one_a_channel_and_transpose_conv_its_own_order():
  program = IntProgram(inputs=["x"], outputs=["y"])
  add = program.add_tensor
  add(IntTensor("x", (1, 2, 2, 2), "int8", [X_SCALE], [0]))
  add(IntTensor("shape", (4,), "int32", data=[1, 4, 4, 3]))
  add(IntTensor("kernel", (3, 2, 2, 2), "int8", [0.5], [0], data=np.ones((3, 2, 2, 2))))
  add(IntTensor("bias", (3,), "int32", [X_SCALE * np.float32(0.5)], [0], data=[0, 0, 0]))
  add(IntTensor("y", (1, 4, 4, 3), "int8", [0.1], [0]))
  program.ops = [IntOp("TRANSPOSE_CONV", ["shape", "kernel", "x", "bias"], ["y"], source="up")]
  check(program)
  program.tensors["kernel"].dtype = "int4"
  with pytest.raises(ValueError, match="'up': kernel 'kernel': expected constant int8 integers, got int4"):
    check(program)
  program.ops[0].inputs = ["shape", "x", "kernel", "bias"]
  with pytest.raises(ValueError, match="TRANSPOSE_CONV of layer 'up'"):
    check(program)


def test_int16_activations():
  program = IntProgram(inputs=["x"], outputs=["y"])
  add = program.add_tensor
  add(IntTensor("x", (1, 2), "int16", [X_SCALE], [0]))
  add(IntTensor("kernel", (3, 2), "int8", KERNEL_SCALES, np.zeros(3), 0, np.full((3, 2), 127)))
  add(IntTensor("bias", (3,), "int64", X_SCALE * KERNEL_SCALES, np.zeros(3), 0, [2**40, 0, 0]))
  add(IntTensor("d", (1, 3), "int16", [0.1], [0]))
  add(IntTensor("y", (1, 3), "int16", [1 / 32768], [0]))
  program.ops = [IntOp("FULLY_CONNECTED", ["x", "kernel", "bias"], ["d"], version=7, source="dense"),
                 IntOp("TANH", ["d"], ["y"], version=3, source="tanh")]
  check(program)
  kernel = program.tensors["kernel"]
  kernel.dtype, kernel.data = "int4", kernel.data // 127
  with pytest.raises(ValueError, match="FULLY_CONNECTED of layer 'dense': kernel 'kernel': expected int8 "
                                       "integers over int16 activations, got int4"):
    check(program)
  kernel.dtype = "int8"
  check(program)
  program.ops[1].version = 2
  with pytest.raises(ValueError, match="TANH of layer 'tanh': expected version 3 or later for int16"):
    check(program)
  program.ops[1].kind = "HARD_SWISH"
  with pytest.raises(ValueError, match="'tanh': LiteRT has no kernel of it over int16 activations; replace"):
    check(program)
  program.ops[1] = IntOp("TANH", ["d"], ["y"], version=3, source="tanh")
  program.tensors["d"].zero_point = np.int64([1])
  with pytest.raises(ValueError, match=r"int16 activation 'd': expected a zero point in \[0, 0\]"):
    check(program)


def test_alpha_of_prelu_is_a_kernel():
  program = IntProgram(inputs=["x"], outputs=["y"])
  for name in ("x", "y"):
    program.add_tensor(IntTensor(name, (1, 2), "int8", [0.1], [5]))
  program.add_tensor(IntTensor("alpha", (2,), "int8", [0.1], [0], data=[1, 2]))
  program.ops = [IntOp("PRELU", ["x", "alpha"], ["y"], source="prelu")]
  check(program)
  program.tensors["alpha"].zero_point = np.int64([4])
  with pytest.raises(ValueError, match="PRELU of layer 'prelu': kernel 'alpha': expected zero"):
    check(program)


@pytest.mark.parametrize("change", [{"scale": np.float32([0.2])}, {"zero_point": np.int64([4])}])
def test_a_gathered_table_has_the_grid_of_its_output(change):
  program = IntProgram(inputs=["i"], outputs=["y"])
  program.add_tensor(IntTensor("i", (1, 2), "int32"))
  program.add_tensor(IntTensor("table", (4, 3), "int8", [0.1], [5], data=np.zeros((4, 3))))
  program.add_tensor(IntTensor("y", (1, 2, 3), "int8", [0.1], [5]))
  program.ops = [IntOp("GATHER", ["table", "i"], ["y"], {"axis": 0}, source="embed")]
  check(program)
  for name, value in change.items():
    setattr(program.tensors["table"], name, value)
  with pytest.raises(ValueError, match="GATHER of layer 'embed': expected one grid for all its tensors"):
    check(program)


def test_ties_of_several_tensors():
  program = IntProgram(inputs=["a", "b"], outputs=["y"])
  for name in ("a", "b", "y"):
    program.add_tensor(IntTensor(name, (1, 2), "int8", [0.1], [5]))
  program.ops = [IntOp("CONCATENATION", ["a", "b"], ["y"], source="join")]
  for name in ("a", "b", "y"):
    changed = copy.deepcopy(program)
    changed.tensors[name].zero_point = np.int64([6])
    with pytest.raises(ValueError, match="CONCATENATION of layer 'join': expected one grid"):
      check(changed)
  changed.ops[0].kind = "ADD"
  check(changed)


def test_a_sum_whose_output_grid_is_absurdly_narrow_is_refused():
  program = IntProgram(inputs=["a", "b"], outputs=["y"])
  for name, scale in (("a", 1.0), ("b", 0.5), ("y", 2.0 / 2**20)):
    program.add_tensor(IntTensor(name, (1, 4), "int8", scale, 0))
  program.ops.append(IntOp("ADD", ["a", "b"], ["y"], {"fused_activation_function": "NONE"}, 2, "sum"))
  with pytest.raises(ValueError, match="'sum'.*below 2\\^20, got 1.049e\\+06"):
    check(program)
  program.tensors["y"].scale *= np.float32(2)
  check(program)
