"""Faults to plant in a float model, in a layer that a seed chooses, for benchmarks/doctor.py."""

import dataclasses

import numpy as np

FAULTS = ("outlier weight x30, one scale a kernel", "outlier weight x30", "outlier activation channel x30",
          "bias x100", "ranges from images of a tenth of the contrast", "dropped ReLU6 cap",
          "one layer at 2 bits", "dead channels", "wrong preprocessing", "stale batch norm")


@dataclasses.dataclass
class Planted:
  """A model with a fault.

  Attributes:
    model: float, with the fault.
    sound: float, without it.
    config: how both are quantized, but for a rule that is the fault itself.
    faulty_config: with that rule.
    contrast: of the calibration images.
    shift: images are changed to shift * (1 + image).
    found: names of the tensors, or the kind of the finding (and its place), that say that it was found.
  """

  model: object
  sound: object
  config: object
  faulty_config: object
  found: tuple[str, ...]
  contrast: float = 1.0
  shift: float = 0.0


def pairs(graph, *, caps: bool) -> list[tuple]:
  """Returns (linear call, what it makes behind its ReLU, linear call that alone reads it) of a graph."""
  from kquant.graph.nodes import Ref
  found = []
  for node in graph.nodes:
    ref = Ref(node)
    if node.facts.role != "linear" or node.facts.depthwise or not graph.is_private(ref):
      continue
    (reader,) = graph.readers(ref)
    if reader.facts.role == "relu" and (caps or reader.config.get("max_value") is None):
      ref = Ref(reader)
    readers = graph.readers(ref)
    if len(readers) == 1 and readers[0].facts.role == "linear" and len(graph.calls(node.layer)) == 1:
      found.append((node, ref, readers[0]))
  return found


def plant(fault: str, original, seed: int) -> Planted | None:
  """Returns a model with a fault; None where it has no place for one."""
  import kquant as kq
  from kquant.graph.graph import Graph
  rng, config = np.random.default_rng(seed), kq.QuantConfig.preset("int8")
  if fault == "wrong preprocessing":
    return Planted(original, original, config, config, ("preprocessing", "batch norm"), shift=127.5)
  sound = kq.rewrite(original, [kq.standardize, kq.fold_batch_norm])
  model, graph = kq.rewrite(original, [kq.standardize, kq.fold_batch_norm]), Graph.from_model(sound)
  if fault == "stale batch norm":
    model = Graph.from_model(original).to_model()
    norms = Graph.from_model(original).find("BatchNormalization")
    norm = model.get_layer(norms[rng.integers(len(norms))].name)
    norm.moving_mean.assign(norm.moving_mean + 2 * np.sqrt(norm.moving_variance))
    return Planted(model, original, config, config, ("batch norm", "preprocessing"))
  if "contrast" in fault:
    return Planted(model, sound, config, config, ("calibration",), contrast=0.1)
  places = pairs(graph, caps=fault == "dropped ReLU6 cap" or "channel x30" not in fault)
  if not places:
    return None
  node, ref, following = places[rng.integers(len(places))]
  layer, names = model.get_layer(node.name), (node.name, ref.key)
  kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
  channel = int(rng.integers(kernel.shape[-1]))
  faulty = config
  if fault.startswith("outlier weight"):
    place = tuple(int(rng.integers(size)) for size in kernel.shape[:-1])
    kernel[(*place, channel)] = 30 * np.abs(kernel).max()
    names = (*names, f"outlier in {node.name}/kernel")
    if "one scale" in fault:
      config = faulty = kq.QuantConfig(rules=[kq.Rule(weights=kq.TensorSpec(per_channel=False))])
  elif "channel x30" in fault:
    kernel[..., channel] *= 30
    bias[channel] *= 30
    reader = model.get_layer(following.name)
    weights = getattr(reader, following.facts.kernel.name)
    values, axis = weights.numpy(), following.facts.kernel.in_axes[0]
    np.moveaxis(values, axis, 0)[channel] /= 30
    weights.assign(values)
  elif fault == "bias x100":
    bias[bias.argmax()] *= 100  # a negative one would only silence its channel
    names = (*names, f"outlier in {node.name}/bias", "answers")  # the float model may answer all alike
  elif fault == "dropped ReLU6 cap":
    if model.get_layer(ref.node.name).get_config().get("max_value") != 6.0:
      return None
    model = without_cap(model, ref.node.name)
    layer = model.get_layer(node.name)
  elif "2 bits" in fault:
    faulty = kq.QuantConfig(rules=[kq.Rule(match=f"^{node.name}$", weights=kq.TensorSpec(bits=2)), kq.Rule()])
  elif fault == "dead channels":
    some = rng.choice(kernel.shape[-1], 3, replace=False)
    kernel[..., some] *= 30
    bias[some] = -1e4
    names = ("dead channels",)
  layer.kernel.assign(kernel)
  layer.bias.assign(bias)
  return Planted(model, sound, config, faulty, names)


def without_cap(model, name: str):
  """Returns a model one of whose ReLU6 is a ReLU."""
  import tf_keras as keras

  from kquant.graph.graph import Graph
  graph = Graph.from_model(model)
  (node,) = (node for node in graph.nodes if node.name == name)
  graph.recall(node, graph.new_layer(keras.layers.ReLU, name), (node.inputs[0],))
  return graph.to_model()
