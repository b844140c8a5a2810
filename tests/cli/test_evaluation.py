"""Figures of --eval, against cases worked by hand and against a computation of this file's own."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.cli import evaluation
from kquant.cli.evaluation import before_softmax, class_labels, evaluate, scores_tensor
from tests import models
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.proof.runtime import Runtime


class Arrays:
  """A source made of arrays."""

  def __init__(self, *inputs, y=None):
    self.inputs, self.y = inputs, y

  def __len__(self):
    return len(self.inputs[0])

  def load(self, indices):
    return [array[indices] for array in self.inputs]

  def labels(self):
    return self.y


def judge(model, source, indices=None, calibration=None, config="int8"):
  result = kq.quantize(model, list(source.inputs) if calibration is None else calibration, config=config,
                       effort=None)
  program = lower(result.model, result.encodings)
  return evaluate(model, program, source, np.arange(len(source)) if indices is None else indices), result


def linear(kernel, activation="softmax") -> keras.Model:
  """A network whose scores are x @ kernel."""
  x = keras.Input((len(kernel),), name="x")
  layer = layers.Dense(len(kernel[0]), activation=activation, use_bias=False, name="scores")
  model = keras.Model(x, layer(x))
  layer.set_weights([np.array(kernel, np.float32)])
  return model


# --- by hand ---------------------------------------------------------------------------------------


def test_four_images_by_hand():
  # Scores are x itself, every value on the grid. Labels: right, right, wrong, wrong; image 2 is tied.
  x = np.float32([[1, 0, -1], [0, 1, -1], [1, 1, -1], [-1, 0, 1]])
  found, _ = judge(linear(np.eye(3)), Arrays(x, y=np.array([0, 1, 2, 1])))
  assert found["images"] == 4 and not found["constant"]
  assert found["float"] == {"top1": 0.5} and found["quantized"] == {"top1": 0.5}
  assert found["agreement"] == 1.0 and found["tied"] == 1


def test_agreement_and_top1_are_of_their_own_networks():
  # The second score is larger by 1/1000, which an 8-bit grid of range 2 cannot tell: ties go to class 0.
  kernel = np.float32([[1.0, 1.001], [1.0, 1.001]])
  x = np.float32([[0.5, 0.5], [-0.5, -0.5], [0.25, 0.5], [-1.0, -1.0], [1.0, 1.0]])
  found, _ = judge(linear(kernel), Arrays(x, y=np.array([1, 0, 1, 0, 1])))
  assert found["float"]["top1"] == 1.0
  assert found["quantized"]["top1"] == 0.4 and found["agreement"] == 0.4 and found["tied"] == 5


def test_a_softmax_ties_where_its_scores_do_not():
  # Of 64 classes the two largest get 9.25 and 8.97 steps of 1/256; their scores lie four steps apart.
  x = np.float32([np.linspace(-1, 1, 64), np.linspace(1, -1, 64)])
  found, _ = judge(linear(np.eye(64)), Arrays(x, y=np.array([63, 0])))
  assert found["tied"] == 2 and found["agreement"] == found["quantized"]["top1"] == 1.0


def test_equal_or_zero_scores_have_no_finite_sqnr():
  x = np.float32([[1, 0], [0, 1]])
  assert judge(linear(np.zeros((2, 2))), Arrays(x))[0]["sqnr_db"] is None


# --- against a computation of our own --------------------------------------------------------------


def figures_of_our_own(model, result, x, y):
  """Image by image, in plain Python: {name: figure}."""
  program = lower(result.model, result.encodings)
  runtime = Runtime(to_bytes(program.with_outputs(["logits", *program.outputs])))
  last = model.get_layer("logits")
  features = keras.Model(model.input, last.input)
  kernel, bias = (weight.astype(np.float64) for weight in last.get_weights())
  grid, scores_grid = result.encodings["image"], result.encodings["logits"]
  hits = float_hits = same = tied = 0
  signal = noise = 0.0
  for image, label in zip(x, y):
    integers, final = runtime.run([grid.quantize(image[None]).astype(np.int8)])
    scores = float(scores_grid.scale[0]) * (integers[0].astype(np.float64) - int(scores_grid.zero_point[0]))
    reference = np.float64(features(image[None])[0]) @ kernel + bias
    hits += int(np.argmax(scores)) == label
    float_hits += int(np.argmax(reference)) == label
    same += int(np.argmax(scores)) == int(np.argmax(reference))
    tied += sorted(final[0])[-1] == sorted(final[0])[-2]
    signal += float(np.sum(reference ** 2))
    noise += float(np.sum((scores - reference) ** 2))
  return {"top1": hits / len(x), "float": float_hits / len(x), "agreement": same / len(x), "tied": tied,
          "sqnr_db": 10 * np.log10(signal / noise)}


@pytest.mark.parametrize("at_once", [64, 7, 1])
def test_figures_are_those_of_our_own_computation(at_once, monkeypatch):
  monkeypatch.setattr(evaluation, "IMAGES_AT_ONCE", at_once)
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model, images=60)
  y = np.random.default_rng(2).integers(0, 4, len(x))
  indices = np.arange(len(x))[5::2]
  found, result = judge(model, Arrays(x, y=y), indices, calibration=x[:16], config="w2a8")
  mine = figures_of_our_own(model, result, x[indices], y[indices])
  assert found["images"] == len(indices)
  assert 0.5 < found["agreement"] < 1 and found["float"] != found["quantized"]  # or all would be too easy
  assert found["float"]["top1"] == mine["float"] and found["quantized"]["top1"] == mine["top1"]
  assert found["agreement"] == mine["agreement"] and found["tied"] == mine["tied"]
  assert found["sqnr_db"] == pytest.approx(mine["sqnr_db"], abs=0.01)


def test_a_model_of_two_inputs_is_judged_by_its_first_output():
  model = models.build("two_inputs")
  image, vector = models.sample_inputs(model, images=24)
  classes = model.predict({"image": image, "vector": vector}, verbose=0)["class"].argmax(-1)
  found, _ = judge(model, Arrays(image, vector, y=classes))
  assert found["float"]["top1"] == 1.0 and found["quantized"]["top1"] == found["agreement"] > 0.8


@pytest.mark.parametrize("name", ["maps", "score"])
def test_what_does_not_classify_has_an_sqnr_alone(name):
  x = image = keras.Input((6, 6, 3))
  x = layers.Softmax()(layers.Conv2D(4, 3)(x)) if name == "maps" else (
      layers.Dense(1, activation="sigmoid")(layers.Flatten()(x)))
  model = keras.Model(image, x)
  found, _ = judge(model, Arrays(*models.sample_inputs(model), y=np.arange(16)))
  assert found.pop("sqnr_db") > 20
  assert found == {"images": 16, "classes": None, "constant": False, "float": {"top1": None},
                   "quantized": {"top1": None}, "agreement": None, "tied": None}


def test_without_labels_the_rest_is_there():
  model = models.build("mobile_block")
  found, _ = judge(model, Arrays(*models.sample_inputs(model)))
  assert found["float"]["top1"] is found["quantized"]["top1"] is None
  assert 0 <= found["agreement"] <= 1 and isinstance(found["tied"], int)


# --- the parts -------------------------------------------------------------------------------------


def test_scores_are_taken_before_the_softmax():
  kernel = np.random.default_rng(0).normal(size=(5, 3))
  x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
  for activation in ("softmax", None):
    model = linear(kernel, activation)
    np.testing.assert_allclose(before_softmax(model)(x), x @ kernel, rtol=1e-5, atol=1e-5)
    result = kq.quantize(model, x, effort=None)
    assert scores_tensor(lower(result.model, result.encodings)) == "scores"


@pytest.mark.parametrize("y", [[0, 1, 3], [-1, 0, 1]])
def test_labels_beyond_the_classes_are_refused(y):
  with pytest.raises(ValueError, match=f"run from {min(y)} to {max(y)}, the model's classes from 0 to 2"):
    class_labels(linear(np.eye(3)), Arrays(np.eye(3), y=np.array(y)))


def test_labels_of_what_does_not_classify_are_left_alone():
  assert class_labels(linear([[1.0]], "sigmoid"), Arrays(np.eye(1), y=np.array([9]))) is None
  assert class_labels(linear(np.eye(3)), Arrays(np.eye(3))) is None
