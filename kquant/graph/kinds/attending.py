"""Kinds that multiply tensors as matrices: attention, and products along axes that are named."""

import dataclasses

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart

_ATTENTION = dataclasses.replace(taken_apart(Refusal(
    "has a shape that is open, axes of attention of its own, or a form that Keras seldom uses",
    "call it on [batch, positions, features] of fixed size, attending over the positions")), takes_mask=True)
_SUM_OF_PRODUCTS = taken_apart(Refusal(
    "has an equation that is no matrix product of two operands, or an open shape",
    "let the batch lead all tensors, and each other axis be in two of the three terms or lead them too"))


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
    "EinsumDense": _SUM_OF_PRODUCTS,
    "tf.einsum": _SUM_OF_PRODUCTS,
}
