"""HAWQ-V2's proxy: traces against Hessians that are known, and rounding errors worked by hand."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.allocation.choices import Choices, GridChoice, LayerChoice
from kquant.allocation.proxy import hawq_proxies, mean_traces, with_proxies
from kquant.allocation.rounded import RoundedLayer
from kquant.allocation.solver import Solver
from kquant.analysis.layer_errors import network_of


def network_with(layers, images):
  result = kq.quantize(keras.Sequential(layers), images, effort=None)
  return network_of(result.qmodel, result.float_params)


def test_the_trace_of_a_least_squares_layer():
  """Half the mean squared output of one channel has the Hessian mean(x x'), whatever the kernel is."""
  images = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
  network = network_with([keras.layers.Dense(1, name="line", input_shape=(5,))], images)
  kernels = {("line", "kernel"): network.float_params["line"]["kernel"]}
  (found,) = mean_traces(network, kernels, [images], probes=800, seed=0)
  assert found == pytest.approx(np.square(images).sum(1).mean(), rel=0.1)


def test_the_trace_of_a_softmax_layer():
  """Of cross-entropy the Hessian is (diag(p) - p p') x (x x')."""
  images = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
  network = network_with([keras.layers.Dense(3, name="classes", input_shape=(3,)), keras.layers.Softmax()],
                         images)
  kernel = network.float_params["classes"]["kernel"]
  scores = np.exp(images @ kernel)
  p = scores / scores.sum(1, keepdims=True)
  wanted = ((p - p**2).sum(1) * np.square(images).sum(1)).mean()
  (found,) = mean_traces(network, {("classes", "kernel"): kernel}, [images], probes=800, seed=0)
  assert found == pytest.approx(wanted, rel=0.1)


def test_the_proxy_is_the_mean_trace_times_the_squared_error():
  images = np.ones((4, 2), np.float32)
  network = network_with([keras.layers.Dense(1, name="line", input_shape=(2,))], images)
  kernel = network.float_params["line"]["kernel"]
  trace = mean_traces(network, {("line", "kernel"): kernel}, [images], probes=3, seed=5)[0]
  at_one = {"kernel": np.ones((2, 1), np.int8)}
  rounded = {"line": {bits: RoundedLayer(at_one, {"kernel": kq.Encoding([scale], [0], bits=bits)}, {})
                      for bits, scale in ((4, 0.5), (8, 0.1))}}
  (found,) = hawq_proxies(network, rounded, [images], probes=3, seed=5)
  errors = [np.square(scale - kernel).sum() for scale in (0.5, 0.1)]
  np.testing.assert_allclose(found, trace / 2 * np.array(errors), rtol=1e-5)


def test_small_proxies_decide_beside_noisy_grids():
  """Within 4 + 8 the layer with the larger proxy gets 8 bits, however small both are."""
  def layer(name, noise):
    return LayerChoice(name, (4, 8), np.array(noise), {"bytes": np.array([[4.0], [8.0]])}, (0,))

  grid = GridChoice("grid", (8,), np.array([1e6]), {"bytes": np.zeros(1)})
  choices = Choices((layer("first", [9.0, 1.0]), layer("second", [1.0, 0.0])), (grid,), (8,), {"bytes": 0.0})
  proxies = (np.array([1e-6, 1e-8]), np.array([2e-6, 1e-8]))
  assert Solver(with_proxies(choices, proxies)).solve({"bytes": 12.0}).weights == (4, 8)
