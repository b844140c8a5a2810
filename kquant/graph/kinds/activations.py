"""Kinds that are functions of each element alone, and softmax."""

import dataclasses
from typing import Any

import numpy as np

from kquant.graph.kinds import flat_parts, moment_rules, scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart

# Functions of each element alone: Keras activations, operators of TensorFlow, and of these the clamps.
_UNARY_ACTIVATIONS = ("elu", "exponential", "gelu", "mish", "selu", "softplus", "softsign")
_UNARY_OPERATORS = (
    "math.abs", "math.atan", "math.ceil", "math.cos", "math.erf", "math.exp", "math.expm1", "math.floor",
    "math.log", "math.log1p", "math.pow", "math.reciprocal", "math.round", "math.rsqrt", "math.sign",
    "math.sin", "math.softplus", "math.sqrt", "math.square", "nn.elu", "nn.gelu", "nn.selu", "nn.softplus",
    "nn.softsign", "rsqrt", "sqrt")
_CLIPS = {"clip_by_value": flat_parts.clip, "math.maximum": flat_parts.at_least,
          "math.minimum": flat_parts.at_most}
_NAMED = {"sigmoid": "Sigmoid", "tanh": "Tanh", "linear": "Requantize"}


def _activation_kind(config: dict[str, Any]) -> str:
  """Of some functions their own, else "Activation:" and the function."""
  return _NAMED.get(str(config.get("activation")), f"Activation:{config['activation']}")


KIND_BY_CONFIG = {"Activation": _activation_kind}
"""{class that holds several kinds: a function that returns the kind for a config}."""


def different_ranks(call: Call) -> Refusal | None:
  """Refuses a TensorFlow function of two tensors that `standardize` could not write as a layer."""
  if len(call.inputs) != 1:
    return Refusal("combines tensors of different ranks", "reshape them to the same rank first")
  return None


def other_than_numbers(call: Call) -> Refusal | None:
  """Refuses a function of one element whose constants are not one number each."""
  places = ((0, "x"), (1, "y"), (1, "clip_value_min"), (2, "clip_value_max"))
  if any(np.size(call.argument(*place, 0)) > 1 for place in places):
    return Refusal("takes a constant that is not one number", "use one number, or sums and products")
  return different_ranks(call)


def _bent_relu(call: Call) -> Refusal | None:
  if call.config["threshold"] or call.config["negative_slope"]:
    return Refusal("has a threshold or a capped negative slope", "use a plain ReLU or LeakyReLU")
  return None


def _other_softmax(call: Call) -> Refusal | None:
  if call.argument(1, "mask") is not None:
    return Refusal("is called with a mask", "use Attention or MultiHeadAttention, which take masks")
  if call.config["axis"] not in (-1, len(call.outputs[0].shape) - 1):
    return Refusal(f"works along axis {call.config['axis']}", "move that axis to the end")
  return None


UNARY = LayerFacts("own", unary=True, absorbs_relu=True, moment_rule=moment_rules.sample)
_UNARY_OPERATOR = LayerFacts("own", unary=True, absorbs_relu=True, moment_rule=moment_rules.sample,
                             refused_form=other_than_numbers)

KINDS: dict[str, LayerFacts] = {
    "Activation": taken_apart(),
    "ReLU": LayerFacts("relu", rectifier=True, passes_copies=True, flat_rule=flat_parts.clamp,
                       scale_rule=scale_rules.rectify, moment_rule=moment_rules.rectify,
                       refused_form=_bent_relu),
    "CappedReLU": LayerFacts("relu", caps="caps", flat_rule=flat_parts.clamp, scale_rule=scale_rules.keep,
                             moment_rule=moment_rules.rectify),
    "LeakyReLU": LayerFacts("own", rectifier=True, passes_copies=True, scale_rule=scale_rules.keep,
                            moment_rule=moment_rules.leak),
    "PReLU": LayerFacts("own", slopes="alpha", scale_rule=scale_rules.keep, moment_rule=moment_rules.leak),
    "Requantize": LayerFacts("own", requantizes=True, scale_rule=scale_rules.keep,
                             moment_rule=moment_rules.keep),
    "Sigmoid": LayerFacts("fixed", fixed_grid="unit", moment_rule=moment_rules.sample),
    "Tanh": LayerFacts("fixed", fixed_grid="signed_unit", moment_rule=moment_rules.sample),
    "Softmax": LayerFacts("fixed", fixed_grid="unit", takes_scores=True, moment_rule=moment_rules.softmax,
                          refused_form=_other_softmax),
    "ELU": UNARY,
    "ThresholdedReLU": dataclasses.replace(UNARY, flat_rule=flat_parts.threshold),
    "ShiftedPower": UNARY,
    **{f"Activation:{name}": UNARY for name in _UNARY_ACTIVATIONS},
    **{f"tf.{name}": _UNARY_OPERATOR for name in _UNARY_OPERATORS},
    **{f"tf.{name}": dataclasses.replace(_UNARY_OPERATOR, flat_rule=rule) for name, rule in _CLIPS.items()},
}
