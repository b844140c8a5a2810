"""Loading and running a small file: two inputs, two outputs."""

import dataclasses

import numpy as np
import pytest

import kquant as kq
from tests import models
from tflite_export.file import writer
from tflite_export.lowering.lower import lower
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.runtime import KERNELS, Runtime

RNG = np.random.default_rng(0)
A = RNG.integers(-128, 128, (5, 2, 3)).astype(np.int8)
B = RNG.integers(-128, 128, (5, 2, 3)).astype(np.int8)


def pair_program() -> IntProgram:
  """Outputs max(a, b), and max(a, b) beside a along the last axis."""
  program = IntProgram(inputs=["a", "b"], outputs=["larger", "both"])
  for name, width in (("a", 3), ("b", 3), ("larger", 3), ("both", 6)):
    program.add_tensor(IntTensor(name, (1, 2, width), "int8", [0.5], [3]))
  program.ops = [IntOp("MAXIMUM", ["a", "b"], ["larger"], version=2, source="larger"),
                 IntOp("CONCATENATION", ["larger", "a"], ["both"], {"axis": -1}, 2, "both")]
  return program


DATA = writer.to_bytes(pair_program())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_run_many_is_run_for_each_image(kernels, threads):
  runtime = Runtime(DATA, kernels=kernels, threads=threads)
  larger, both = runtime.run_many([A, B])
  assert np.array_equal(larger, np.maximum(A, B)) and larger.dtype == np.int8
  assert np.array_equal(both, np.concatenate([larger, A], -1))
  for i in range(len(A)):
    one = runtime.run([A[i:i + 1], B[i:i + 1]])
    assert np.array_equal(one[0], larger[i:i + 1]) and np.array_equal(one[1], both[i:i + 1])


def test_results_belong_to_the_caller():
  runtime = Runtime(DATA)
  first = runtime.run([A[:1], B[:1]])
  kept = [array.copy() for array in first]
  runtime.run([B[1:2], A[2:3]])  # would fail if a view were alive
  assert all(np.array_equal(a, b) for a, b in zip(first, kept))
  first[0][:] = 0


def test_details_name_the_borders_in_order():
  runtime = Runtime(DATA)
  assert [d["name"] for d in runtime.inputs] == ["a", "b"]
  assert [d["name"] for d in runtime.outputs] == ["larger", "both"]
  assert runtime.inputs[0]["quantization_parameters"]["scales"].tolist() == [0.5]


def test_no_images_and_strided_images():
  runtime = Runtime(DATA)
  larger, both = runtime.run_many([A[:0], B[:0]])
  assert larger.shape == (0, 2, 3) and both.shape == (0, 2, 6)
  (larger, _) = runtime.run_many([A[::-2], B[::-2]])
  assert np.array_equal(larger, np.maximum(A, B)[::-2])


def test_loads_a_path(tmp_path):
  path = tmp_path / "model.tflite"
  path.write_bytes(DATA)
  for model in (path, str(path)):
    assert np.array_equal(Runtime(model).run_many([A, B])[0], np.maximum(A, B))


@pytest.mark.parametrize("model, message", [
    (b"", "'xnnpack' cannot load 0 bytes"),
    (b"no such thing", "cannot load 13 bytes: "),
    (DATA[:-40], "cannot load .* bytes: "),
    ("lost.tflite", "cannot load 'lost.tflite': "),
])
def test_files_that_do_not_load(model, message):
  with pytest.raises(ValueError, match=message) as error:
    Runtime(model)
  assert "\n" not in str(error.value)


def test_operators_that_do_not_load():
  program = pair_program()
  program.ops[1].options["axis"] = 7
  data = writer.to_bytes(program)
  for kernels in KERNELS:
    with pytest.raises(ValueError, match=f"'{kernels}' cannot load .* bytes: ") as error:
      Runtime(data, kernels=kernels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inputs, message", [
    ([A], r"Expected 2 input arrays \(a, b\), got 1"),
    ([A, B[:4]], r"Input 'b': expected int8 of shape \(5, 2, 3\), got int8 of shape \(4, 2, 3\)"),
    ([A[..., :2], B], r"Input 'a': expected int8 of shape \(5, 2, 3\)"),
    ([A, B.astype(np.float32)], "Input 'b': expected int8 of shape .*, got float32"),
])
def test_wrong_inputs(inputs, message):
  runtime = Runtime(DATA)
  with pytest.raises(ValueError, match=message):
    runtime.run_many(inputs)
  with pytest.raises(ValueError, match=message.replace("(5", "(1")):
    runtime.run([inputs[0][:1], *inputs[1:]])


def flat_program(batch, size):
  program = pair_program()
  for name in ("a", "b", "larger", "both"):
    tensor = program.tensors[name]
    program.tensors[name] = dataclasses.replace(tensor, shape=(batch, *tensor.shape[1:]))
  program.add_tensor(IntTensor("shape", (len(size),), "int32", data=size))
  program.add_tensor(IntTensor("flat", size, "int8", [0.5], [3]))
  program.ops.append(IntOp("RESHAPE", ["both", "shape"], ["flat"], {"new_shape": list(size)}))
  return program


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_an_output_may_hold_several_rows_an_image(batch):
  program = flat_program(batch, (12 * batch,)).with_outputs(["larger", "flat", "both"])
  runtime = Runtime(writer.to_bytes(program))
  larger, flat, both = runtime.run_many([A, B])
  assert np.array_equal(larger, np.maximum(A, B))
  assert np.array_equal(flat, both.ravel()) and flat.shape == (60,)


def test_run_many_needs_the_batch_in_front():
  runtime = Runtime(writer.to_bytes(flat_program(2, (3, 8)).with_outputs(["flat"])))
  assert runtime.run([A[:2], B[:2]])[0].shape == (3, 8)
  with pytest.raises(ValueError, match=r"'flat': expected a first dimension of 2, the batch, got .*\(3, 8\)"):
    runtime.run_many([A, B])


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_open_batch_is_resized_and_a_fixed_one_is_not(kernels):
  program = pair_program()
  for name in ("a", "b", "larger", "both"):
    program.tensors[name].open_batch = True
  for batch in (1, 2, 5, 8):
    runtime = Runtime(writer.to_bytes(program), kernels=kernels, batch=batch)
    assert runtime.inputs[0]["shape"][0] == runtime.outputs[0]["shape"][0] == batch
    assert np.array_equal(runtime.run_many([A, B])[0], np.maximum(A, B))
  with pytest.raises(ValueError, match="cannot load"):
    Runtime(DATA, kernels=kernels, batch=4)


def test_unknown_kernels():
  with pytest.raises(ValueError, match="kernels of xnnpack, reference, builtin, got 'fast'"):
    Runtime(DATA, kernels="fast")


def test_delegated_operators_are_named_by_their_place():
  model = models.build("mobile_block")
  result = kq.quantize(model, models.sample_inputs(model, images=4), effort=None)
  program = lower(result.model, result.encodings)
  place = [op.kind for op in program.ops].index("SOFTMAX")
  assert Runtime(writer.to_bytes(program)).delegated_operators() == set(range(len(program.ops))) - {place}
  assert Runtime(writer.to_bytes(program), kernels="reference").delegated_operators() == set()


def test_a_timed_run_computes():
  model = models.build("conv_bn_relu")
  result = kq.quantize(model, models.sample_inputs(model, images=4), effort=None)
  runtime = Runtime(writer.to_bytes(lower(result.model, result.encodings)))
  assert 0 < runtime.time_once() < 10
