"""Kinds that combine tensors element by element, as layers and as functions of TensorFlow."""

import dataclasses

import numpy as np

from kquant.graph.kinds import moment_rules, scale_rules
from kquant.graph.kinds.activations import UNARY, different_ranks, other_than_numbers
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart
from kquant.graph.kinds.slicing import CONSTANT_BESIDE, refused_constant

_SUM = LayerFacts("own", absorbs_relu=True, arithmetic="sum", mask="all", scale_rule=scale_rules.add,
                  refused_form=refused_constant)
_ADD = dataclasses.replace(_SUM, moment_rule=moment_rules.add)
_SUBTRACT = dataclasses.replace(_SUM, moment_rule=moment_rules.subtract)
_MULTIPLY = LayerFacts("own", absorbs_relu=True, arithmetic="product", mask="all",
                       scale_rule=scale_rules.multiply, moment_rule=moment_rules.multiply,
                       refused_form=refused_constant)
_EXTREME = LayerFacts("move", mask="all", scale_rule=scale_rules.add, refused_form=refused_constant)


def _wide_constant(call: Call) -> Refusal | None:
  """Refuses a constant that has a batch of its own."""
  rank = len(call.outputs[0].shape)
  for operand in call.operands:
    if isinstance(operand, np.ndarray) and (operand.ndim > len(call.inputs[0].shape)
                                            or operand.ndim == rank and len(operand) > 1):
      return Refusal(f"has a constant of shape {operand.shape} that widens the batch axis",
                     "give it no axis for the batch, or one of size 1")
  return different_ranks(call)


def _with_constant(facts: LayerFacts, operator: str) -> LayerFacts:
  return dataclasses.replace(facts, operator=operator, takes_constant=True, refused_form=_wide_constant)


def _function(operator: str) -> LayerFacts:
  return LayerFacts("opaque", operator=operator, refused_form=different_ranks)


KINDS: dict[str, LayerFacts] = {
    "Add": _ADD,
    "Subtract": _SUBTRACT,
    "Multiply": _MULTIPLY,
    "Maximum": _EXTREME,
    "Minimum": _EXTREME,
    "Average": dataclasses.replace(taken_apart(CONSTANT_BESIDE), mask="all"),
    "tf.math.add": _with_constant(_ADD, "add"),
    "tf.math.subtract": _with_constant(_SUBTRACT, "subtract"),
    "tf.math.multiply": _with_constant(dataclasses.replace(_MULTIPLY, arithmetic=""), "multiply"),
    "tf.math.truediv": dataclasses.replace(UNARY, operator="divide", refused_form=other_than_numbers),
    "tf.__operators__.add": _function("add"),
    "tf.nn.bias_add": _function("add"),
    "tf.add": _function("add"),
    "tf.subtract": _function("subtract"),
    "tf.multiply": _function("multiply"),
    "tf.math.divide": _function("divide"),
    "tf.divide": _function("divide"),
    "tf.math.negative": _function("negative"),
}
