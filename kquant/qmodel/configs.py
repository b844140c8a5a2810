"""Which variables of a layer are quantized, and how: tfmot QuantizeConfigs."""

from typing import Any

import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import QuantizeConfig

from kquant.graph.kinds.table import LAYERS
from kquant.quantizers import base


@keras.saving.register_keras_serializable("kquant")
class KernelQuantizeConfig(QuantizeConfig):
  """Quantizes the kernel of a linear layer, and its output where an output quantizer is given.

  In kquant's own models the output is quantized by a node of its own; `output` serves
  `tfmot.quantization.keras.quantize_annotate_layer`.
  """

  def __init__(self, kernel: base.Quantizer, output: base.Quantizer | None = None):
    self.kernel = kernel
    self.output = output

  def get_weights_and_quantizers(self, layer) -> list[tuple[tf.Variable, base.Quantizer]]:
    """Returns [(kernel variable, quantizer)]."""
    return [(getattr(layer, LAYERS[type(layer).__name__].kernel), self.kernel)]

  def set_quantize_weights(self, layer, quantize_weights) -> None:
    """Puts the quantized kernel in the kernel's place."""
    setattr(layer, LAYERS[type(layer).__name__].kernel, quantize_weights[0])

  def get_activations_and_quantizers(self, layer) -> list:
    """Returns []: fused activations are layers of their own."""
    return []

  def set_quantize_activations(self, layer, quantize_activations) -> None:
    """Does nothing: there are none."""

  def get_output_quantizers(self, layer) -> list[base.Quantizer]:
    """Returns the output quantizer, if any."""
    return [] if self.output is None else [self.output]

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
