"""The policy that every model of kquant computes in: float32."""

import contextlib
from collections.abc import Iterator

import tf_keras as keras


@contextlib.contextmanager
def float32_policy() -> Iterator[None]:
  """Layers that the block makes compute in float32, whatever the user's global policy and floatx are.

  A simulation has the integers of the file in float32 alone. Both are put back.
  """
  policy, floatx = keras.mixed_precision.global_policy(), keras.backend.floatx()
  keras.backend.set_floatx("float32")
  keras.mixed_precision.set_global_policy("float32")
  try:
    yield
  finally:
    keras.backend.set_floatx(floatx)
    keras.mixed_precision.set_global_policy(policy)


def in_float32(dtype: str) -> str:
  """Returns "float32" for a floating dtype or the name of a mixed policy; others as they are."""
  return "float32" if "float" in dtype else dtype
