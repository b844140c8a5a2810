"""Kinds that multiply tensors as matrices: attention, and products along axes that are named."""

import dataclasses

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart

_ATTENTION = dataclasses.replace(taken_apart(Refusal(
    "has a shape that is open, axes of attention of its own, or a form that Keras seldom uses",
    "call it on [batch, positions, features] of fixed size, attending over the positions")), takes_mask=True)


def _constant_matrix(call: Call) -> Refusal | None:
  if len(call.inputs) == 1:
    return Refusal("multiplies by a constant matrix", "use a Dense layer without bias for it")
  return None


KINDS: dict[str, LayerFacts] = {
    "tf.linalg.matmul": LayerFacts("own", absorbs_relu=True, refused_form=_constant_matrix),
    "MultiHeadAttention": _ATTENTION,
    "Attention": _ATTENTION,
    "AdditiveAttention": _ATTENTION,
    "Dot": dataclasses.replace(taken_apart(), mask="none"),
    "EinsumDense": taken_apart(Refusal(
        "has an equation that is no Dense layer, or an open shape",
        "contract the last axes of the input with the first of the kernel, as in abc,cd->abd")),
    "tf.einsum": refused("has no integer operator", "write it as tf.matmul, tf.transpose and tf.reshape"),
}
