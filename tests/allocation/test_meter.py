"""Noise measured by several processes is that of one, to the bit."""

import concurrent.futures
import contextlib
import sys

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.allocation import meter as meter_module
from kquant.allocation.meter import Alone, NoiseMeter
from kquant.analysis.layer_errors import network_of
from kquant.core.encodings import activation_grid
from tests import models

_MISSING = "is not installed; pip install .[parallel]"
joblib = pytest.importorskip("joblib", reason=f"joblib {_MISSING}")


@pytest.fixture(scope="module")
def meter():
  keras.utils.set_random_seed(0)
  model = models.randomized(models.mobile_block())
  images = models.sample_inputs(model, 12)
  result = kq.quantize(model, images, effort=None)
  return NoiseMeter(network_of(result.qmodel, result.float_params), images)


@pytest.fixture
def alone(meter):
  """Every grid at several widths: more than are measured together."""
  grids = [name for part, name in meter._sites if part == "activation"]
  return [Alone(name, grid=activation_grid(-1.0, high, bits=bits, symmetric=False))
          for name in grids for high in (2.0, 3.0) for bits in (2, 3, 4, 5, 6, 8)]


def test_tasks_do_not_depend_on_the_number_of_processes(meter, alone):
  sizes = meter._bench.groups([meter._site(one) for one in alone])
  assert len(sizes) > 1 and sum(sizes) == len(alone)
  parts = [meter.measure_group(alone[:sizes[0]]), meter.measure_group(alone[sizes[0]:sum(sizes[:2])])]
  np.testing.assert_array_equal(np.concatenate(parts), meter.measure(alone)[:sum(sizes[:2])])


@contextlib.contextmanager
def a_dask_cluster():
  distributed = pytest.importorskip("distributed", reason=f"dask {_MISSING}")
  with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster)):
    yield


@pytest.mark.parametrize("backend, cluster", [("loky", contextlib.nullcontext), ("dask", a_dask_cluster)])
def test_two_processes_find_the_same_numbers(meter, alone, backend, cluster, monkeypatch):
  wanted = meter.measure(alone)
  monkeypatch.setattr(NoiseMeter, "measure_group", None)  # of this process
  with cluster(), joblib.parallel_config(backend=backend, n_jobs=2):
    found = meter.measure(alone)
  assert (found == wanted).all() and (wanted > 0).all()


def test_without_joblib_all_is_measured_here(meter, alone, monkeypatch):
  wanted = meter.measure(alone)
  monkeypatch.setitem(sys.modules, "joblib", None)
  np.testing.assert_array_equal(meter.measure(alone), wanted)


def test_a_process_that_ends_is_told_in_a_line(meter, alone, monkeypatch):
  def breaks(self, tasks):
    list(tasks)
    raise concurrent.futures.BrokenExecutor("a worker\nended")

  monkeypatch.setattr(joblib.Parallel, "__call__", breaks)
  with (joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(RuntimeError, match=r"it ended, .* take fewer \(n_jobs\), or none\.$")):
    meter.measure(alone)


def test_a_network_that_cannot_be_loaded_is_told_in_a_line(meter, alone, monkeypatch):
  def refuses(path):
    raise ValueError("unknown layer\nat length")

  monkeypatch.setattr(meter_module, "load_model", refuses)
  with pytest.raises(RuntimeError, match="load the network, got .*unknown layer.*; measure without"):
    meter_module._measured("a key", meter._packed(), alone[:1])
