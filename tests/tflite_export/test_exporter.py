"""export: a verified file under its name, or no file; borders; what it returns."""

import json
import pathlib
import types

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from tests import models
from tflite_export import VerificationError, exporter
from tflite_export.file.reader import from_bytes
from tflite_export.proof.runtime import Runtime


@pytest.fixture(scope="module")
def result():
  keras.utils.set_random_seed(0)
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  return kq.quantize(model, x, effort=None)


@pytest.fixture(scope="module")
def images():
  return models.sample_inputs(models.build("conv_bn_relu"), images=4)[0]


def files(folder):
  return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def bit_flipped(monkeypatch, result):
  """Lets the writer flip one bit of the convolution's kernel."""
  honest = exporter.to_bytes

  def write(program):
    data = bytearray(honest(program))
    data[bytes(data).index(program.tensors["conv/kernel"].data.tobytes())] ^= 1
    return bytes(data)

  monkeypatch.setattr(exporter, "to_bytes", write)


# --- a verified file -------------------------------------------------------------------------------


def test_file_lies_alone_under_its_name_and_is_what_the_result_says(result, images, tmp_path):
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=images)
  assert files(tmp_path) == ["m.tflite"]
  assert written.path == tmp_path / "m.tflite" and written.bytes == written.path.stat().st_size
  assert written.verification.ok and written.verification.images == 4
  assert set(written.seconds) == {"export", "verify"} and min(written.seconds.values()) >= 0
  stored = from_bytes(written.path.read_bytes())
  assert list(stored.tensors) == list(written.program.tensors)
  assert (stored.inputs, stored.outputs) == (written.program.inputs, written.program.outputs)


def test_path_may_be_a_string(result, tmp_path):
  written = tflite_export.export(result, str(tmp_path / "m.tflite"))
  assert isinstance(written.path, pathlib.Path) and written.path.exists()


def test_same_result_gives_the_same_bytes_verified_or_not(result, images, tmp_path):
  first = tflite_export.export(result, tmp_path / "a.tflite", verify=images).path.read_bytes()
  assert tflite_export.export(result, tmp_path / "b.tflite").path.read_bytes() == first


def test_only_model_and_encodings_of_a_result_are_needed(result, tmp_path):
  parts = types.SimpleNamespace(model=result.model, encodings=result.encodings)
  assert tflite_export.export(parts, tmp_path / "m.tflite").verification.ok


def test_older_file_is_replaced(result, tmp_path):
  path = tmp_path / "m.tflite"
  path.write_bytes(b"old")
  tflite_export.export(result, path)
  assert path.read_bytes()[4:8] == b"TFL3" and files(tmp_path) == ["m.tflite"]


def test_without_images_constants_are_compared_and_nothing_runs(result, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError("the runtime was used")
  monkeypatch.setattr(Runtime, "__init__", fail)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=None)
  assert written.verification.ok and written.verification.images == 0
  assert written.verification.weights_equal and written.verification.layers == {}


def test_images_may_be_any_form_of_data(result, images, tmp_path):
  for data in (images, list(images), (image for image in images), {"image": images}):
    assert tflite_export.export(result, tmp_path / "m.tflite", verify=data).verification.images == 4


def test_several_inputs_are_verified_by_name(tmp_path):
  model = models.build("two_inputs")
  image, vector = models.sample_inputs(model)
  result = kq.quantize(model, {"image": image, "vector": vector}, effort=None)
  for io in ("int8", "uint8", "float32"):
    written = tflite_export.export(result, tmp_path / "m.tflite", io=io,
                                   verify={"vector": vector[:3], "image": image[:3]})
    assert written.verification.images == 3
    json.dumps(written.verification.to_json())


# --- borders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_border_has_the_type_that_was_asked_for_and_no_other_float(result, images, io, tmp_path):
  written = tflite_export.export(result, tmp_path / "m.tflite", io=io, verify=images)
  runtime = Runtime(written.path)
  assert [np.dtype(d["dtype"]).name for d in (*runtime.inputs, *runtime.outputs)] == [io, io]
  stored = from_bytes(written.path.read_bytes())
  floats = {name for name, tensor in stored.tensors.items() if tensor.dtype == "float32"}
  assert floats == (set(stored.inputs) | set(stored.outputs) if io == "float32" else set())
  assert not written.verification.float_operators


