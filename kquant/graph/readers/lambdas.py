"""The names that the code of a Lambda in a file sees: those that this module imports."""

import math  # noqa: F401
import sys
from typing import Any

import numpy as np  # noqa: F401
import tensorflow as tf  # noqa: F401
import tf_keras as keras

K = keras.backend


def with_names(config: Any) -> Any:
  """Returns a config whose Lambdas see the names of this module where their own is not imported.

  A file holds the bytecode of a function, and not what its module imports.
  """
  if isinstance(config, (list, tuple)):
    return type(config)(map(with_names, config))
  if not isinstance(config, dict):
    return config
  config = {key: with_names(part) for key, part in config.items()}
  if "function_type" in config and (config.get("module") in (None, "__main__") or
                                    config["module"] not in sys.modules):
    config["module"] = __name__
  return config
