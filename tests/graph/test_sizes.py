"""Bytes of a graph's tensors, by hand; and that runs keep to them."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.core.input_spec import InputSpec
from kquant.graph import sizes
from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.rewrites.scaling.channel_statistics import measure_channels
from tests import models


def skipped() -> keras.Model:
  """Tensors of 4, 8, 12 and 8 floats; the first layer's output lives until the sum."""
  x = keras.Input((4,))
  first = layers.Dense(8, name="first")(x)
  wide = layers.Dense(12, name="wide")(first)
  return keras.Model(x, layers.Add()([first, layers.Dense(8, name="last")(wide)]))


def test_bytes_by_hand():
  graph = Graph.from_model(skipped())
  assert sizes.all_bytes(graph) == 4 * (4 + 8 + 12 + 8 + 8)
  assert sizes.live_bytes(graph) == 4 * (8 + 12 + 8)  # at the last dense layer


@pytest.mark.parametrize("image_bytes, count", [(1, 32), (2**24, 16), (2**24 + 1, 8), (2**28, 1), (2**40, 1)])
def test_as_many_images_as_fit_and_one_at_least(image_bytes, count):
  assert sizes.images_at_once(image_bytes, most=32) == count


def test_open_sizes_are_those_of_the_data():
  specs = [InputSpec("a", (None, None, 3)), InputSpec("b", (5,))]
  assert sizes.open_size(specs, [np.zeros((2, 6, 7, 3)), np.zeros((2, 5))]) == 42


@pytest.fixture
def few_bytes(monkeypatch):
  """Leaves room for three images of `branches`."""
  model = models.build("branches")
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 3 * sizes.live_bytes(Graph.from_model(model)))
  return model


def test_batches_and_taps_take_as_many_images_as_fit(few_bytes):
  execution = Execution(Graph.from_model(few_bytes), few_bytes)
  (x,) = models.sample_inputs(few_bytes, images=8)
  assert [len(part) for (part,) in execution.batches(x, batch_size=32, what="")] == [2, 2, 2, 2]
  assert [len(part) for (part,) in execution.batches(x, batch_size=1, what="")] == [1] * 8
  (found,) = execution.tap(execution.graph.output_refs)([x])
  np.testing.assert_allclose(found, few_bytes.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["branches", "convolutions"])
def test_ranges_do_not_depend_on_how_many_images_fit(name, monkeypatch):
  model = models.build(name)
  (x,) = models.sample_inputs(model, images=7)  # in twos the last one is alone
  whole = kq.quantize(model, x, effort=None).encodings
  qmodel = kq.quantize(model, x, effort=None).qmodel
  for room in (2, 5):
    monkeypatch.setattr(sizes, "BYTES_AT_ONCE", room * sizes.live_bytes(Graph.from_model(qmodel)))
    assert kq.quantize(model, x, effort=None).encodings.grids == whole.grids


def test_a_backward_pass_counts_all_tensors(few_bytes, monkeypatch):
  counted = []
  monkeypatch.setattr(Execution, "images_at_once", lambda self, images, most: counted.append(
      self.image_bytes) or most)
  graph = Graph.from_model(few_bytes)
  for gains in (False, True):
    measure_channels(graph, models.sample_inputs(few_bytes, images=2), gains=gains)
  assert counted == [sizes.live_bytes(graph), 2 * sizes.all_bytes(graph)]
