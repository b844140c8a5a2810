"""Signature, description and TFLite metadata: what a file says of itself, read back by other code."""

import re

import flatbuffers
import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import interpreter as litert
from flatbuffers import number_types
from flatbuffers.table import Table
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core import images
from tests import models
from tflite_export.file import metadata
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.proof import verifier
from tflite_export.proof.runtime import Runtime


class Reading:
  """A table of a flatbuffer by field numbers, as the published schema counts them."""

  def __init__(self, data: bytes, position: int | None = None):
    if position is None:
      position = flatbuffers.encode.Get(number_types.UOffsetTFlags.packer_type, data, 0)
    self.table = Table(data, position)

  def _at(self, field):
    offset = self.table.Offset(4 + 2 * field)
    return self.table.Pos + offset if offset else None

  def text(self, field):
    return self.table.String(self._at(field)).decode()

  def byte(self, field):
    at = self._at(field)
    return 0 if at is None else self.table.Get(number_types.Uint8Flags, at)

  def child(self, field):
    return Reading(self.table.Bytes, self.table.Indirect(self._at(field)))

  def union(self, field):
    union = Table(self.table.Bytes, 0)
    self.table.Union(union, self._at(field) - self.table.Pos)
    return Reading(union.Bytes, union.Pos)

  def children(self, field):
    offset = self._at(field) - self.table.Pos
    start, count = self.table.Vector(offset), self.table.VectorLen(offset)
    return [Reading(self.table.Bytes, self.table.Indirect(start + 4 * i)) for i in range(count)]

  def floats(self, field):
    return self.table.GetVectorAsNumpy(number_types.Float32Flags, self._at(field) - self.table.Pos)


def exported(model, path, **options):
  inputs = models.sample_inputs(model, images=4)
  return tflite_export.export(kq.quantize(model, inputs,
                                          effort=None), path, verify=[x[:1] for x in inputs], **options)


def signature(path):
  return litert.Interpreter(str(path)).get_signature_list()["serving_default"]


def image_model(channels=3):
  image = keras.Input((6, 5, channels), name="photo")
  return keras.Model(image, layers.Conv2D(2, 3, activation="sigmoid", name="mask")(image))


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("name", models.ZOO)
def test_signature_has_the_names_of_the_keras_model(name, io, tmp_path):
  model = models.build(name)
  written = exported(model, tmp_path / "m.tflite", io=io)
  assert signature(written.path) == {"inputs": sorted(model.input_names),
                                     "outputs": sorted(model.output_names)}


def test_a_sequential_model_has_the_names_keras_gives_it(tmp_path):
  model = keras.Sequential([layers.Conv2D(3, 3, input_shape=(6, 6, 2), name="first"), layers.Flatten(),
                            layers.Dense(2, activation="softmax", name="classes"),
                            layers.BatchNormalization(name="bn")])
  written = exported(model, tmp_path / "m.tflite")
  assert signature(written.path) == {"inputs": ["first_input"], "outputs": ["bn"]}


def test_keys_of_dicts_go_before_names_of_layers(tmp_path):
  first, second = keras.Input((4,), name="layer_b"), keras.Input((4,), name="layer_a")
  x = layers.Add(name="sum")([layers.Dense(4, name="dense")(first), second])
  model = keras.Model({"left": first, "right": second}, {"total": x, "last": layers.ReLU(name="relu")(x)})
  written = exported(model, tmp_path / "m.tflite")
  assert signature(written.path) == {"inputs": ["left", "right"], "outputs": ["last", "total"]}
  stored = from_bytes(written.path.read_bytes())
  assert stored.signature == ({"left": "layer_b", "right": "layer_a"}, {"last": "relu", "total": "sum"})


def test_outputs_of_one_name_are_told_apart_and_run_by_name(tmp_path):
  image = keras.Input((6,), name="x")
  shared = layers.Dense(3, name="dense")
  y = shared(image)
  model = keras.Model(image, [y, shared(layers.Dense(6, name="before")(image)), y])
  written = exported(model, tmp_path / "m.tflite")
  assert signature(written.path)["outputs"] == model.output_names == ["dense", "dense_1", "dense_2"]
  x = np.random.default_rng(0).integers(-128, 128, (1, 6)).astype(np.int8)
  by_name = litert.Interpreter(str(written.path)).get_signature_runner("serving_default")(x=x)
  for name, output in zip(model.output_names, Runtime(written.path).run([x])):
    np.testing.assert_array_equal(by_name[name], output)


