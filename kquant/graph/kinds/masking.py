"""Kinds that make masks and choose by them: tensors of 0 and 1, integers of scale 1."""

import dataclasses

from kquant.graph.kinds import flat_parts
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart

_FACTORS = {"weight": 255 / 128, "correction": 2.0, "rest": 1.0}
"""Ends of the grids of factors: weights are multiples of 1/128."""


def _share(call: Call) -> tuple[float, float]:
  return 0.0, 255 / call.inputs[0].shape[-1] if call.config["exact"] else 1.0


def _factor(call: Call) -> tuple[float, float]:
  return 0.0, _FACTORS[call.config["part"]]


KINDS: dict[str, LayerFacts] = {
    "Masking": dataclasses.replace(taken_apart(Refusal(
        "masks the rows of a tensor that is no [batch, steps, features] of fixed shape",
        "give the model an input of fixed shape")), mask="made"),
    "IndexMask": LayerFacts("fixed", fixed_grid="mask", takes_indices=True, flat_rule=flat_parts.nowhere),
    "DiffersFrom": LayerFacts("fixed", unary=True, fixed_grid="mask", compares="value",
                              flat_rule=flat_parts.nowhere),
    "Select": LayerFacts("move", chooses=True),
    "PassMask": LayerFacts("identity", training_only=True, chooses=True),
    "MaskShare": LayerFacts("own", known_range=_share, flat_rule=flat_parts.nowhere),
    "ShareFactor": LayerFacts("own", unary=True, known_range=_factor, flat_rule=flat_parts.nowhere),
}
