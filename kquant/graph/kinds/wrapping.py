"""Kinds that wrap a layer or a function. None has an integer form."""

from kquant.graph.kinds.record import LayerFacts, refused
from kquant.graph.kinds.recurrent import RECURRENT

KINDS: dict[str, LayerFacts] = {
    "Bidirectional": RECURRENT,
    "TimeDistributed": refused("runs a layer per time step",
                               "call Dense on the sequence itself, or reshape the steps into an image and "
                               "use the layer of two dimensions"),
    "SpectralNormalization": refused("wraps a layer for training",
                                     "use the trained layer (its .layer) itself"),
    "Lambda": refused("hides a Python function",
                      "call TensorFlow functions on the tensors directly, or make it a layer and give it its "
                      "operators with tflite_export.register_lowering"),
}
