"""Flags that say what a file may cost."""

import contextlib

from absl import flags

from kquant.allocation.budget import STORAGES, Budget
from kquant.cli import flags as shared

FLAGS = flags.FLAGS
_LIMITS = ("budget_bytes", "budget_bops", "budget_latency_ms")
_BESIDE = ("budget_storage", "latencies", "weight_bits", "activation_bits", "processes")


def define_flags() -> None:
  """--budget_bytes, --budget_bops, --budget_latency_ms and what goes with them."""
  if shared.is_defined("budget_bytes"):
    for name in ("budget_bops", "budget_latency_ms", *_BESIDE):
      shared.is_defined(name)
    return
  flags.DEFINE_float("budget_bytes", None, "most bytes of the .tflite file: the bits of each layer are "
                     "chosen (kq.allocate_bits)", lower_bound=1)
  flags.DEFINE_float("budget_bops", None, "most bit operations of an image", lower_bound=1)
  flags.DEFINE_float("budget_latency_ms", None, "most milliseconds of an image on one thread, operators "
                     "added up", lower_bound=0)
  shared.define_path("latencies", "JSON file of the milliseconds of operators, as kq.measure_latency finds "
                     "them on the device that is meant; this machine's by default", endings=(".json",))
  flags.DEFINE_enum("budget_storage", "file", STORAGES, "bytes as the file lies on a device, or compressed")
  flags.DEFINE_list("weight_bits", ["2", "3", "4", "5", "6", "8"], "bits of weights to choose from")
  flags.DEFINE_list("activation_bits", ["8", "16"], "bits of activations to choose from")
  flags.DEFINE_integer("processes", 1, "processes on this machine that measure noise, by joblib",
                       lower_bound=1)
  for name in ("weight_bits", "activation_bits"):
    flags.register_validator(name, lambda values: all(value.isdecimal() for value in values),
                             message="expected numbers with commas between, such as 4,8")


def are_given() -> bool:
  """Whether there is a budget.

  Raises:
    ValueError: a flag about budgets without one.
  """
  if any(FLAGS[name].value is not None for name in _LIMITS):
    return True
  for name in _BESIDE:
    if FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is for a budget; give --{' or --'.join(_LIMITS)}, or leave it out.")
  return False


def budget() -> Budget:
  """Returns the Budget of the flags."""
  from kquant.allocation.latency import LatencyTable  # imports TensorFlow
  return Budget(bytes=FLAGS.budget_bytes, bops=FLAGS.budget_bops, latency_ms=FLAGS.budget_latency_ms,
                storage=FLAGS.budget_storage,
                latencies=None if FLAGS.latencies is None else LatencyTable.load(FLAGS.latencies))


def widths() -> dict[str, tuple[int, ...]]:
  """Returns --weight_bits and --activation_bits as `kquant.allocate_bits` takes them."""
  return {"weights": tuple(map(int, FLAGS.weight_bits)),
          "activations": tuple(map(int, FLAGS.activation_bits))}


def processes() -> contextlib.AbstractContextManager:
  """Returns a context in which noise is measured by as many processes as --processes says.

  Raises:
    ValueError: joblib is not installed.
  """
  if FLAGS.processes == 1:
    return contextlib.nullcontext()
  try:
    import joblib
  except ImportError:
    raise ValueError(f"--processes={FLAGS.processes}: expected joblib, it is not installed; pip install "
                     "joblib, or leave it out.") from None
  return joblib.parallel_config(backend="loky", n_jobs=FLAGS.processes)
