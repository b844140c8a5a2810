"""Kinds that do nothing at inference: regularization and augmentation."""

from kquant.graph.kinds.record import LayerFacts, refused

_IDENTITY = LayerFacts("identity", pointwise=True)

KINDS: dict[str, LayerFacts] = {
    "Dropout": _IDENTITY,
    "SpatialDropout1D": _IDENTITY,
    "SpatialDropout2D": _IDENTITY,
    "SpatialDropout3D": _IDENTITY,
    "StochasticDepth": _IDENTITY,
    "RandomBrightness": _IDENTITY,
    "RandomContrast": _IDENTITY,
    "RandomFlip": _IDENTITY,
    "RandomRotation": _IDENTITY,
    "RandomTranslation": _IDENTITY,
    "RandomZoom": _IDENTITY,
    "GaussianNoise": _IDENTITY,
    "GaussianDropout": _IDENTITY,
    "AlphaDropout": _IDENTITY,
    "ActivityRegularization": _IDENTITY,
    "Identity": _IDENTITY,
    "RandomHeight": refused("leaves the height open", "leave it out, or augment the data before the model"),
    "RandomWidth": refused("leaves the width open", "leave it out, or augment the data before the model"),
}
