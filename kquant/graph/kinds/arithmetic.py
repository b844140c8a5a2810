"""Kinds that combine tensors element by element, as layers and as functions of TensorFlow."""

import dataclasses

from kquant.graph.kinds import moment_rules, scale_rules
from kquant.graph.kinds.activations import UNARY, different_ranks
from kquant.graph.kinds.record import LayerFacts, taken_apart

_SUM = LayerFacts("own", absorbs_relu=True, arithmetic="sum", scale_rule=scale_rules.add)
_ADD = dataclasses.replace(_SUM, moment_rule=moment_rules.add)
_SUBTRACT = dataclasses.replace(_SUM, moment_rule=moment_rules.subtract)
_MULTIPLY = LayerFacts("own", absorbs_relu=True, arithmetic="product", scale_rule=scale_rules.multiply,
                       moment_rule=moment_rules.multiply)
_EXTREME = LayerFacts("move", scale_rule=scale_rules.add)


def _with_constant(facts: LayerFacts, operator: str) -> LayerFacts:
  return dataclasses.replace(facts, operator=operator, takes_constant=True, refused_form=different_ranks)


def _function(operator: str) -> LayerFacts:
  return LayerFacts("opaque", operator=operator, refused_form=different_ranks)


KINDS: dict[str, LayerFacts] = {
    "Add": _ADD,
    "Subtract": _SUBTRACT,
    "Multiply": _MULTIPLY,
    "Maximum": _EXTREME,
    "Minimum": _EXTREME,
    "Average": taken_apart(),
    "tf.math.add": _with_constant(_ADD, "add"),
    "tf.math.subtract": _with_constant(_SUBTRACT, "subtract"),
    "tf.math.multiply": _with_constant(dataclasses.replace(_MULTIPLY, arithmetic=""), "multiply"),
    "tf.math.truediv": dataclasses.replace(UNARY, operator="divide", refused_form=different_ranks),
    "tf.__operators__.add": _function("add"),
    "tf.nn.bias_add": _function("add"),
    "tf.add": _function("add"),
    "tf.subtract": _function("subtract"),
    "tf.multiply": _function("multiply"),
    "tf.math.divide": _function("divide"),
    "tf.divide": _function("divide"),
    "tf.math.negative": _function("negative"),
}
