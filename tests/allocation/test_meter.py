"""Noise by backward passes is that of each layer and grid run by itself, by any number of processes."""

import concurrent.futures
import contextlib
import sys

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.allocation import meter as meter_module
from kquant.allocation.meter import Alone, NoiseMeter
from kquant.allocation.rounded import RoundedLayer
from kquant.analysis.calls import calls_with
from kquant.analysis.layer_errors import network_of
from kquant.analysis.sites import sites
from kquant.core.encodings import Encoding, activation_grid
from kquant.doctor.variants import Bench, Variant
from kquant.qmodel.quantize_weights import QuantizeWeights
from tests import models

_MISSING = "is not installed; pip install .[parallel]"
joblib = pytest.importorskip("joblib", reason=f"joblib {_MISSING}")


@pytest.fixture(scope="module")
def network():
  keras.utils.set_random_seed(0)
  model = models.randomized(models.mobile_block())
  images = models.sample_inputs(model, 12)
  result = kq.quantize(model, images, effort=None)
  return network_of(result.qmodel, result.float_params), images


@pytest.fixture
def alone(network):
  """Every grid at several widths."""
  grids = [site.name for site in sites(network[0].graph) if site.part == "activation"]
  return [Alone(name, grid=activation_grid(-1.0, high, bits=bits, symmetric=False))
          for name in grids for high in (2.0, 3.0) for bits in (2, 3, 4, 5, 6, 8)]


@pytest.fixture
def meter(network, alone, monkeypatch):
  """Of several tasks."""
  monkeypatch.setattr(meter_module, "_MOST_IMAGES", 4)
  return NoiseMeter(*network, alone)


def test_noise_is_that_of_a_layer_or_grid_run_by_itself(network, alone):
  qmodel, images = network[0].qmodel, network[1]
  grids = [Alone(one.name) for one in alone[::12]]
  kernels = [Alone(layer.name, rounded=RoundedLayer(
      {name: grid.quantize(layer.weight_values()[name]) for name, grid in layer.weight_encodings().items()},
      layer.weight_encodings(), {})) for layer in qmodel.layers if type(layer) is QuantizeWeights]
  assert len(kernels) > 2
  found = NoiseMeter(network[0], images, [*grids, *kernels]).measure()
  places = {(site.part, site.name): site for site in sites(network[0].graph)}
  variants = [Variant(places["activation", one.name], network[0].calls[0]) for one in grids]
  variants += [Variant(places["weights", one.name], calls_with({one.name: one.rounded.params}))
               for one in kernels]
  np.testing.assert_allclose(found, Bench(*network).solo(variants).mean(1), rtol=0.35)


def test_of_several_outputs_it_is_the_mean():
  """y = W x has the noise |dW x|^2; a second output that does not depend on W has none."""
  x = keras.Input((3,))
  outputs = [keras.layers.Dense(2, name=name)(x) for name in ("first", "second")]
  images = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  result = kq.quantize(keras.Model(x, outputs), images, effort=None)
  network = network_of(result.qmodel, result.float_params)
  kernel = network.float_params["first"]["kernel"]
  step = Encoding(np.float32([0.25]), np.int64([0]), bits=8)
  alone = Alone("first", rounded=RoundedLayer({"kernel": step.quantize(kernel)}, {"kernel": step}, {}))
  error = images @ (step.dequantize(step.quantize(kernel)) - kernel)
  signal = np.square(images @ kernel - (images @ kernel).mean(0)).sum(1).mean()
  (found,) = NoiseMeter(network, [images], [alone]).measure()
  assert found == pytest.approx(np.square(error).sum(1).mean() / signal / 2, rel=0.3)


def test_memory_splits_images_and_signs(network, alone, monkeypatch):
  whole = NoiseMeter(*network, alone)
  assert [task[:2] for task in whole.tasks()] == [(0, 32)]
  monkeypatch.setattr(meter_module, "BACKWARD_ROOM", 4 * whole._bytes)
  parts = NoiseMeter(*network, alone)
  assert parts.tasks()[:3] == [(0, 1, 0), (0, 1, 1), (1, 2, 0)] and len(parts.tasks()) == 24
  np.testing.assert_allclose(parts.measure(), whole.measure(), rtol=1.0)


@contextlib.contextmanager
def a_dask_cluster():
  distributed = pytest.importorskip("distributed", reason=f"dask {_MISSING}")
  with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster)):
    yield


@contextlib.contextmanager
def a_ray_cluster():
  ray = pytest.importorskip("ray", reason="ray is not installed; pip install .[ray]")
  from ray.util.joblib import register_ray
  register_ray()
  with ray.init(num_cpus=2, include_dashboard=False):
    yield
  ray.shutdown()


@pytest.mark.parametrize("backend, cluster", [("loky", contextlib.nullcontext), ("dask", a_dask_cluster),
                                              ("ray", a_ray_cluster)])
def test_two_processes_find_the_same_numbers(meter, backend, cluster, monkeypatch):
  wanted = meter.measure()
  assert len(meter.tasks()) == 3
  monkeypatch.setattr(NoiseMeter, "squares", None)  # of this process
  with cluster(), joblib.parallel_config(backend=backend, n_jobs=2):
    found = meter.measure()
  assert (found == wanted).all() and (wanted > 0).all()


def test_without_joblib_all_is_measured_here(meter, monkeypatch):
  wanted = meter.measure()
  monkeypatch.setitem(sys.modules, "joblib", None)
  np.testing.assert_array_equal(meter.measure(), wanted)


def test_a_process_that_ends_is_told_in_a_line(meter, monkeypatch):
  def breaks(self, tasks):
    list(tasks)
    raise concurrent.futures.BrokenExecutor("a worker\nended")

  monkeypatch.setattr(joblib.Parallel, "__call__", breaks)
  with (joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(RuntimeError, match=r"it ended, .* take fewer \(n_jobs\), or none\.$")):
    meter.measure()


def test_a_network_that_cannot_be_loaded_is_told_in_a_line(meter, monkeypatch):
  def refuses(path):
    raise ValueError("unknown layer\nat length")

  monkeypatch.setattr(meter_module, "load_model", refuses)
  with pytest.raises(RuntimeError, match="load the network, got .*unknown layer.*; measure without"):
    meter_module._measured("a key", meter._packed(), (0, 4, 0))
