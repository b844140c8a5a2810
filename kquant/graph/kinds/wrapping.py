"""Kinds that wrap a layer or a function. None has an integer form of its own."""

import dataclasses

from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart
from kquant.graph.kinds.recurrent import UNROLLED


def _traced(reason: str, remedy: str) -> LayerFacts:
  return dataclasses.replace(refused(reason, remedy), traced=True)


KINDS: dict[str, LayerFacts] = {
    "Bidirectional": UNROLLED,
    "TimeDistributed": dataclasses.replace(taken_apart(Refusal(
        "has an open length, a mask, or a layer of several inputs or outputs inside",
        "give the model inputs of fixed length (--input_shape), and call a layer of one tensor inside")),
        takes_mask=True),
    "SpectralNormalization": _traced("wraps a layer in a way that cannot be traced",
                                     "use the trained layer (its .layer) itself"),
    "Lambda": _traced("hides a Python function that cannot be traced",
                      "call TensorFlow functions on the tensors directly, or make it a layer and give it its "
                      "operators with tflite_export.register_lowering"),
}
