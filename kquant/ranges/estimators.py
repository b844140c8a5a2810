"""ESTIMATORS: methods that choose the range [low, high] of an activation tensor from data.

Ranges of kernels are chosen by `ranges.weights`.
"""

from kquant.core.tensor_spec import parse_range
from kquant.ranges.aciq import AnalyticalClipping
from kquant.ranges.base import Estimator
from kquant.ranges.cross_entropy import CrossEntropy
from kquant.ranges.extrema import MeanExtrema, MinMax
from kquant.ranges.kl import KullbackLeibler
from kquant.ranges.lp import LpError, MeanSquaredError
from kquant.ranges.octav import Octav
from kquant.ranges.percentile import Percentile

ESTIMATORS: dict[str, type[Estimator]] = {
    "minmax": MinMax, "mean_extrema": MeanExtrema, "percentile": Percentile, "mse": MeanSquaredError,
    "lp": LpError, "kl": KullbackLeibler, "aciq": AnalyticalClipping, "octav": Octav,
    "cross_entropy": CrossEntropy}


def make_estimator(range_name: str) -> Estimator:
  """Returns a new estimator of a `TensorSpec.range`.

  Args:
    range_name: a name of ESTIMATORS, for some with a number: "mse", "percentile:99.9".

  Raises:
    ValueError: no such method, or a number that it does not take.

  >>> estimator = make_estimator("minmax")
  >>> estimator.update([[-1.0, 3.0], [0.0, 5.0]])
  >>> estimator.range(bits=8, symmetric=False)
  (-1.0, 5.0)
  """
  name, number = parse_range(range_name)
  return ESTIMATORS[name]() if number is None else ESTIMATORS[name](number)
