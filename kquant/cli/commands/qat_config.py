"""The config of kquant.cli.qat: what --preset, --quantizer, --gradients and --gradient_range say."""

import dataclasses

from absl import flags

from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.core.target import target
from kquant.core.tensor_spec import WEIGHT_QUANTIZERS, TensorSpec

FLAGS = flags.FLAGS


def training_config() -> QuantConfig:
  """Returns the config; ValueError for flags that do not go together, or an --output that no file can be."""
  if FLAGS.gradient_range and not FLAGS.gradients:
    raise ValueError(f"--gradient_range={FLAGS.gradient_range}: gradients are float; give their bits, as in "
                     "--gradients=8.")
  config = QuantConfig.preset(FLAGS.preset)
  weights = FLAGS.quantizer if FLAGS.quantizer in WEIGHT_QUANTIZERS else "moving_average"
  config = config.with_quantizers(weights=weights, activations=FLAGS.quantizer)
  if FLAGS.output and not fits_a_file(config):
    raise ValueError(f"--preset={FLAGS.preset}: no .tflite operator takes activations of fewer than 8 bits; "
                     "this is simulation only and there is no file to write. Leave --output out, or choose a "
                     "preset that ends in a8, such as w4a8.")
  gradients = TensorSpec(bits=FLAGS.gradients, quantizer=FLAGS.gradient_range) if FLAGS.gradients else None
  rules = (dataclasses.replace(_with_mse_range(rule), gradients=gradients) for rule in config.rules)
  return dataclasses.replace(config, rules=tuple(rules))


def fits_a_file(config: QuantConfig) -> bool:
  """Whether the operators of a file take the activations of a config."""
  return all(rule.activations.bits in target(config.target).activation_bits for rule in config.rules)


def _with_mse_range(rule: Rule) -> Rule:
  """Narrow weight grids start from the range of least squared error, as the presets' activations do."""
  if rule.weights.bits > 4:
    return rule
  return dataclasses.replace(rule, weights=dataclasses.replace(rule.weights, range="mse"))
