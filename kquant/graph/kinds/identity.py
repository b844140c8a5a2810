"""Kinds that do nothing at inference: regularization and augmentation."""

from kquant.graph.kinds.record import LayerFacts, refused

_TRAINING_ONLY = LayerFacts("identity", pointwise=True, training_only=True)

KINDS: dict[str, LayerFacts] = {
    "Dropout": _TRAINING_ONLY,
    "SpatialDropout1D": _TRAINING_ONLY,
    "SpatialDropout2D": _TRAINING_ONLY,
    "SpatialDropout3D": _TRAINING_ONLY,
    "StochasticDepth": _TRAINING_ONLY,
    "RandomBrightness": _TRAINING_ONLY,
    "RandomContrast": _TRAINING_ONLY,
    "RandomFlip": _TRAINING_ONLY,
    "RandomRotation": _TRAINING_ONLY,
    "RandomTranslation": _TRAINING_ONLY,
    "RandomZoom": _TRAINING_ONLY,
    "GaussianNoise": _TRAINING_ONLY,
    "GaussianDropout": _TRAINING_ONLY,
    "AlphaDropout": _TRAINING_ONLY,
    "ActivityRegularization": _TRAINING_ONLY,
    "Identity": LayerFacts("identity", pointwise=True),
    "RandomHeight": refused("leaves the height open", "leave it out, or augment the data before the model"),
    "RandomWidth": refused("leaves the width open", "leave it out, or augment the data before the model"),
}
