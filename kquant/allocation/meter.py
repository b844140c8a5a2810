"""Noise at the output where one layer or one grid alone is quantized: here, or in processes of joblib.

    with joblib.parallel_config(backend="loky", n_jobs=2):    # or "dask", "ray", with a cluster of the user's
      kq.allocate_bits(...)

The network is sent once and loaded once a process; a task is some integers and grids. What is measured
together does not depend on how many processes there are, so that neither do the numbers.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import pathlib
import pickle
import tempfile
import threading
from collections.abc import Sequence

import numpy as np

from kquant.allocation.rounded import RoundedLayer
from kquant.analysis.calls import calls_with
from kquant.analysis.layer_errors import network_of
from kquant.analysis.measure import Network
from kquant.analysis.sites import ACTIVATION, WEIGHTS, Site, sites
from kquant.core.encodings import Encoding
from kquant.core.text import first_line
from kquant.doctor.remedies import on_grid
from kquant.doctor.variants import Bench, Variant
from kquant.graph.model_files import load_model

_LOCK = threading.Lock()
"""Workers of dask have threads; TensorFlow uses all cores in one of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
  """What is quantized while all else computes in float.

  Attributes:
    name: of the layer, or of the first tensor on the grid.
    rounded: the layer as it is rounded; None: it is a grid.
    grid: that all tensors lie on; None, of a grid: its own.
  """

  name: str
  rounded: RoundedLayer | None = None
  grid: Encoding | None = None


class NoiseMeter:
  """Measures the noise of a network on images.

  Args:
    network: calibrated.
    images: one array [n, ...] a model input.
    reference: what the float network answers, [n, ...] each; None: it is computed.
  """

  def __init__(self, network: Network, images: list[np.ndarray], reference: list[np.ndarray] | None = None):
    self._network, self._images = network, images
    self._bench = Bench(network, images, reference)
    self._sites = {(site.part, site.name): site for site in sites(network.graph)}

  def measure(self, alone: Sequence[Alone]) -> np.ndarray:
    """Returns the noise of each, [alone], the mean over the images; see `Bench.solo`.

    Raises:
      RuntimeError: a process of joblib ended or could not load the network.
    """
    ends = np.cumsum([0, *self._bench.groups([self._site(one) for one in alone])])
    tasks = [alone[start:end] for start, end in itertools.pairwise(ends)]
    return np.concatenate(self._in_processes(tasks) if len(tasks) > 1 and _processes() > 1 else
                          [self.measure_group(task) for task in tasks])

  def measure_group(self, alone: Sequence[Alone]) -> np.ndarray:
    """Returns the noise of what is measured together, [alone]."""
    return self._bench.solo([self._variant(one) for one in alone]).mean(1)

  def _site(self, alone: Alone) -> Site:
    return self._sites[ACTIVATION if alone.rounded is None else WEIGHTS, alone.name]

  def _variant(self, alone: Alone) -> Variant:
    if alone.rounded is not None:
      call = calls_with({alone.name: alone.rounded.params})
    else:
      call = self._network.calls[0] if alone.grid is None else on_grid(alone.grid)
    return Variant(self._site(alone), call)

  def _in_processes(self, tasks: list[Sequence[Alone]]) -> list[np.ndarray]:
    import joblib
    packed = self._packed()
    key = hashlib.blake2b(packed).hexdigest()
    try:
      return joblib.Parallel()(joblib.delayed(_measured)(key, packed, task) for task in tasks)
    except concurrent.futures.BrokenExecutor as error:
      raise RuntimeError("allocate_bits: expected a process of joblib to measure noise, it ended, mostly for "
                         "want of memory; take fewer (n_jobs), or none.") from error

  def _packed(self) -> np.ndarray:
    """All that a process needs, as bytes in an array: joblib writes a large one once for all tasks."""
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "network.keras"
      self._network.qmodel.save(path)
      body = (path.read_bytes(), self._network.float_params, self._images, self._bench.reference)
    return np.frombuffer(pickle.dumps(body), np.uint8)


def _processes() -> int:
  """How many processes joblib was told to take; one where it is not installed."""
  try:
    import joblib
  except ImportError:
    return 1
  return joblib.effective_n_jobs(None)


_loaded: dict[str, NoiseMeter] = {}
"""Of this process: that of its last network."""


def _measured(key: str, packed: np.ndarray, alone: Sequence[Alone]) -> np.ndarray:
  """Runs in a process of joblib.

  Args:
    key: of the network.
    packed: as `NoiseMeter._packed` makes it.
    alone: what is measured together.
  """
  with _LOCK:
    if key not in _loaded:
      _loaded.clear()
      _loaded[key] = _unpacked(packed)
    return _loaded[key].measure_group(alone)


def _unpacked(packed: np.ndarray) -> NoiseMeter:
  model, float_params, images, reference = pickle.loads(packed.tobytes())
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "network.keras"
    path.write_bytes(model)
    try:
      qmodel = load_model(path)
    except ValueError as error:
      raise RuntimeError("allocate_bits: expected a process of joblib to load the network, got "
                         f"{first_line(error)}; measure without joblib.parallel_config.") from error
  return NoiseMeter(network_of(qmodel, float_params), images, reference)