def test_other_border_types_are_an_error_and_leave_nothing(result, tmp_path):
  with pytest.raises(ValueError, match="int8, uint8 or float32, got 'int16'"):
    tflite_export.export(result, tmp_path / "m.tflite", io="int16")
  assert files(tmp_path) == []


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_model_that_gives_one_tensor_twice_has_a_file(io, tmp_path):
  x = keras.Input((4,), name="x")
  y = layers.Dense(3, name="dense")(x)
  data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  result = kq.quantize(keras.Model(x, [y, y]), data, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", io=io, verify=data)
  assert written.verification.ok
  assert len(Runtime(written.path).outputs) == 2


# --- no file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [False, True])
def test_failed_verification_leaves_no_file_of_any_name(result, images, run, bit_flipped, tmp_path):
  with pytest.raises(VerificationError) as caught:
    tflite_export.export(result, tmp_path / "m.tflite", verify=images if run else None)
  message = str(caught.value)
  assert str(tmp_path / "m.tflite") in message and "not written" in message and "conv/kernel" in message
  assert "\n" not in message
  assert files(tmp_path) == []


def test_failed_verification_keeps_the_older_file(result, bit_flipped, tmp_path):
  path = tmp_path / "m.tflite"
  path.write_bytes(b"old")
  with pytest.raises(VerificationError):
    tflite_export.export(result, path)
  assert path.read_bytes() == b"old" and files(tmp_path) == ["m.tflite"]


def test_what_is_verified_is_what_lies_on_the_disk(result, tmp_path, monkeypatch):
  honest = pathlib.Path.write_bytes

  def tear(self, data):
    return honest(self, data[:len(data) // 2])

  monkeypatch.setattr(pathlib.Path, "write_bytes", tear)
  with pytest.raises(VerificationError):
    tflite_export.export(result, tmp_path / "m.tflite")
  assert files(tmp_path) == []


def test_write_that_fails_half_way_leaves_nothing(result, tmp_path, monkeypatch):
  honest = pathlib.Path.write_bytes

  def full(self, data):
    honest(self, data[:100])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(OSError, match="No space left"):
    tflite_export.export(result, tmp_path / "m.tflite")
  assert files(tmp_path) == []


def test_rule_that_is_broken_is_an_error_before_anything_is_written(result, tmp_path):
  encodings = kq.Encodings(result.encodings.grids, result.encodings.integers)
  grid = encodings.grids["conv/bias"]
  encodings.grids["conv/bias"] = kq.Encoding(grid.scale * 2, grid.zero_point, grid.bits, grid.axis)
  parts = types.SimpleNamespace(model=result.model, encodings=encodings)
  with pytest.raises(ValueError, match="'conv/bias'"):
    tflite_export.export(parts, tmp_path / "m.tflite")
  assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["conv_bn_relu", "two_inputs"])  # the float model, another one
def test_a_model_that_the_encodings_are_not_of_is_an_error_before_anything_is_written(result, name, tmp_path):
  with pytest.raises(ValueError, match="no grid for tensor .*another model, or the model is not finalised"):
    tflite_export.export((models.build(name), result.encodings), tmp_path / "m.tflite")
  assert files(tmp_path) == []


def test_result_and_path_in_the_other_order_are_told(result, tmp_path):
  with pytest.raises(TypeError, match=r"got PosixPath. The result comes first.*kq.export\(result, path\)"):
    tflite_export.export(tmp_path / "m.tflite", result)


def test_encodings_of_other_shapes_are_an_error(tmp_path):
  x = np.random.default_rng(0).random((8, 3), np.float32)
  first, second = (kq.quantize(keras.Sequential([layers.Dense(units, name="dense", input_shape=(3,))]), x,
                               effort=None) for units in (2, 4))
  with pytest.raises(ValueError, match=r"shape \(3, 4\) for 'dense/kernel', whose shape is \(3, 2\)"):
    tflite_export.export((first.model, second.encodings), tmp_path / "m.tflite")


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 5, 5, 3), np.float32), "verify data, input 'image'"),
    (np.zeros((0, 12, 12, 3), np.float32), "verify data: .*none"),
    (np.full((2, 12, 12, 3), np.nan, np.float32), "verify data, input 'image': expected finite")])
def test_images_that_do_not_fit_are_an_error_and_leave_nothing(result, bad, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    tflite_export.export(result, tmp_path / "m.tflite", verify=bad)
  assert files(tmp_path) == []


def test_folder_that_does_not_exist_is_an_os_error(result, tmp_path):
  with pytest.raises(OSError, match="missing"):
    tflite_export.export(result, tmp_path / "missing" / "m.tflite")
  assert files(tmp_path) == []


def test_path_of_a_folder_is_an_os_error_and_leaves_nothing_in_it(result, tmp_path):
  (tmp_path / "m.tflite").mkdir()
  with pytest.raises(OSError):
    tflite_export.export(result, tmp_path / "m.tflite")
  assert files(tmp_path) == ["m.tflite"]


def test_model_changed_after_finalize_is_not_written(result, images, tmp_path):
  model = keras.models.clone_model(result.model)
  model.set_weights(result.model.get_weights())
  kernel = model.get_layer("conv").kernel
  kernel.assign(1.5 * kernel)
  parts = types.SimpleNamespace(model=model, encodings=result.encodings)
  with pytest.raises(VerificationError, match="LSB from the Keras layer"):
    tflite_export.export(parts, tmp_path / "m.tflite", verify=images)
  assert files(tmp_path) == []
