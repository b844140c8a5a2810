"""Kinds where data enter a model: inputs, tables of indices, and preprocessing of raw features."""

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


_LOOKUP = refused("turns raw features into numbers, which the integer file leaves to the application",
                  "apply it to the data before the model and give the model its result as input")

KINDS: dict[str, LayerFacts] = {
    "InputLayer": LayerFacts("input", scale_rule=scale_rules.model_input, refused_form=_strings),
    "Embedding": LayerFacts("own", table="embeddings", takes_indices=True, known_range=_of_table,
                            mask="made", refused_form=_other_lookup),
    "CategoryEncoding": taken_apart(Refusal(
        "has more than 256 categories, a sparse result, weights or an open number of indices",
        "apply it to the data before the model and give the model its result as input")),
    "DenseFeatures": _LOOKUP,
    "Discretization": _LOOKUP,
    "HashedCrossing": _LOOKUP,
    "Hashing": _LOOKUP,
    "IntegerLookup": _LOOKUP,
    "StringLookup": _LOOKUP,
    "TextVectorization": _LOOKUP,
}
