"""Shared by all tests: quiet start, seeds, the shared data where it is present."""

import gc
import os
import pathlib

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import pytest
import tf_keras as keras
from tensorflow.python.framework import ops

SHARED = pathlib.Path(os.environ.get("KQUANT_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _fresh_session():
  """Each test starts with the same seed and without the layers of the one before."""
  _start_anew()


def pytest_fixture_setup(fixturedef):
  """So does what tests share, which is made before the fixture above."""
  if fixturedef.scope != "function":
    _start_anew()


def _start_anew():
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)


def pytest_runtest_teardown(item, nextitem):
  """Behind a module, TensorFlow forgets its custom gradients: it keeps the graph of each one for ever."""
  if nextitem is None or nextitem.path != item.path:
    known = ops.gradient_registry._registry
    for name in [name for name in known if name.startswith("CustomGradient-")]:
      del known[name]


def pytest_collection_finish():
  """The collector leaves what the imports made: it took a tenth of the suite's processor time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000)


@pytest.fixture
def shared_data() -> pathlib.Path:
  """The folder of real models and images, named by KQUANT_SHARED (default ../shared)."""
  if not (SHARED / "data").is_dir():
    pytest.skip(f"no shared data at {SHARED}; name it with KQUANT_SHARED")
  return SHARED / "data"
