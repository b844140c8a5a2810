"""Any fixed batch and a batch that is resized: the same integers as one image at a time."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from tests import models
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.operators.batch import with_batch
from tflite_export.operators.check import check
from tflite_export.program.batch import batch_of, is_dynamic
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.runtime import Runtime

KERNEL_SETS = ("xnnpack", "reference")


def quantized(name):
  model = models.build(name)
  inputs = models.sample_inputs(model)
  return kq.quantize(model, inputs, effort=None), inputs


def integers(result, program, inputs):
  return [result.encodings[name].quantize(x).astype(np.int8)[:5] for name, x in zip(program.inputs, inputs)]


def nodes(runtime):
  """Every node of the execution plan, the delegate's with what it took."""
  return [(op["op_name"], len(op["inputs"])) for op in runtime._interpreter._get_ops_details()]


@pytest.mark.parametrize("name", models.ZOO)
def test_every_batch_gives_the_integers_of_batch_1(name, tmp_path):
  result, inputs = quantized(name)
  single = tflite_export.export(result, tmp_path / "single.tflite")
  given = integers(result, single.program, inputs)
  expected = {kernels: Runtime(single.path, kernels=kernels).run_many(given) for kernels in KERNEL_SETS}
  for batch, sizes in ((3, (None,)), ("dynamic", (None, 1, 5))):
    path = tmp_path / "batch.tflite"
    if name == "convolutions" and batch == "dynamic":
      with pytest.raises(UnsupportedLayerError, match="Layer 'transposed': .* export with a fixed batch"):
        tflite_export.export(result, path, batch=batch)
      continue
    written = tflite_export.export(result, path, batch=batch, verify=[x[:4] for x in inputs], certify=True)
    assert written.verification.ok and written.certificate["exact"]
    assert written.certificate["batch"] == batch
    for kernels in KERNEL_SETS:
      for size in sizes:
        runtime = Runtime(path, kernels=kernels, batch=size)
        for mine, theirs in zip(runtime.run_many(given), expected[kernels], strict=True):
          np.testing.assert_array_equal(mine, theirs, f"batch {batch}, {kernels} kernels resized to {size}")
        assert nodes(runtime) == nodes(Runtime(single.path, kernels=kernels))


@pytest.mark.parametrize("io", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [2, None])
def test_borders_have_the_batch_too(io, batch, tmp_path):
  result, inputs = quantized("mobile_block")
  written = tflite_export.export(result, tmp_path / "m.tflite", io=io, batch=batch, verify=inputs[0][:3],
                                 certify=True)
  assert written.certificate["exact"]
  for detail in (*Runtime(written.path).inputs, *Runtime(written.path).outputs):
    assert detail["shape_signature"][0] == (batch or -1) and detail["shape"][0] == (batch or 1)


def test_the_file_says_its_batch_and_is_read_back():
  program = IntProgram(inputs=["x"], outputs=["y"])
  for name, shape in (("x", (1, 2, 3)), ("y", (1, 6))):
    program.add_tensor(IntTensor(name, shape, "int8", 0.1, 0))
  program.add_tensor(IntTensor("shape", (2,), "int32", data=[1, 6]))
  program.ops.append(IntOp("RESHAPE", ["x", "shape"], ["y"], {"new_shape": [1, 6]}))
  for batch, first in ((1, 1), (4, 4), (None, -1), ("dynamic", -1)):
    sized = with_batch(program, batch)
    check(sized)
    stored = from_bytes(to_bytes(sized))
    assert batch_of(stored) == max(first, 1) and is_dynamic(stored) == (first == -1)
    assert stored.tensors["shape"].data.tolist() == [first, 6] == stored.ops[0].options["new_shape"]
    assert not [name for name, tensor in stored.tensors.items() if tensor.difference(sized.tensors[name])]
  assert program.tensors["shape"].data.tolist() == [1, 6] and program.tensors["x"].shape == (1, 2, 3)


def test_an_open_batch_can_be_fixed_again():
  result, _ = quantized("rearranged")
  program = lower(result.model, result.encodings)
  back = with_batch(with_batch(program, None), 1)
  assert not [name for name, tensor in program.tensors.items() if tensor.difference(back.tensors[name])]
  for mine, theirs in zip(back.ops, program.ops):
    masks = {"begin_mask": 0, "end_mask": 0} if mine.kind == "STRIDED_SLICE" else {}
    assert mine.options == {**theirs.options, **masks}


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, "many"])
def test_other_batches_are_an_error(batch, tmp_path):
  result, _ = quantized("conv_bn_relu")
  with pytest.raises(ValueError, match="batch must be a number of images from 1 on, None or 'dynamic', got"):
    tflite_export.export(result, tmp_path / "m.tflite", batch=batch)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind, constants, options", [
    ("PAD", [[[0, 1], [0, 0]]], {}), ("TRANSPOSE", [[1, 0]], {}), ("MEAN", [[-2]], {"keep_dims": True}),
    ("STRIDED_SLICE", [[0, 0], [1, 2], [2, 1]], {}), ("CONCATENATION", [], {"axis": -2})])
def test_an_operator_across_the_batch_is_named(kind, constants, options):
  program = IntProgram(inputs=["x"], outputs=["y"])
  for name in "xy":
    program.add_tensor(IntTensor(name, (1, 2), "int8", 0.1, 0))
  for index, values in enumerate(constants):
    program.add_tensor(IntTensor(f"c{index}", np.shape(values), "int32", data=values))
  program.ops.append(IntOp(kind, ["x", *list(program.tensors)[2:]], ["y"], options, source="odd"))
  assert with_batch(program, 1) is program
  for batch in (2, None):
    with pytest.raises(UnsupportedLayerError, match=f"Layer 'odd': {kind} works across the images"):
      with_batch(program, batch)


def test_large_batches_are_exact(tmp_path):
  """More windows than one pass of a kernel: the same integers."""
  image = keras.Input((7, 5, 6), name="image")
  x = layers.Conv2D(9, 3, strides=2, padding="same", activation="relu", name="conv")(image)
  x = layers.AveragePooling2D(2, padding="same")(tf.concat([x, x[..., 2:5]], -1))
  model = models.randomized(keras.Model(image, layers.Dense(4)(layers.Flatten()(x))))
  inputs = models.sample_inputs(model, images=40)
  written = tflite_export.export(kq.quantize(model, inputs,
                                             effort=None), tmp_path / "m.tflite", batch=33, verify=inputs,
                                 certify=True)
  assert written.certificate["exact"] and written.certificate["inputs"]["real"] == 40
