"""Kinds that make one value of many positions: pools and reductions."""

from kquant.graph.kinds import moment_rules, scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart
from kquant.graph.kinds.slicing import refused_batch_axis


def _pool(role: str, **facts) -> LayerFacts:
  return LayerFacts(role, scale_rule=scale_rules.keep, moment_rule=moment_rules.keep, **facts)


def _reduction(role: str, **facts) -> LayerFacts:
  return LayerFacts(role, scale_rule=scale_rules.reduce, moment_rule=moment_rules.reduce,
                    refused_form=refused_batch_axis(1, None), **facts)


def _masked(call: Call) -> Refusal | None:
  if len(call.inputs) > 1:
    return Refusal("averages by a mask over an open number of steps",
                   "give the model an input of fixed shape")
  return None


KINDS: dict[str, LayerFacts] = {
    "AveragePooling1D": _pool("average", pointwise=True),
    "AveragePooling2D": _pool("average", pointwise=True, pools=True, passes_copies=True),
    "AveragePooling3D": taken_apart(),
    "MaxPooling1D": _pool("move", takes_maximum=True),
    "MaxPooling2D": _pool("move", takes_maximum=True, passes_copies=True),
    "MaxPooling3D": taken_apart(),
    "GlobalAveragePooling1D": _pool("own", pointwise=True, absorbs_relu=True, pools=True,
                                    mask="none", takes_mask=True, refused_form=_masked),
    "GlobalAveragePooling2D": _pool("own", pointwise=True, absorbs_relu=True, pools=True, passes_copies=True),
    "GlobalAveragePooling3D": taken_apart(),
    "GlobalMaxPooling1D": _pool("move", takes_maximum=True),
    "GlobalMaxPooling2D": _pool("move", takes_maximum=True, passes_copies=True),
    "GlobalMaxPooling3D": taken_apart(),
    "tf.math.reduce_mean": _reduction("own", absorbs_relu=True, pools=True),
    "tf.math.reduce_max": _reduction("move"),
    "tf.math.reduce_min": _reduction("move"),
}
