"""What a file is run on, and what the scripts say of a run."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from kquant.cli.sources import open_source
from kquant.core.encodings import Encoding
from kquant.core.input_spec import InputSpec
from kquant.core.records import SAME_IMAGES
from kquant.core.text import percent

FLAGS = flags.FLAGS
RANDOM_INPUTS = 2


def inputs_to_run(specs: Sequence[InputSpec],
                  grids: Sequence[Encoding | None]) -> tuple[list[np.ndarray], str]:
  """Returns (inputs [n, ...], one array an input, and what they are in words).

  The first samples of --data; where it is left out, random points of the inputs' grids. An input of
  indices has no grid (None) and needs --data.

  Raises:
    FileNotFoundError, ValueError: --data is not there, does not fit, or is needed.
  """
  if FLAGS.data is not None:
    source = open_source(FLAGS.data, specs, preprocess=FLAGS.preprocess)
    arrays = source.load(np.arange(min(FLAGS.data_samples, len(source))))
    return arrays, f"{len(arrays[0])} inputs of {FLAGS.data}"
  for spec, grid in zip(specs, grids):
    if grid is None:
      raise ValueError(f"--data is missing: input {spec.name!r} takes indices, which are not drawn at "
                       "random; give --data=FILE.npz with inputs such as those it was calibrated on.")
  rng = np.random.default_rng(FLAGS.seed)
  arrays = [grid.dequantize(rng.integers(*grid.limits, (RANDOM_INPUTS, *spec.shape), endpoint=True))
            for spec, grid in zip(specs, grids)]
  return arrays, f"{RANDOM_INPUTS} random inputs"


def certificate_rows(certificate: dict[str, Any] | None) -> list[tuple[str, str]]:
  """Returns the rows of a table that say what a certificate found; none without one."""
  if certificate is None:
    return []
  results = certificate["kernel_sets"].values()
  counted = [row for result in results for row in result["operators"].values()]
  elements, mismatching = (sum(row[key] for row in counted) for key in ("elements", "mismatching"))
  return [("certified", f"{elements:,} elements computed by our own arithmetic and by LiteRT's xnnpack and "
                        f"reference kernels: {mismatching} differ"),
          *[("not simulated", line) for line in _not_simulated(certificate)]]


def exactness(certificate: dict[str, Any], exact: str) -> str:
  """Returns a word of the caller's for an exact certificate, else what of the file was not simulated.

  Args:
    certificate: of a file that was written.
    exact: the word.
  """
  return exact if certificate["exact"] else f"not simulated: {_not_simulated(certificate)[0]}"


def _not_simulated(certificate: dict[str, Any]) -> list[str]:
  return [line for result in certificate["kernel_sets"].values() for line in result["not_simulated"]]


def eval_rows(judged: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns the rows of a table that say how right a file and its float model are, and how alike.

  Args:
    judged: what `evaluation.evaluate` returned.
  """
  missing = "- (no labels)" if judged["agreement"] is not None else "- (the output is not [batch, classes])"
  shown = functools.partial(percent, digits=2, missing=missing)
  return [
      ("images judged", f"{judged['images']:,}{_constant(judged)}"),
      ("float top-1", shown(judged["float"]["top1"])),
      ("integer top-1", shown(judged["quantized"]["top1"])),
      ("agreement", shown(judged["agreement"])),
      ("output SQNR", "-" if judged["sqnr_db"] is None else f"{judged['sqnr_db']:.1f} dB"),
      ("tied outputs", missing if judged["tied"] is None else str(judged["tied"])),
  ]


def closeness_row(judged: dict[str, Any]) -> tuple[str, str]:
  """Returns the row of a table that says the same of calibration images, without labels."""
  measured = [] if judged["sqnr_db"] is None else [f"output SQNR {judged['sqnr_db']:.1f} dB"]
  if judged["agreement"] is not None:
    measured.append(f"the same answer on {percent(judged['agreement'])}")
  images = f"{judged['images']} calibration images{_constant(judged)}"
  return "against float", f"{', '.join(measured) or '-'} (of {images})"


def _constant(judged: dict[str, Any]) -> str:
  return f" {SAME_IMAGES}" if judged["constant"] else ""
