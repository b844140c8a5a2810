"""Keras 3 models: their call records, node by node, as a tf_keras model that computes the same.

Keras 3 is imported only where the user has imported it, or for a file that it saved. The walk goes over the
live model, whatever its backend. Layers that both have are made from their config (`keras3_layers`),
operations of `keras.ops` become TensorFlow's (`keras3_operations`). What Keras 3 alone has, custom layers and
subclassed models too, is traced through its own call into operations. At the end the outputs of both models
are compared.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line, scope_name
from kquant.graph.equality import LARGEST_DIFFERENCE, LARGEST_HALF_DIFFERENCE, check_equal
from kquant.graph.keras_calls import as_inputs, is_symbol
from kquant.graph.policies import float32_policy
from kquant.graph.readers.keras3_layers import config_of, is_augmentation, is_plain, set_weights
from kquant.graph.readers.keras3_operations import ANY_BATCH, convert_operation


def is_keras3(model: Any) -> bool:
  """Whether a model is one of Keras 3; imports nothing."""
  keras3 = sys.modules.get("keras")
  return keras3 is not None and hasattr(keras3, "KerasTensor") and isinstance(model, keras3.Model)


def from_keras3(model: Any) -> keras.Model:
  """Returns a tf_keras model that computes what a Keras 3 model does; that is not changed.

  Layers keep their names, inputs and outputs theirs; float policies become float32. Weights that a custom
  layer multiplies itself become constants.

  Args:
    model: functional, Sequential or a built subclass, of any backend.

  Returns:
    A functional tf_keras model with weights of its own.

  Raises:
    TypeError: no Keras 3 model.
    UnsupportedLayerError: a layer or an operation that has no equal in tf_keras, by name.
    ValueError: it is not built, is quantized by Keras, or the models' outputs differ.

  Example:
    >>> import keras as keras3
    >>> model = kq.from_keras3(keras3.Sequential([keras3.Input((3,)), keras3.layers.Dense(2)]))
    >>> isinstance(model, keras.Model), model.output_shape
    (True, (None, 2))
  """
  if not is_keras3(model):
    raise TypeError(f"from_keras3: expected a Keras 3 model, got {type(model).__name__}.")
  if getattr(model, "quantization_mode", None):
    raise ValueError(f"Model {model.name!r} was quantized by Keras; give the float model.")
  with float32_policy():
    converter = _Converter()
    made = converter.model(model)
    converter.copy_weights()
  _check_equal(model, made)
  return made


class _Converter:
  """Makes each layer and each nested model once, by the id of the Keras 3 object."""

  def __init__(self):
    import keras as keras3
    self._k = keras3
    self._models: dict[int, keras.Model] = {}
    self._layers: dict[int, tuple[keras.layers.Layer, Callable[[Any], Any] | None]] = {}
    self._pairs: list[tuple[Any, keras.layers.Layer]] = []
    self._names: set[str] = set()

  def model(self, model: Any) -> keras.Model:
    """Returns the tf_keras model of a functional or Sequential model, or of a built subclass."""
    outer, self._names = self._names, set()
    function = self._function_of(model)
    inputs = self._map(self._input, function._inputs_struct)
    outputs = self._run(function, self._leaves(inputs))
    self._names = outer
    return keras.Model(inputs, outputs, name=model.name)

  def copy_weights(self) -> None:
    """Gives every layer that was made the weights of the layer it stands for."""
    for layer, made in self._pairs:
      set_weights(layer, made)

  def _function_of(self, model: Any) -> Any:
    """The Keras 3 function graph of a model."""
    if isinstance(model, self._k.Sequential):
      if model._functional is None:
        raise ValueError(f"Model {model.name!r} is not built: its input shape is unknown. Start it with "
                         "keras.Input(shape), or call model.build(input_shape).")
      return model._functional
    if _is_functional(model):
      return model
    return self._traced(model, self._symbols_of(model), model.call)

  def _symbols_of(self, model: Any) -> Any:
    """Symbols for the inputs that a subclassed model was built with."""
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
      raise ValueError(f"Model {model.name!r} ({type(model).__name__}) is not built: its input shape is "
                       "unknown. Call it once on data, or model.build(input_shape); a call with Python "
                       "conditions on values cannot be traced.")
    shapes = list(shapes.values())
    symbols = [self._map_shapes(shape) for shape in shapes]
    return symbols[0] if len(symbols) == 1 else symbols

  def _map_shapes(self, shape: Any) -> Any:
    if isinstance(shape, dict):
      return {name: self._map_shapes(part) for name, part in shape.items()}
    if isinstance(shape, (list, tuple)) and shape and isinstance(shape[0], (list, tuple, dict)):
      return [self._map_shapes(part) for part in shape]
    return self._k.Input(shape=tuple(shape[1:]))  # a batch of any size, whatever it was called on

  def _input(self, tensor: Any) -> Any:
    operation = tensor._keras_history.operation
    dtype = "float32" if "float" in str(tensor.dtype) else str(tensor.dtype)
    batch, *sizes = tensor.shape
    return keras.Input(batch_shape=(None if batch == ANY_BATCH else batch, *sizes), dtype=dtype,
                       name=operation.name)

  # --- running -------------------------------------------------------------------------------

  def _run(self, function: Any, tensors: list[Any]) -> Any:
    """Replays the calls of a function on tf_keras tensors; returns its nest of outputs.

    One that was traced with ANY_BATCH images is replayed with as many as there are.
    """
    symbols = self._leaves(function._inputs_struct)
    values = {id(symbol): tensor for symbol, tensor in zip(symbols, tensors)}
    closed = any(symbol.shape[:1] == (ANY_BATCH,) for symbol in symbols)
    images = tf.shape(tensors[0])[0] if closed else None
    for node in _nodes_in_order(function):
      if any(id(output) in values for output in node.outputs) and node.is_input:
        continue
      args, kwargs = node.arguments.convert(lambda leaf: self._value(leaf, values, images))
      results = self._call(node.operation, args, kwargs)
      for output, result in zip(node.outputs, self._leaves(results), strict=True):
        values[id(output)] = result
    return self._map(lambda symbol: values[id(symbol)], function._outputs_struct)

  def _value(self, leaf: Any, values: dict[int, Any], images: Any) -> Any:
    if isinstance(leaf, self._k.KerasTensor):
      return values[id(leaf)]
    value = _as_constant(leaf, self._k)
    if images is not None and np.ndim(value) and len(value) == ANY_BATCH and (value == value[:1]).all():
      return tf.repeat(value[:1], images, axis=0)  # a variable, once for each image
    return value

  def _call(self, operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Calls what stands for an operation on tf_keras tensors."""
    k = self._k
    if not isinstance(operation, k.layers.Layer):
      return convert_operation(operation, args, kwargs)
    kwargs = self._without_modes(operation, kwargs)
    if isinstance(operation, k.Model):
      return self._call_model(operation, args, kwargs)
    if is_augmentation(operation):
      return args[0]
    if is_plain(operation):
      layer, behind = self._layer(operation)
      try:
        result = layer(*args, **kwargs)
      except Exception as error:  # Keras', about shapes that the layer of tf_keras does not take
        raise UnsupportedLayerError(
            f"Layer {operation.name!r} ({type(operation).__name__}) cannot be called so in tf_keras: "
            f"{_cause(error)}.") from error
      return result if behind is None else self._traced_call(operation, behind, (result,), {})
    return self._traced_call(operation, operation.call, args, kwargs)

  def _without_modes(self, layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drops what says the mode and what is None; refuses a call that is always in training.

    Layers that augment have training=True by default, which records of calls hold; inference is meant.
    """
    default = inspect.signature(layer.call).parameters.get("training")
    if kwargs.get("training") and (default is None or default.default is not True):
      raise UnsupportedLayerError(f"Layer {layer.name!r} is called with training=True; inference has no "
                                  "such mode. Rebuild the model without it.")
    return {name: value for name, value in kwargs.items() if name != "training" and value is not None}

  def _call_model(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    if id(model) not in self._models:
      self._models[id(model)] = self.model(model)
    return self._models[id(model)](*args, **kwargs)

  def _layer(self, layer: Any) -> tuple[keras.layers.Layer, Callable[[Any], Any] | None]:
    """Returns (the tf_keras layer of a layer, a function of Keras 3 to apply behind it or None)."""
    if id(layer) not in self._layers:
      cls, config, behind = config_of(layer)
      config["name"] = scope_name(config["name"])
      while config["name"] in self._names:  # layers inside of custom layers may share names
        config["name"] += "_1"
      self._names.add(config["name"])
      made = cls(**config)
      self._layers[id(layer)] = made, behind
      self._pairs.append((layer, made))
    return self._layers[id(layer)]

  def _traced_call(self, layer: Any, call: Callable[..., Any], args: tuple,
                   kwargs: dict[str, Any]) -> Any:
    """Traces a function of Keras 3 into operations and replays them on tf_keras tensors."""
    tensors = [leaf for leaf in self._leaves((args, kwargs)) if is_symbol(leaf)]
    symbols = [self._k.KerasTensor(tuple(tensor.shape), dtype=tensor.dtype.name) for tensor in tensors]

    def on(symbols: list[Any]) -> Any:
      replaced = {id(tensor): symbol for tensor, symbol in zip(tensors, symbols)}
      inner, options = self._map(lambda leaf: replaced.get(id(leaf), leaf), (args, kwargs))
      return call(*inner, **options)

    return self._run(self._traced(layer, symbols, on), tensors)

  def _traced(self, layer: Any, symbols: Any, call: Callable[[Any], Any]) -> Any:
    """The function graph of a call on symbols.

    Where it fails and the batch is open, it is called with ANY_BATCH images: a variable that is repeated for
    each image needs their number at once.
    """
    from keras.src.ops.function import Function
    try:
      return Function(symbols, call(symbols))
    except UnsupportedLayerError:
      raise
    except Exception as error:
      closed = self._map(self._with_any_batch, symbols)
      try:
        return Function(closed, call(closed))
      except Exception:
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} ({type(layer).__name__}) cannot be traced into operations: "
            f"{first_line(error)} Write its call with keras.ops, without Python conditions on values."
        ) from error

  def _with_any_batch(self, symbol: Any) -> Any:
    batch, *sizes = symbol.shape
    made_by = symbol._keras_history.operation if hasattr(symbol, "_keras_history") else None
    return self._k.Input(batch_shape=(ANY_BATCH if batch is None else batch, *sizes), dtype=symbol.dtype,
                         name=made_by and made_by.name)

  def _map(self, function: Callable[[Any], Any], tree: Any) -> Any:
    return self._k.tree.map_structure(function, tree)

  def _leaves(self, tree: Any) -> list[Any]:
    return self._k.tree.flatten(tree)


def _cause(error: Exception) -> str:
  """The line of an error that says why."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  causes = (line for line in lines if not line.startswith("Exception encountered"))
  return next(causes, str(error)).rstrip(".")


def _is_functional(model: Any) -> bool:
  """Whether a model computes its call records: of a subclass, one that leaves `call` alone."""
  from keras.src.models.functional import Functional
  return isinstance(model, Functional) and type(model).call is Functional.call


def _nodes_in_order(function: Any) -> Iterator[Any]:
  for depth in sorted(function._nodes_by_depth, reverse=True):
    yield from function._nodes_by_depth[depth]


def _as_constant(leaf: Any, keras3: Any) -> Any:
  """A number, string or array as it is; a variable or tensor of a backend as a NumPy array."""
  if isinstance(leaf, (bool, int, float, str, slice, type(None), type(Ellipsis), np.ndarray, np.generic)):
    return leaf
  if isinstance(leaf, keras3.Variable) or hasattr(leaf, "__array__") or hasattr(leaf, "numpy"):
    return np.asarray(keras3.ops.convert_to_numpy(leaf))
  return leaf


def _check_equal(model: Any, made: keras.Model) -> None:
  """Raises ValueError unless both models compute the same on random inputs."""
  half = any("16" in str(getattr(layer, "compute_dtype", "")) for layer in model._flatten_layers())

  def answers(inputs: list[np.ndarray]) -> list[np.ndarray]:
    import keras as keras3
    outputs = keras3.tree.flatten(model(_packed(model, made, inputs), training=False))
    return [np.asarray(keras3.ops.convert_to_numpy(value)) for value in outputs]

  check_equal(f"Model {model.name!r}", made, LARGEST_HALF_DIFFERENCE if half else LARGEST_DIFFERENCE, answers)


def _packed(model: Any, made: keras.Model, inputs: list[np.ndarray]) -> Any:
  """Inputs as a Keras 3 model takes them."""
  import keras as keras3
  struct = getattr(model, "_inputs_struct", None)
  if struct is None and getattr(model, "_functional", None) is not None:
    struct = model._functional._inputs_struct
  return keras3.tree.pack_sequence_as(struct, inputs) if struct is not None else as_inputs(made, inputs)
