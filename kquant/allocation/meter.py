"""Noise at the output where one layer or one grid alone is quantized: here, or in processes of joblib.

    with joblib.parallel_config(backend="loky", n_jobs=2):    # or "dask", "ray", with a cluster of the user's
      kq.allocate_bits(...)

Let e be the error of a layer's outputs, of which J makes J e of the network's. With random signs s at the
network's outputs E (s' J e)^2 = |J e|^2, and s' J e is the inner product of e with what one backward pass
gives at this layer, and at all others: so one pass serves every layer, grid and width (to first order in e).
e is that of the integers that were rounded, at every position, so that errors which add up or cancel
downstream do so here.

The network is sent once and loaded once a process; a task is a few images. What is measured together does not
depend on how many processes there are, so that neither do the numbers.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import pathlib
import pickle
import tempfile
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kquant.allocation.gains import squared_departures
from kquant.allocation.rounded import RoundedLayer
from kquant.analysis.calls import calls_with
from kquant.analysis.layer_errors import network_of
from kquant.analysis.measure import Network
from kquant.analysis.sites import ACTIVATION, WEIGHTS, sites
from kquant.core.encodings import Encoding
from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.doctor.remedies import on_grid
from kquant.doctor.variants import Bench, Variant
from kquant.graph import keras_calls
from kquant.graph.execution import NodeCall
from kquant.graph.model_files import load_model
from kquant.graph.sizes import BACKWARD_ROOM, backward_bytes, images_at_once, open_size

PROBES = 8
"""Sign vectors of each image. (On 32 images, over the noise of each width run by itself, geometric means over
the layers of ResNet-8, MobileNetV1 0.25 and V2: 1.0 to 1.1 at 3 to 6 bits, 1.1 to 1.3 at 2. With one gain a
channel, times e' H e, it is 0.4 to 0.6: errors are correlated over positions.)"""
_MOST_IMAGES = 32
Task = tuple[int, int, int]
"""Images, from and to, and which part of their sign vectors."""
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
    alone: what is quantized, each by itself.
    seed: of the signs.
    signal: of each answer, the power of the float network's; None: it is measured.
  """

  def __init__(self, network: Network, images: list[np.ndarray], alone: Sequence[Alone], *, seed: int = 0,
               signal: list[float] | None = None):
    self._network, self._images, self._alone, self._seed = network, images, alone, seed
    self._signal = Bench(network, images).signal if signal is None else signal
    self._specs = keras_calls.input_specs(network.qmodel)
    self._bytes = backward_bytes(network.graph) * open_size(self._specs, images)
    self._together = images_at_once(self._bytes, PROBES, BACKWARD_ROOM)

  def measure(self) -> np.ndarray:
    """Returns the noise of each, [alone]: its mean power over the images, over that of the signal.

    Raises:
      RuntimeError: a process of joblib ended or could not load the network.
      UnsupportedLayerError: an operator of the network has no derivative in TensorFlow.
    """
    tasks = self.tasks()
    found = (self._in_processes(tasks) if len(tasks) > 1 and _processes() > 1 else
             [self.squares(task) for task in tasks])
    return np.sum(found, axis=0) / (PROBES * len(self._images[0]))

  def tasks(self) -> list[Task]:
    """Returns what is measured together, as memory allows."""
    step = images_at_once(self._bytes * self._together, _MOST_IMAGES, BACKWARD_ROOM)
    return [(start, start + step, part) for start in range(0, len(self._images[0]), step)
            for part in range(PROBES // self._together)]

  def squares(self, task: Task) -> np.ndarray:
    """Returns the sum over images and sign vectors of (s' J e)^2 of each, over the signal, [alone]."""
    start, stop, part = task
    batch = [tf.constant(array[start:stop], spec.dtype)
             for array, spec in zip(self._images, self._specs, strict=True)]
    try:
      return self._run(batch, tf.constant([self._seed, start * PROBES + part])).numpy().astype(np.float64)
    except LookupError as error:
      raise UnsupportedLayerError("allocate_bits: expected a network of operators with derivatives, got "
                                  f"{first_line(error)}.") from error

  @functools.cached_property
  def _run(self) -> Callable[..., tf.Tensor]:
    found = {(site.part, site.name): site for site in sites(self._network.graph)}
    variants = [Variant(found[WEIGHTS if one.rounded else ACTIVATION, one.name], self._call(one))
                for one in self._alone]
    return squared_departures(self._network, variants, self._signal, probes=self._together)

  def _call(self, alone: Alone) -> NodeCall:
    if alone.rounded is not None:
      return calls_with({alone.name: alone.rounded.params})
    return self._network.calls[0] if alone.grid is None else on_grid(alone.grid)

  def _in_processes(self, tasks: list[Task]) -> list[np.ndarray]:
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
      body = (path.read_bytes(), self._network.float_params, self._images, self._alone, self._seed,
              self._signal)
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


def _measured(key: str, packed: np.ndarray, task: Task) -> np.ndarray:
  """Runs in a process of joblib.

  Args:
    key: of the network.
    packed: as `NoiseMeter._packed` makes it.
    task: what is measured together.
  """
  with _LOCK:
    if key not in _loaded:
      _loaded.clear()
      _loaded[key] = _unpacked(packed)
    return _loaded[key].squares(task)


def _unpacked(packed: np.ndarray) -> NoiseMeter:
  model, float_params, images, alone, seed, signal = pickle.loads(packed.tobytes())
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "network.keras"
    path.write_bytes(model)
    try:
      qmodel = load_model(path)
    except ValueError as error:
      raise RuntimeError("allocate_bits: expected a process of joblib to load the network, got "
                         f"{first_line(error)}; measure without joblib.parallel_config.") from error
  return NoiseMeter(network_of(qmodel, float_params), images, alone, seed=seed, signal=signal)
