"""Kinds that wrap a layer or a function. None has an integer form of its own."""

import dataclasses

from kquant.graph.kinds.record import LayerFacts, refused
from kquant.graph.kinds.recurrent import UNROLLED


def _traced(reason: str, remedy: str) -> LayerFacts:
  return dataclasses.replace(refused(reason, remedy), traced=True)


KINDS: dict[str, LayerFacts] = {
    "Bidirectional": UNROLLED,
    "TimeDistributed": refused("runs a layer per time step",
                               "call Dense on the sequence itself, or reshape the steps into an image and "
                               "use the layer of two dimensions"),
    "SpectralNormalization": _traced("wraps a layer in a way that cannot be traced",
                                     "use the trained layer (its .layer) itself"),
    "Lambda": _traced("hides a Python function that cannot be traced",
                      "call TensorFlow functions on the tensors directly, or make it a layer and give it its "
                      "operators with tflite_export.register_lowering"),
}
