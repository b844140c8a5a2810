"""Rounding of a fused LSTM: both kernels of a gate together, on what all steps read.

A gate reads W^T x_t + R^T h_{t-1}. [W; R] is one matrix, and one Gram matrix H judges it: that of x_t and
h_{t-1} over all steps (`input_moments.moments_of_steps`). So R makes up for errors of W. Each has one scale.
With these on the diagonal of S, S^-1 [W; R] is rounded to whole numbers and judged by S H S: a problem of one
scale, as `rounding` knows it.
"""

import numpy as np

from kquant.core.encodings import Encoding
from kquant.graph.fused_lstm import GATES
from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.adaround import adaround
from kquant.ptq.layerwise.input_moments import Moments, fitted_problem
from kquant.ptq.layerwise.rounding import RoundingProblem
from kquant.ptq.layerwise.streaming import LayerTurn

Rounded = dict[str, tuple[np.ndarray, np.ndarray]]
"""{weight: (integers in Keras layout, scale [channels] or [1])}."""


def round_gates(turn: LayerTurn, grids: dict[str, Encoding], halves: list[Moments], *,
                method: str = "closed_form") -> Rounded:
  """Returns the integers and the scales [1] of all kernels of a fused LSTM.

  Args:
    turn: of the layer, with its float weights.
    grids: {weight: gives its bits}.
    halves: as `moments_of_steps` returns them.
    method: "closed_form" or "adaround".
  """
  found: Rounded = {}
  for gate in GATES:
    names = (f"kernel_{gate}", f"recurrent_{gate}")
    parts = [turn.float_params[name] for name in names]
    problem = fitted_problem(np.concatenate(parts)[None], halves, grids[names[0]].limits[1], turn.images)
    found.update(zip(names, _rounded_parts(problem, len(parts[0]), method)))
  return found


def _rounded_parts(problem: RoundingProblem, border: int, method: str) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (integers, scale) of the inputs in front of a border and of those behind it."""
  kernel, gram, qmax = problem.kernel, problem.gram, problem.qmax
  weight, cuts = np.diagonal(gram, axis1=1, axis2=2), (slice(border), slice(border, None))
  scales = [rounding.weighted_scale(kernel[:, cut], weight[:, cut], qmax, per_channel=False).reshape(-1)
            for cut in cuts]
  steps = np.repeat(np.concatenate(scales), [border, kernel.shape[1] - border])
  whole = RoundingProblem(kernel / steps[:, None], gram * np.outer(steps, steps), qmax)
  one = np.ones((1, 1, 1))
  integers, factor = (adaround(whole, one), one) if method == "adaround" else rounding.rounded(whole, one)
  return [(integers[0, cut], scale * factor.reshape(-1)) for cut, scale in zip(cuts, scales)]