def test_names_survive_files_of_the_steps(tmp_path):
  model = models.build("convolutions")
  x = models.sample_inputs(model, images=4)
  result = kq.quantize(model, x, effort=None)
  result.encodings.save(tmp_path / "e.json")
  result.model.save(tmp_path / "m.keras")
  result.qmodel.save(tmp_path / "q.keras")
  loaded = kq.Encodings.load(tmp_path / "e.json")
  assert (loaded.input_names, loaded.output_names) == (["image"], ["out"])
  again = lower(keras.models.load_model(tmp_path / "m.keras"), loaded)
  assert to_bytes(again) == to_bytes(lower(result.model, result.encodings))
  _, encodings = kq.finalize(keras.models.load_model(tmp_path / "q.keras"))
  assert encodings.output_names == ["out"]


def test_description_says_who_wrote_the_file(tmp_path):
  written = exported(image_model(), tmp_path / "m.tflite")
  assert from_bytes(written.path.read_bytes()).description == f"kquant {kq.__version__}"


# --- normalization ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, channels, mean, deviation, colors", [
    ("unit", 3, [0] * 3, [255] * 3, 1), ("tf", 1, [127.5], [127.5], 2),
    ("tf", 2, [127.5] * 2, [127.5] * 2, 0),
    ("torch", 3, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 1),
    ("caffe", 3, [103.939, 116.779, 123.68], [1] * 3, 0)])
@pytest.mark.parametrize("io", ["int8", "float32"])
def test_metadata_by_the_published_schema(mode, channels, mean, deviation, colors, io, tmp_path):
  written = exported(image_model(channels), tmp_path / "m.tflite", preprocess=mode, io=io)
  data = from_bytes(written.path.read_bytes()).metadata["TFLITE_METADATA"]
  assert data[4:8] == b"M001"
  root = Reading(data)
  assert root.text(1) == f"kquant {kq.__version__}" and root.text(7) == "1.0.0"
  (graph,) = root.children(3)
  (tensor,), (output,) = graph.children(2), graph.children(3)
  assert (tensor.text(0), output.text(0)) == ("photo", "mask")
  content = tensor.child(3)
  assert content.byte(0) == 2 and content.union(1).byte(0) == colors
  assert output.child(3).byte(0) == 1
  (unit,) = tensor.children(4)
  assert unit.byte(0) == 1
  np.testing.assert_allclose(unit.union(1).floats(0), mean, rtol=1e-6)
  np.testing.assert_allclose(unit.union(1).floats(1), deviation, rtol=1e-6)


@pytest.mark.parametrize("mode, channels", [("none", 3), ("unit", 3), ("unit", 1), ("tf", 4), ("torch", 3),
                                            ("caffe", 3)])
def test_normalization_is_what_preprocess_does(mode, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels)).astype(np.float32)
  mean, deviation, order = images.normalization(mode, channels)
  assert order == {1: "GRAYSCALE", 3: "BGR" if mode == "caffe" else "RGB", 4: ""}[channels]
  taken = pixels[..., ::-1] if order == "BGR" else pixels
  np.testing.assert_allclose((taken - mean) / deviation, images.preprocess(pixels, mode), atol=2e-5)


def test_without_preprocess_there_is_no_entry(tmp_path):
  assert from_bytes(exported(image_model(), tmp_path / "m.tflite").path.read_bytes()).metadata == {}


def test_a_model_without_one_image_is_refused(tmp_path):
  with pytest.raises(ValueError, match="one image input.*leave preprocess out"):
    exported(models.build("two_inputs"), tmp_path / "m.tflite", preprocess="tf")
  with pytest.raises(ValueError, match="expected a mode"):
    exported(image_model(), tmp_path / "m.tflite", preprocess="zoom")
  assert not list(tmp_path.iterdir())


# --- compared --------------------------------------------------------------------------------------


@pytest.mark.parametrize("field, change, words", [
    ("output_names", ["other"], "signature .*'other'"), ("description", "me", "description 'me' in the"),
    ("metadata", {"TFLITE_METADATA": b"x"}, "metadata .*in the"), ("metadata", {}, "metadata {} in the")])
def test_the_verifier_compares_what_the_file_says(field, change, words):
  model = image_model()
  result = kq.quantize(model, models.sample_inputs(model, images=4), effort=None)
  honest = lower(result.model, result.encodings)
  honest.metadata[metadata.ENTRY] = metadata.image_metadata(honest, "tf")
  other = lower(result.model, result.encodings)
  other.metadata = dict(honest.metadata)
  setattr(other, field, change)
  found = verifier.verify(to_bytes(other), result.model, result.encodings, program=honest)
  assert len(found.problems) == 1 and re.search(words, found.problems[0]), found.problems
  assert verifier.verify(to_bytes(honest), result.model, result.encodings, program=honest).ok
