"""What a quantized network costs as a file: bytes, and milliseconds of an image."""

import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from kquant.api import QuantizationResult
from tflite_export.exporter import export
from tflite_export.proof.runtime import Runtime

_WARM_UP = 5


def contents(result: QuantizationResult) -> bytes:
  """Returns the .tflite file of a result, its constants verified.

  Raises:
    UnsupportedLayerError: a layer without an integer operator, by name.
    ValueError: grids that no file holds.
  """
  with tempfile.TemporaryDirectory() as folder:
    return export(result, pathlib.Path(folder) / "model.tflite").path.read_bytes()


def milliseconds(files: Sequence[bytes], *, runs: int = 50) -> tuple[float, ...]:
  """Returns the median milliseconds that one image computes on one thread of each file, run in turn.

  Of each turn the faster of two runs counts: the first one brings the file back into the caches.
  """
  runtimes = [Runtime(file) for file in files]
  times = [[min(runtime.time_once(computing=True) for _ in range(2)) for runtime in runtimes]
           for _ in range(_WARM_UP + runs)][_WARM_UP:]
  return tuple(1e3 * float(median) for median in np.median(times, axis=0))
