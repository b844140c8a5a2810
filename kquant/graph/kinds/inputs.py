"""Kinds where data enter a model: inputs, tables of indices, and preprocessing of raw features."""

import dataclasses
from typing import Any

import numpy as np

from kquant.graph.kinds import scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart

_MOST_NUMBERS = 4096
"""From the lowest that a layer numbers to the highest: each is a row of a table."""
_INT32 = 2**31 - 1
_NUMBERING = {"num_oov_indices": (1,), "invert": (False,), "sparse": (False,),
              "output_mode": ("int", "one_hot", "multi_hot", "count")}
"""{config entry of a layer that numbers whole numbers: values that rows of a table can be made of}."""
_BEFORE = "apply it to the data before the model and give the model its result as input"


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


def _span_of_vocabulary(config: dict[str, Any]) -> tuple[float, float]:
  words = [word for word in (*(config["vocabulary"] or ()), config["mask_token"]) if word is not None]
  return min(words) - 1, max(words) + 1


def _span_of_bins(config: dict[str, Any]) -> tuple[float, float]:
  ends = config["bin_boundaries"]
  return np.floor(min(ends)) - 1, np.ceil(max(ends))


NUMBER_SPANS = {"IntegerLookup": _span_of_vocabulary, "Discretization": _span_of_bins}
"""{kind: returns the lowest and the highest number, beyond which the index is that of the end}."""


def refused_numbering(call: Call) -> Refusal | None:
  """Says why a layer that numbers whole numbers cannot be rows of a table, whatever reads it."""
  config, rank = call.config, len(call.inputs[0].shape)
  entry = "vocabulary" if "vocabulary" in config else "bin_boundaries"
  if not config[entry]:
    return Refusal(f"has no {entry}", "adapt it to the data first")
  wrong = [f"{key}={config[key]!r}" for key, values in _NUMBERING.items()
           if key in config and config[key] not in values]
  if wrong:
    return Refusal(f"has {wrong[0]}", _BEFORE)
  if rank != 2:
    return Refusal(f"reads a tensor of rank {rank}, and [batch, numbers] is what it can", _BEFORE)
  first, last = NUMBER_SPANS[call.kind](config)
  if max(-first, last) > _INT32:
    return Refusal("has numbers beyond those of int32", _BEFORE)
  if last - first >= _MOST_NUMBERS:
    return Refusal(f"has numbers that span more than {_MOST_NUMBERS:,}", _BEFORE)
  return None


def _why_left(call: Call) -> Refusal:
  """Says why `standardize` leaves a layer that numbers whole numbers."""
  if not call.inputs[0].is_integer:
    return Refusal("numbers the values of an input that is no input of integers",
                   "make its input one of dtype int32, or apply the layer to the data before the model")
  return refused_numbering(call) or Refusal(
      "is read by layers other than Embedding and CategoryEncoding", _BEFORE)


_NUMBERED = dataclasses.replace(taken_apart(), refused_form=_why_left)
_ROWS = LayerFacts("own", table="embeddings", takes_indices=True, known_range=_of_table,
                   refused_form=_other_lookup)
_LOOKUP = refused("turns raw features into numbers, which the integer file leaves to the application",
                  _BEFORE)

KINDS: dict[str, LayerFacts] = {
    "InputLayer": LayerFacts("input", scale_rule=scale_rules.model_input, refused_form=_strings),
    "Embedding": dataclasses.replace(_ROWS, mask="made", counts_rows=True),
    "RowLookup": dataclasses.replace(_ROWS, mask="none"),
    "CategoryEncoding": taken_apart(Refusal(
        "has more than 256 categories, a sparse result, weights or an open number of indices", _BEFORE)),
    "DenseFeatures": _LOOKUP,
    "Discretization": _NUMBERED,
    "HashedCrossing": _LOOKUP,
    "Hashing": _LOOKUP,
    "IntegerLookup": _NUMBERED,
    "StringLookup": _LOOKUP,
    "TextVectorization": _LOOKUP,
}
