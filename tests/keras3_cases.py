"""Models of Keras 3 that hold one function of keras.ops, or one layer of keras.layers, each."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = tuple[str, Callable[[], Any]]
"""(name, what builds the model)."""

ENDS_THE_PROCESS = ("adaptive_max_pool", "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D",
                    "AdaptiveMaxPooling3D")
"""What Keras 3 itself does not survive on some shapes."""
_ROWS, _IMAGE = (4, 6), (8, 8, 3)


def _calls(x: Any, y: Any) -> list[Callable[[Any], Any]]:
  """Ways to call a function on tensors of one shape; the first that works is taken."""
  size = x.shape[-1]
  kernel, matrix = np.full((3, 3, size, 2), 0.1, np.float32), np.full((size, 2), 0.1, np.float32)
  widths = [[0, 0], [1, 0], [0, 1], [0, 0]][:len(x.shape)]
  return [
      lambda f: f(x), lambda f: f(x, y), lambda f: f([x, y]), lambda f: f(x, axis=-1), lambda f: f(x, 0.1),
      lambda f: f(x, 2, axis=-1), lambda f: f(x, -0.5, 0.5), lambda f: f(x, 2), lambda f: f(x, 2, 2),
      lambda f: f(x, (1, 2)), lambda f: f(x, 1, 2), lambda f: f(x > 0, x, y), lambda f: f(x > 0),
      lambda f: f(x > 0, y > 0), lambda f: f(x, widths), lambda f: f(x, (4, 4)), lambda f: f(x, kernel),
      lambda f: f(x, kernel, 1, "same"), lambda f: f(x, np.array([0, 1], np.int32), axis=-1),
      lambda f: f(x, (-1, 2, 2)), lambda f: f(x, -1), lambda f: f("...i,io->...o", x, matrix),
      lambda f: f(x, np.zeros(size), np.ones(size), -1)]


def functions() -> Iterator[Case]:
  """The functions of keras.ops that can be called on tensors of a model in one of the usual ways."""
  import keras
  for name in sorted(vars(keras.ops)):
    function = getattr(keras.ops, name)
    if inspect.isfunction(function) and name not in ENDS_THE_PROCESS and _model_of_function(function):
      yield name, lambda function=function: _model_of_function(function)


def _model_of_function(function: Callable[..., Any]) -> Any:
  """A model of rows or images that calls a function once; None where no way of calling it works."""
  import keras
  for shape in (_ROWS, _IMAGE):
    for way in range(len(_calls(keras.Input(shape), keras.Input(shape)))):
      x = keras.Input(shape, name="x")
      y = keras.ops.add(x, 0.25)
      try:
        outputs = _calls(x, y)[way](function)
        leaves = keras.tree.flatten(outputs)
        if leaves and all(isinstance(leaf, keras.KerasTensor) and leaf.shape for leaf in leaves):
          return keras.Model(x, outputs)
      except Exception:  # not this way
        continue
  return None


_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {}, {"units": 3}, {"filters": 3, "kernel_size": 2}, {"kernel_size": 2}, {"pool_size": 2},
    {"output_size": 2}, {"rate": 0.2}, {"factor": 0.1}, {"scale": 0.5}, {"num_heads": 2, "key_dim": 3},
    {"stddev": 0.1}, {"size": 2}, {"padding": 1}, {"cropping": 1}, {"target_shape": (-1,)}, {"dims": (2, 1)},
    {"dims": (3, 1, 2)}, {"n": 3}, {"height": 6, "width": 6}, {"bin_boundaries": [-0.5, 0.5]}, {"l2": 0.01})
_SHAPES = (_IMAGE, _ROWS, (6,), (4, 8, 8, 3))


def layers() -> Iterator[Case]:
  """The layers of keras.layers that can be built with the usual arguments, on one or two tensors."""
  import keras
  for name in sorted(vars(keras.layers)):
    cls = getattr(keras.layers, name)
    layer = inspect.isclass(cls) and issubclass(cls, keras.layers.Layer) and name not in ENDS_THE_PROCESS
    if layer and _model_of_layer(cls):
      yield name, lambda cls=cls: _model_of_layer(cls)


def _model_of_layer(cls: type) -> Any:
  import keras
  for arguments in _ARGUMENTS:
    for shape in _SHAPES:
      for many in (False, True):
        x = keras.Input(shape, name="x")
        try:
          outputs = cls(**arguments)([x, keras.ops.add(x, 0.25)] if many else x)
          return keras.Model(x, outputs)
        except Exception:  # not with these
          continue
  return None


def come_in(cases: Iterator[Case]) -> tuple[list[str], list[tuple[str, str]]]:
  """Returns (names of cases that come in equal, (name, reason) of those that are refused).

  Cases whose own model cannot be run are left out.
  """
  import kquant as kq
  equal, refused = [], []
  for name, build in cases:
    try:
      kq.from_keras3(build())
      equal.append(name)
    except kq.UnsupportedLayerError as error:
      refused.append((name, str(error)))
    except Exception as error:
      if _runs(build()):
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
  return equal, refused


def _runs(model: Any) -> bool:
  """Whether a model computes something on random inputs that is finite."""
  import keras
  x = np.random.default_rng(0).uniform(0.1, 1.0, (2, *model.inputs[0].shape[1:])).astype(np.float32)
  try:
    values = keras.tree.flatten(model(x, training=False))
    return all(np.isfinite(np.asarray(value, np.float64)).all() for value in values)
  except Exception:  # whatever it is, it is not the reader's
    return False
