"""Kinds that scale and shift channels, by statistics or by constants."""

from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart

ALIASES = {name: "BatchNormalization" for name in (
    "BatchNormalizationV1", "BatchNormalizationBase", "SyncBatchNormalization")}
"""{class name: the kind that it is}."""

_NORMALIZATION = taken_apart(Refusal("does not normalize the last axis of a tensor of fixed shape",
                                     "use axis=-1 and a fixed input shape"))

KINDS: dict[str, LayerFacts] = {
    "BatchNormalization": LayerFacts("affine", absorbs_relu=True),
    "LayerNormalization": _NORMALIZATION,
    "GroupNormalization": _NORMALIZATION,
    "UnitNormalization": _NORMALIZATION,
    "Normalization": taken_apart(),
    "Rescaling": taken_apart(),
    "LayerScale": taken_apart(),  # ConvNeXt's
    "CustomScaleLayer": taken_apart(),  # InceptionResNetV2's: x + scale * y
}
