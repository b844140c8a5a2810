"""Loading models that hold quantizers."""

import os

import tf_keras as keras

from kquant.core import model_files
from kquant.qmodel import layers  # noqa: F401  registers the layers, and with them the quantizers


def load_model(path: str | os.PathLike, *, compile: bool = False) -> keras.Model:
  """Returns the tf_keras model, quantized or not, in a .h5 or .keras file or a SavedModel folder.

  Keras' own load_model does it too wherever kquant is imported; this one says what is wrong with a file.

  Args:
    compile: compiles it as it was, with the state of its optimizer, to train on.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file holds no tf_keras model; each message names the remedy.
  """
  return model_files.load_model(path, compile=compile)
