"""Whether a layer of the user's own is what its table takes it for: one function of each element alone."""

import numpy as np

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import Refusal

_REMEDY = ("give it operators: tflite_export.register_lowering(YourLayer, lower_call), where "
           "lower_call(builder, node) calls builder.add(node, \"TRANSPOSE\", [*builder.inputs(node), ...], "
           "[builder.activation(Ref(node))])")
_SCALES = (0.1, 1.0, 10.0)


def refused_table(call: Call) -> Refusal | None:
  """Refuses a layer whose results depend on more than the element itself.

  The table is made by one call with all values of a grid in a row, with no weights but new ones. So random
  tensors must give the same in a row, in another order and beside other elements.
  """
  reason = _reason(call)
  return Refusal(f"cannot be a table of 256 integers: it {reason}", _REMEDY) if reason else None


def _reason(call: Call) -> str:
  if len(call.inputs) != 1 or len(call.outputs) != 1:
    return "does not make one tensor of one tensor"
  if call.layer.params:
    return "has weights, which a table does not read"
  random = np.random.default_rng(0)
  shape = (2, *(size or 4 for size in call.inputs[0].shape[1:]))
  for scale in _SCALES:
    try:
      alone = _is_function_of_one_element(call, *(random.normal(0, scale, (2, *shape)).astype(np.float32)))
    except Exception as error:  # a layer of the user's may raise anything on a row of values
      return f"fails on a row of values ({type(error).__name__})"
    if not alone:
      return "is not the same function of one element at all positions and channels"
  return ""


def _is_function_of_one_element(call: Call, first: np.ndarray, second: np.ndarray) -> bool:
  """Whether the call maps the elements of `first` to the same values in place, reordered and among others."""
  expected = call.compute(first)
  if expected.shape != first.shape:
    return False
  random = np.random.default_rng(1)
  order, kept = random.permutation(first.size), random.random(first.size) < 0.5
  row, values = first.reshape(-1), expected.reshape(-1)
  mixed = np.where(kept, row, second.reshape(-1))
  return (_equal(call.compute(row[order]), values[order]) and _equal(call.compute(mixed)[kept], values[kept]))


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
  return found.shape == expected.shape and np.allclose(found, expected, 1e-4, 1e-6, equal_nan=True)
