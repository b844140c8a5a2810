"""Which variables of a layer are quantized, and how: tfmot QuantizeConfigs."""

from typing import Any

import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import QuantizeConfig

from kquant.graph.nodes import weights_of_class
from kquant.quantizers import base


@keras.saving.register_keras_serializable("kquant")
class WeightsQuantizeConfig(QuantizeConfig):
  """Quantizes weights of a layer, and its output where an output quantizer is given.

  In kquant's own models the output is quantized by a node of its own; `output` serves
  `tfmot.quantization.keras.quantize_annotate_layer`.

  Args:
    weights: {name of the variable, and of the layer's attribute that holds it: its quantizer}.
    output: quantizer of the output.
  """

  def __init__(self, weights: dict[str, base.Quantizer], output: base.Quantizer | None = None):
    self.weights = dict(weights)
    self.output = output

  def weight_quantizers(self, layer) -> dict[str, base.Quantizer]:
    """Returns {attribute of the layer: quantizer}."""
    return self.weights

  def get_weights_and_quantizers(self, layer) -> list[tuple[tf.Variable, base.Quantizer]]:
    """Returns [(variable, quantizer)]."""
    return [(getattr(layer, name), quantizer) for name, quantizer in self.weight_quantizers(layer).items()]

  def set_quantize_weights(self, layer, quantize_weights) -> None:
    """Puts the quantized weights in the places of their variables."""
    for name, weight in zip(self.weight_quantizers(layer), quantize_weights, strict=True):
      setattr(layer, name, weight)

  def get_activations_and_quantizers(self, layer) -> list:
    """Returns []: fused activations are layers of their own."""
    return []

  def set_quantize_activations(self, layer, quantize_activations) -> None:
    """Does nothing: there are none."""

  def get_output_quantizers(self, layer) -> list[base.Quantizer]:
    """Returns the output quantizer, if any."""
    return [] if self.output is None else [self.output]

  def get_config(self) -> dict[str, Any]:
    """Returns the serialized quantizers; those of weights as pairs, which keep their order."""
    return {"weights": [[name, base.serialize(quantizer)] for name, quantizer in self.weights.items()],
            "output": None if self.output is None else base.serialize(self.output)}

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "WeightsQuantizeConfig":
    """Returns the config that `get_config` described."""
    output = config.get("output")
    return cls({name: base.deserialize(fields) for name, fields in config["weights"]},
               None if output is None else base.deserialize(output))


@keras.saving.register_keras_serializable("kquant")
class KernelQuantizeConfig(WeightsQuantizeConfig):
  """`WeightsQuantizeConfig` of a linear layer, whose one kernel need not be named.

  Args:
    kernel: quantizer of the kernel.
    output: quantizer of the output.
  """

  def __init__(self, kernel: base.Quantizer, output: base.Quantizer | None = None):
    super().__init__({}, output)
    self.kernel = kernel

  def weight_quantizers(self, layer) -> dict[str, base.Quantizer]:
    """Returns {attribute that holds the layer's kernel: quantizer}."""
    (weight,) = weights_of_class(type(layer))
    return {weight.name: self.kernel}

  def get_config(self) -> dict[str, Any]:
    """Returns the serialized quantizers."""
    return {"kernel": base.serialize(self.kernel),
            "output": None if self.output is None else base.serialize(self.output)}

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "KernelQuantizeConfig":
    """Returns the config that `get_config` described."""
    output = config.get("output")
    return cls(base.deserialize(config["kernel"]), None if output is None else base.deserialize(output))


@keras.saving.register_keras_serializable("kquant")
class OutputQuantizeConfig(QuantizeConfig):
  """Quantizes the output of a layer without weights, for `quantize_annotate_layer`."""

  def __init__(self, output: base.Quantizer):
    self.output = output

  def get_weights_and_quantizers(self, layer) -> list:
    """Returns []."""
    return []

  def set_quantize_weights(self, layer, quantize_weights) -> None:
    """Does nothing: there are none."""

  def get_activations_and_quantizers(self, layer) -> list:
    """Returns []."""
    return []

  def set_quantize_activations(self, layer, quantize_activations) -> None:
    """Does nothing: there are none."""

  def get_output_quantizers(self, layer) -> list[base.Quantizer]:
    """Returns the output quantizer."""
    return [self.output]

  def get_config(self) -> dict[str, Any]:
    """Returns the serialized quantizer."""
    return {"output": base.serialize(self.output)}

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> "OutputQuantizeConfig":
    """Returns the config that `get_config` described."""
    return cls(base.deserialize(config["output"]))
