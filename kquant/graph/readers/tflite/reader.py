"""Float .tflite files as tf_keras models that compute the same.

The operators become Keras layers with weights, or functions of TensorFlow that kquant knows. At the end the
outputs of model and file, which LiteRT runs, are compared.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tf_keras as keras
from absl import logging

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph.keras_calls import is_symbol, name_outputs
from kquant.graph.policies import float32_policy
from kquant.graph.readers.tflite.call import Call
from kquant.graph.readers.tflite.comparison import check_equal
from kquant.graph.readers.tflite.file import MOST_ELEMENTS, File, Operator, read_file
from kquant.graph.readers.tflite.groups import Links, find_functions, needed
from kquant.graph.readers.tflite.layers import LINEAR
from kquant.graph.readers.tflite.names import Names, input_name, layer_names
from kquant.graph.readers.tflite.normalizations import find_normalizations
from kquant.graph.readers.tflite.table import OPERATORS
from kquant.graph.readers.tflite.views import Merged, View, as_in_file


def from_tflite(source: str | os.PathLike | bytes, *,
                input_shape: tuple[int, ...] | None = None) -> keras.Model:
  """Returns a tf_keras model that computes what a float .tflite file does.

  Convolutions and matrix products become layers with weights, named as their tensors in the file; inputs and
  outputs keep their names. The first axis of the inputs becomes an open batch, and so does that of the
  outputs, even where the file drops it; where the network moves it, it stays as it is, which is logged. The
  largest difference of the outputs on random inputs is logged; one of more than 1e-4 of the largest value
  (3e-2 where the file computes in float16) is an error.

  Args:
    source: the path of the file, or its bytes.
    input_shape: without batch; fixes the one input whose shape is open.

  Returns:
    A functional tf_keras model.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no .tflite file, is damaged or quantized, holds control flow, variables or custom
      operators, or computes something else than the model.
    UnsupportedLayerError: an operator that has no form in tf_keras, with its number and output.

  Example:
    >>> import tensorflow as tf
    >>> model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,), name="scores")])
    >>> data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    >>> [(layer.name, type(layer).__name__) for layer in kq.from_tflite(data).layers]
    [('scores_input', 'InputLayer'), ('scores', 'Dense')]
  """
  where, data = _content(source)
  try:
    file = read_file(data)
    shapes = _input_shapes(file, input_shape)
    model, logged = _opened(file, data, shapes)
  except UnsupportedLayerError as error:
    raise UnsupportedLayerError(f"{where}: {first_line(error)}") from error
  except ValueError as error:
    raise ValueError(f"{where} {first_line(error).rstrip('.')}.") from error
  logging.info("%s: %s", where, logged)
  return model


def _content(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
  """What messages call the file, and its bytes."""
  if isinstance(source, (bytes, bytearray)):
    return "The .tflite file", bytes(source)
  path = pathlib.Path(source)
  if not path.is_file():
    raise FileNotFoundError(f"There is no file {path}; check the path.")
  return str(path), path.read_bytes()


def _input_shapes(file: File, input_shape: tuple[int, ...] | None) -> list[tuple[int | None, ...]]:
  """The shapes of the inputs, that of the one input fixed as asked for."""
  shapes = [file.tensors[number].shape for number in file.inputs]
  if input_shape is None:
    return shapes
  if len(shapes) != 1:
    raise ValueError(f"has {len(shapes)} inputs; an input shape can be given for one")
  own = shapes[0][1:]
  if len(own) != len(input_shape) or any(n not in (None, m) for n, m in zip(own, input_shape)):
    raise ValueError(f"has the input shape {own}, which {tuple(input_shape)} does not fit")
  return [(shapes[0][0], *input_shape)]


def _opened(file: File, data: bytes, shapes: Sequence[tuple[int | None, ...]]) -> tuple[keras.Model, str]:
  """The model with an open batch where that computes the same, else with the batch of the file."""
  firsts = {1 if shape[0] is None else shape[0] for shape in shapes if shape}
  reason: Exception | None = None
  if len(firsts) == 1 and all(shapes):
    try:
      return _checked(file, data, shapes, *firsts)
    except (UnsupportedLayerError, ValueError) as error:
      reason = error
  try:
    model, logged = _checked(file, data, shapes, None)
  except (UnsupportedLayerError, ValueError) as error:
    raise reason or error from None
  because = f" ({first_line(reason)})" if reason else ""
  logging.warning("The batch of model %r stays fixed%s", model.name, because)
  return model, logged


def _checked(file: File, data: bytes, shapes: Sequence[tuple[int | None, ...]],
             batch: int | None) -> tuple[keras.Model, str]:
  with float32_policy():
    model = _Converter(file, batch).model(shapes)
  return model, check_equal(model, data, batch=batch, half=file.is_half)


class _Converter:
  """Runs through the operators of a file and makes layers.

  Args:
    batch: the first size of the inputs, which the model leaves open; None: it does not.
  """

  def __init__(self, file: File, batch: int | None):
    self._file, self._batch, self._names = file, batch, Names()
    self._values: list[Any] = [tensor.constant for tensor in file.tensors]
    links = Links(file)
    self._groups = {**find_functions(links), **find_normalizations(links)}
    self._needed = needed(links, self._groups)

  def model(self, shapes: Sequence[tuple[int | None, ...]]) -> keras.Model:
    """Returns the model for inputs of these shapes."""
    file = self._file
    inputs = []
    for number, name, shape in zip(file.inputs, file.input_names, shapes):
      tensor = keras.Input(batch_shape=self._batch_shape(shape), dtype=file.tensors[number].dtype,
                           name=self._names.unique(input_name(name)))
      self._values[number] = tensor
      inputs.append(tensor)
    named = [(operator, name) for operator, name in zip(file.operators, self._layer_names())
             if operator.index in self._needed]
    for operator, name in named:
      if operator.kind in LINEAR:
        self._names.keep(name, operator.index)
    for operator, name in named:
      self._convert(operator, name)
    outputs = [self._output(number, name) for number, name in zip(file.outputs, file.output_names)]
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0],
                        name="network")
    name_outputs(model, [input_name(name) for name in file.output_names])
    return model

  def _batch_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if self._batch is not None:
      return (None, *shape[1:])
    return tuple(1 if axis == 0 and size is None else size for axis, size in enumerate(shape))

  def _layer_names(self) -> list[str]:
    """A name for each operator: of its tensor, else of the output that it makes, else of its kind."""
    file = self._file
    outputs = dict(zip(file.outputs, file.output_names))
    made = [operator.outputs[0] if operator.outputs else -1 for operator in file.operators]
    names = layer_names([file.tensors[number].name for number in made])
    return [name or input_name(outputs.get(number, operator.kind.lower()))
            for operator, number, name in zip(file.operators, made, names)]

  def _convert(self, operator: Operator, name: str) -> None:
    """Gives the outputs of an operator their values."""
    call = Call(operator, name, self._names, self._batch)
    call.inputs = [None if number < 0 else self._values[number] for number in operator.inputs]
    if operator.kind not in OPERATORS:
      raise call.error("has no form in tf_keras here; write it with other operators")
    group = self._groups.get(operator.outputs[0]) if operator.outputs else None
    try:
      if group is not None:
        result = group.make(call, as_in_file(call, self._values[group.source]))
      else:
        result = OPERATORS[operator.kind](call)
    except UnsupportedLayerError:
      raise
    except Exception as error:  # Keras and TensorFlow raise many kinds on what does not fit
      raise call.error(f"cannot be written as a layer ({type(error).__name__}: "
                       f"{first_line(error).rstrip('.')})") from error
    results = result if isinstance(result, (list, tuple)) else [result]
    if len(results) != len(operator.outputs):
      raise call.damaged(f"{len(operator.outputs)} outputs for {len(results)} results")
    for number, value in zip(operator.outputs, results):
      shape = value.tensor.shape if isinstance(value, View) else value.shape
      if math.prod(size or 1 for size in shape) > MOST_ELEMENTS:
        raise call.damaged(f"the shape {tuple(shape)}")
      self._values[number] = value

  def _output(self, number: int, name: str) -> Any:
    """The tensor of an output; where the file merged the batch with other axes, it is an axis again."""
    call = Call(Operator(len(self._file.operators), "output", None, (), ()), input_name(name), self._names,
                self._batch)
    value = self._values[number]
    value = value.tensor if isinstance(value, Merged) else as_in_file(call, value)
    if not is_symbol(value):
      raise call.error("does not depend on the input; leave it out of the model")
    return value
