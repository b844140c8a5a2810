"""What a model file holds, as data: its config and where its weights are, read with bounds.

Nothing of a file is run here. What a file claims to hold is compared with its size before it is read.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

LARGEST_CONFIG = 32 << 20
"""Bytes of a config. The largest of tf_keras.applications is below one million."""
LARGEST_EXPANSION, FREE_EXPANSION = 100, 1 << 20
"""How many times its stored bytes a part of a file may hold, and the bytes that any part may hold."""
FREE_ELEMENTS = 1 << 20
"""Elements that a model may have beside its stored weights, such as the states of random layers."""


@dataclasses.dataclass(frozen=True)
class StoredModel:
  """A model file that was read.

  Attributes:
    config: the model's, as `get_config` of Keras wrote it; None: the file holds weights alone.
    version: of the Keras that saved it; "" where the file does not say.
    elements: of all its weights.
    load_weights: gives a model the weights of the file; ValueError where they do not fit.
  """

  config: dict[str, Any] | None
  version: str = ""
  elements: int = 0
  load_weights: Callable[[keras.Model], None] | None = None


def read_json(data: bytes, what: str) -> Any:
  """Returns the value of JSON text.

  Args:
    data: the text.
    what: it is, for errors.

  Raises:
    ValueError: too long, or no JSON.
  """
  if len(data) > LARGEST_CONFIG:
    raise ValueError(f"its {what} has more than {LARGEST_CONFIG >> 20} MB, which no model needs")
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"its {what} is no JSON text ({str(error)[:80]})") from error


def read_json_file(path: pathlib.Path) -> Any:
  """Returns the value of a file of JSON text; see `read_json`."""
  with path.open("rb") as file:
    return read_json(file.read(LARGEST_CONFIG + 1), path.name)


def check_expansion(what: str, stored: int, size: int) -> None:
  """Raises ValueError where `stored` bytes claim to hold so many more that they are no weights."""
  if size > LARGEST_EXPANSION * stored + FREE_EXPANSION:
    raise ValueError(f"{what} would grow from {stored:,} to {size:,} bytes when it is read, more than "
                     f"{LARGEST_EXPANSION} times; save the model without compression")


@contextlib.contextmanager
def bounded_variables(elements: int) -> Iterator[None]:
  """Lets the block make variables of so many elements and a few more; ValueError before one is made.

  Args:
    elements: of the weights that are stored for the model.
  """
  made = 0

  def create(make: Callable[..., Any], **settings: Any) -> Any:
    nonlocal made
    shape = tf.TensorShape(settings.get("shape"))
    made += math.prod(shape.as_list()) if shape.is_fully_defined() else 0
    if made > elements + FREE_ELEMENTS:
      raise ValueError(f"its config asks for at least {made:,} weights, but {elements:,} are stored")
    return make(**settings)

  with tf.variable_creator_scope(create):
    yield
