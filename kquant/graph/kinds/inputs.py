"""Kinds where data enter a model: inputs, tables of indices, and preprocessing of raw features."""

import dataclasses

from kquant.graph.kinds import scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart


def _strings(call: Call) -> Refusal | None:
  if call.config["dtype"] == "string":
    return Refusal("holds strings", "turn text into indices before the model and give it those")
  return None


def _other_lookup(call: Call) -> Refusal | None:
  if not call.inputs[0].is_integer:
    return Refusal("looks up indices that are computed or numbers too", "make them an input of their own")
  return None


def _of_table(call: Call) -> tuple[float, float]:
  """What the whole table holds, whatever rows the data use."""
  table = call.layer.params[call.facts.table]
  return float(table.min()), float(table.max())


def _why_left(call: Call) -> Refusal:
  """Says why `standardize` leaves a layer that numbers whole numbers."""
  if not call.inputs[0].is_integer:
    return Refusal("numbers the values of an input that is no input of integers",
                   "make its input one of dtype int32, or apply the layer to the data before the model")
  return Refusal("has a vocabulary that spans more than 4,096 numbers, several indices for what it does not "
                 "know, or readers other than Embedding and CategoryEncoding",
                 "apply it to the data before the model and give the model its result as input")


_NUMBERED = dataclasses.replace(taken_apart(), refused_form=_why_left)
_ROWS = LayerFacts("own", table="embeddings", takes_indices=True, known_range=_of_table,
                   refused_form=_other_lookup)
_LOOKUP = refused("turns raw features into numbers, which the integer file leaves to the application",
                  "apply it to the data before the model and give the model its result as input")

KINDS: dict[str, LayerFacts] = {
    "InputLayer": LayerFacts("input", scale_rule=scale_rules.model_input, refused_form=_strings),
    "Embedding": dataclasses.replace(_ROWS, mask="made", counts_rows=True),
    "RowLookup": dataclasses.replace(_ROWS, mask="none"),
    "CategoryEncoding": taken_apart(Refusal(
        "has more than 256 categories, a sparse result, weights or an open number of indices",
        "apply it to the data before the model and give the model its result as input")),
    "DenseFeatures": _LOOKUP,
    "Discretization": _NUMBERED,
    "HashedCrossing": _LOOKUP,
    "Hashing": _LOOKUP,
    "IntegerLookup": _NUMBERED,
    "StringLookup": _LOOKUP,
    "TextVectorization": _LOOKUP,
}
