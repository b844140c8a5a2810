"""An Analysis as node data of Google's Model Explorer, which shows a .tflite file as a graph.

The layout is that of `ModelNodeData` in the package `ai-edge-model-explorer` (node_data_builder.py): for each
graph, by its name, {"results": {tensor: {"value": number}}, "gradient": [{"stop": 0..1, "bgColor": hex}]}. A
tensor is named as in the file, and its value is shown at the operator or constant that it comes from.
"""

import math
from collections.abc import Iterator
from typing import Any

from kquant.analysis.results import AnalysisRow
from kquant.analysis.sites import ACTIVATION

GRAPH = "main"
"""The name of the one graph of a .tflite file."""
_WEIGHTS = ("int8", "int4")
"""Types of weights; constants of other types are biases, shapes and axes."""
_GRADIENT = [{"stop": 0, "bgColor": "#e06666"}, {"stop": 0.5, "bgColor": "#ffe599"},
             {"stop": 1, "bgColor": "#b6d7a8"}]


def node_data(rows: tuple[AnalysisRow, ...], program: Any) -> dict[str, Any]:
  """Returns {graph: its node data}: 1 / QNSR at the output, in dB, where a tensor alone is quantized.

  Args:
    rows: of tensors; those without noise, or with nothing but noise, are left out.
    program: the IntProgram of the file.
  """
  results = {name: {"value": round(-10 * math.log10(row.solo), 2)}
             for row in rows if row.solo and math.isfinite(row.solo) for name in _tensors(row, program)}
  return {GRAPH: {"results": results, "gradient": _GRADIENT}}


def _tensors(row: AnalysisRow, program: Any) -> Iterator[str]:
  """The tensors of the file that a row is about: all on a grid, or the weights of a layer."""
  if row.part == ACTIVATION:
    yield from (name for name in (row.name, *row.shared_with) if name in program.tensors)
  else:
    yield from (name for name, tensor in program.tensors.items() if name.startswith(f"{row.name}/")
                and tensor.data is not None and tensor.dtype in _WEIGHTS)
