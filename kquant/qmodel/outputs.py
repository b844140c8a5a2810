"""What a network answers: its outputs before a closing softmax or sigmoid; outputs that are split."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.rewrites.scaling.channel_statistics import before_saturation


def answers(graph: Graph) -> list[Ref]:
  """Returns the outputs of a float or quantized network before what saturates, behind their quantizers."""
  tensors = [_before_saturation(ref) for ref in graph.output_refs]
  return [with_quantizer(graph, ref) for ref in tensors]


def with_quantizer(graph: Graph, ref: Ref) -> Ref:
  """Returns the tensor as its readers see it: behind its quantizer, where it has one."""
  behind = [node for node in graph.readers(ref) if issubclass(node.layer.cls, QuantizeActivation)]
  return Ref(behind[0]) if behind else ref


def _before_saturation(ref: Ref) -> Ref:
  """What a closing softmax or sigmoid reads, through a requantization behind it; the output elsewhere."""
  output = _without_quantizer(ref)
  rounded = _without_quantizer(output.node.inputs[0]) if output.node.facts.requantizes else output
  return before_saturation(rounded if rounded.node.facts.role == "fixed" else output)


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
  graph = graph or Graph.from_model(model)
  return Execution(graph, model).run_once(answers(graph), images, batch_size)


def output_function(model: keras.Model, *, graph: Graph | None = None) -> Callable[..., list[np.ndarray]]:
  """Returns `network_outputs` of a model, (images, batch size) -> outputs, traced once for many calls.

  It answers with the weights that the model has then.

  Args:
    graph: that the model was made of, where the caller has it.
  """
  graph = graph or Graph.from_model(model)
  return Execution(graph, model).tap(answers(graph))


def split_outputs(graph: Graph) -> None:
  """Makes the tensors that a Concatenate joins at the end of an output "y" outputs "y:0", "y:1", ...

  A dict of outputs stays one, its keys named alike; all else becomes a flat list.

  Args:
    graph: standardized; it is edited.

  Raises:
    ValueError: no output ends in a Concatenate.
  """
  graph.pass_name = "split_outputs"
  outputs = graph.outputs if graph.losses is None else graph.outputs[0]
  keys = sorted(outputs) if isinstance(outputs, dict) else graph.output_names
  parts: list[tuple[str, str, Ref]] = []
  for key, name, ref in zip(keys, graph.output_names, tf.nest.flatten(outputs), strict=True):
    if _joins(ref):
      parts += [(f"{key}:{i}", f"{name}:{i}", part) for i, part in enumerate(ref.node.inputs)]
      graph.edit(ref.node, f"split: its {len(ref.node.inputs)} tensors are outputs of their own")
    else:
      parts.append((key, name, ref))
  if len(parts) == len(keys):
    raise ValueError("QuantConfig(split_outputs=True): no output of the model ends in a Concatenate; leave "
                     "split_outputs out, or end the model in the Concatenate.")
  if isinstance(outputs, dict):
    parts.sort()
    split = {key: ref for key, _, ref in parts}
  else:
    split = [ref for _, _, ref in parts]
  graph.output_names = [name for _, name, _ in parts]
  graph.outputs = split if graph.losses is None else (split, graph.outputs[1])
  graph.normalize()


def _joins(ref: Ref) -> bool:
  """Whether the user joined different tensors here; `standardize` joins copies of one, in its place."""
  parts, layer = ref.node.inputs, ref.node.layer
  return (ref.node.facts.joins and len(set(parts)) == len(parts) > 1
          and all(part.node.layer.origins != layer.origins for part in parts))
