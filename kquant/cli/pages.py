"""--report and --node_data: what the scripts write of an analysis."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from kquant.allocation.results import Allocation
from kquant.analysis.layer_errors import FEWEST_IMAGES, analyze
from kquant.analysis.results import Analysis
from kquant.cli import flags as shared
from kquant.doctor.results import Diagnosis
from tflite_export.exporter import Exported
from tflite_export.program.program import IntProgram

FLAGS = flags.FLAGS
ANALYZED_IMAGES = 32
"""Images by which the noise of each tensor is measured for a page."""


def asked() -> bool:
  """Whether the flags ask for something that needs an analysis."""
  return FLAGS.report is not None or ("node_data" in FLAGS and FLAGS.node_data is not None)


def analysis_of(result: Any, images: list[np.ndarray], *, most: int = ANALYZED_IMAGES) -> Analysis | None:
  """Returns the analysis of a quantized network on the first images; None where they are too few."""
  if len(images[0]) < FEWEST_IMAGES:
    return None
  return analyze(result, [array[:most] for array in images])


@dataclasses.dataclass(frozen=True)
class Page:
  """What --report shows beside the analysis.

  Attributes:
    result: what was quantized: a QuantizationResult, or a model with quantizers.
    images: that the distributions are drawn of.
    judged: what `evaluation.evaluate` returned; None: nothing was judged.
    exported: the file; None: there is none.
    diagnosis: what was found and changed; None: nothing was looked for.
    allocation: of the bits, where there was a budget.
  """

  result: Any
  images: list[np.ndarray]
  judged: dict[str, Any] | None = None
  exported: Exported | None = None
  diagnosis: Diagnosis | None = None
  allocation: Allocation | None = None

  def write(self, staged: Callable[[str], pathlib.Path], analysis: Analysis | None) -> None:
    """Writes the page where --report names one."""
    if FLAGS.report:
      from kquant.analysis.page.page import report  # matplotlib takes long to import
      results = (self.result, *([] if self.allocation is None else [self.allocation]))
      report(staged(FLAGS.report), *results, analysis=analysis, export=self.exported, images=self.images,
             judged=self.judged, diagnosis=self.diagnosis)


def write_node_data(staged: Callable[[str], pathlib.Path], analysis: Analysis | None,
                    program: IntProgram) -> None:
  """Writes the file of --node_data, where it is named.

  Raises:
    ValueError: there is no analysis.
  """
  if FLAGS.node_data:
    if analysis is None:
      raise ValueError(f"--node_data: the noise of tensors is measured on {FEWEST_IMAGES} images or more; "
                       "give more calibration images.")
    shared.write_json(staged(FLAGS.node_data), analysis.to_node_data(program))
