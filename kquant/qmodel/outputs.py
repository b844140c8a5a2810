"""What a network answers: its outputs before a closing softmax or sigmoid."""

from collections.abc import Callable

import numpy as np
import tf_keras as keras

from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.rewrites.scaling.channel_statistics import before_saturation


def answers(graph: Graph) -> list[Ref]:
  """Returns the outputs of a float or quantized network before what saturates, behind their quantizers."""
  tensors = [before_saturation(_without_quantizer(ref)) for ref in graph.output_refs]
  return [with_quantizer(graph, ref) for ref in tensors]


def with_quantizer(graph: Graph, ref: Ref) -> Ref:
  """Returns the tensor as its readers see it: behind its quantizer, where it has one."""
  behind = [node for node in graph.readers(ref) if issubclass(node.layer.cls, QuantizeActivation)]
  return Ref(behind[0]) if behind else ref


def _without_quantizer(ref: Ref) -> Ref:
  return ref.node.inputs[0] if issubclass(ref.node.layer.cls, QuantizeActivation) else ref


def network_outputs(model: keras.Model, images: list[np.ndarray], *, batch_size: int = 32,
                    graph: Graph | None = None) -> list[np.ndarray]:
  """Runs a float model or a qmodel at inference; returns its `answers`, one array an output.

  A softmax that is fused into a layer of a float model stays: standardize the model first.

  Args:
    images: one array [n, ...] a model input.
    batch_size: images at once.
    graph: that the model was made of, where the caller has it.
  """
  return output_function(model, graph=graph)(images, batch_size)


def output_function(model: keras.Model, *, graph: Graph | None = None) -> Callable[..., list[np.ndarray]]:
  """Returns `network_outputs` of a model, (images, batch size) -> outputs, traced once for many calls.

  It answers with the weights that the model has then.

  Args:
    graph: that the model was made of, where the caller has it.
  """
  graph = graph or Graph.from_model(model)
  return Execution(graph, model).tap(answers(graph))
