"""Budget: what a quantized network may cost."""

import dataclasses
from typing import TYPE_CHECKING

from kquant.core.text import milliseconds

if TYPE_CHECKING:
  from kquant.allocation.latency import LatencyTable

UNITS = {"bytes": "bytes", "bops": "bit operations", "latency_ms": "ms"}
STORAGES = ("file", "entropy")


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a quantized network may cost; of several limits all hold.

  Attributes:
    bytes: of the .tflite file.
    bops: bit operations of one image: multiplications of all kernels, each times the bits of its weights and
      of the activations that its operator computes with.
    latency_ms: milliseconds of an image, the sum of those of the operators, each timed by itself.
    storage: how bytes are counted: "file" as the file lies on a device, where weights of 5 to 7 bits take as
      many as those of 8; "entropy" as it weighs in a compressed download (deflate, as in an APK).
    latencies: of operators, as `measure_latency` finds them on the device that is meant; those that it lacks
      are timed on this machine. None: all are. The budget of an `Allocation` has those, too.

  Raises:
    ValueError: no limit, one that is not above 0, or another storage.

  Example:
    >>> kq.Budget(bytes=100_000).limits()
    {'bytes': 100000.0}
  """

  bytes: float | None = None
  bops: float | None = None
  latency_ms: float | None = None
  storage: str = "file"
  latencies: "LatencyTable | None" = None

  def __post_init__(self):
    if self.storage not in STORAGES:
      raise ValueError(f"Budget: storage must be one of {', '.join(STORAGES)}, got {self.storage!r}.")
    if not self.limits():
      raise ValueError(f"Budget: expected a limit, got none; give {' or '.join(UNITS)}.")
    for what, limit in self.limits().items():
      if not limit > 0:
        raise ValueError(f"Budget: {what} must be above 0, got {limit:g}.")

  def limits(self) -> dict[str, float]:
    """Lists the limits.

    Returns:
      {what: the most of it}, of those that are given.
    """
    return {what: float(getattr(self, what)) for what in UNITS if getattr(self, what) is not None}


def amount(what: str, value: float) -> str:
  """Returns an amount in words.

  >>> amount("bytes", 12345.0), amount("latency_ms", 0.12345)
  ('12,345 bytes', '0.123 ms')
  """
  return f"{milliseconds(value) if what == 'latency_ms' else f'{value:,.0f}'} {UNITS[what]}"
