"""Kinds that scale and shift channels, by statistics or by constants."""

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart

ALIASES = {name: "BatchNormalization" for name in (
    "BatchNormalizationV1", "BatchNormalizationBase", "SyncBatchNormalization")}
"""{class name: the kind that it is}."""

_NORMALIZATION = taken_apart(Refusal("normalizes a tensor of open shape, or across the batch",
                                     "give the model an input of fixed shape, and leave out axis 0"))


def _masked(call: Call) -> Refusal | None:
  """Refuses a batch norm that is called with a mask, which counts while it trains."""
  if len(call.inputs) > 1:
    return Refusal("is called with a mask", "call it without: a mask has no effect at inference")
  return None


KINDS: dict[str, LayerFacts] = {
    "BatchNormalization": LayerFacts("affine", absorbs_relu=True, refused_form=_masked),
    "LayerNormalization": _NORMALIZATION,
    "GroupNormalization": _NORMALIZATION,
    "UnitNormalization": _NORMALIZATION,
    "Normalization": taken_apart(),
    "Rescaling": taken_apart(),
    "LayerScale": taken_apart(),  # ConvNeXt's
    "CustomScaleLayer": taken_apart(),  # InceptionResNetV2's: x + scale * y
}
