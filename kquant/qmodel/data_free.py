"""Ranges of activations and means of inputs without images: from what batch norms knew."""

import numpy as np
import tf_keras as keras

from kquant.core.input_range import InputRange
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.qmodel.finalize import remove_activation_quantizers, unwrap_weights
from kquant.qmodel.training_layers import take_out_training_layers
from kquant.ranges.base import Estimator
from kquant.ranges.extrema import MinMax
from kquant.rewrites.scaling.moment_propagation import propagate_moments


def known_without_data(qmodel: keras.Model, input_range: InputRange | None, *,
                       graph: Graph | None = None
                       ) -> tuple[dict[str, Estimator], dict[str, np.ndarray]]:
  """Returns ({QuantizeActivation layer: its range}, {QuantizeWeights layer: mean of its input}).

  A normal channel is taken to reach 6 deviations from its mean; a ReLU and its cap bound that (Nagel et
  al. 2021, section 3.1, which has beta -+ 6 gamma).

  Args:
    qmodel: made in this process of a model whose batch norms were folded in this process.
    input_range: of the inputs; with None there are no ranges, and what follows from no batch norm has mean 0.
    graph: that qmodel was made of, where the caller has it.

  Raises:
    ValueError, UnsupportedLayerError: see `propagate_moments`.
  """
  graph = Graph.from_model(qmodel) if graph is None else graph.with_weights_of(qmodel)
  live = live_layers(qmodel)
  take_out_training_layers(graph)
  members = remove_activation_quantizers(graph)
  unwrap_weights(graph, live)
  graph.normalize()
  moments = propagate_moments(graph, input_range)
  means: dict[str, list[np.ndarray]] = {}
  for node in graph.nodes:
    if node.facts.weights:
      (source,) = node.inputs
      mean = moments[source].mean if source in moments else np.zeros(source.shape[-1])
      means.setdefault(node.layer.name, []).append(mean)
  ranges = {}
  for name, refs in members.items() if input_range is not None else ():
    ends = min(moments[ref].low.min() for ref in refs), max(moments[ref].high.max() for ref in refs)
    ranges[name] = MinMax()
    ranges[name].images = 1
    ranges[name].low, ranges[name].high = (float(end) for end in live[name].float_call(np.array(ends)))
  return ranges, {name: np.mean(parts, axis=0) for name, parts in means.items()}
