"""Models and layers of the user's own classes, and Lambda layers, traced through `call` into layers of Keras.

A subclassed model has no call records, and a custom layer hides what it computes. Their `call` is run on
symbols; the layers and TensorFlow functions that it calls then are call records like all others. Weights that
a custom layer multiplies or adds itself become constants of these calls.
"""

import contextlib
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras
from absl import logging as absl_logging

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph.equality import LARGEST_DIFFERENCE, check_equal
from kquant.graph.keras_calls import is_symbol, name_outputs, replay
from kquant.graph.keras_reader import Reader, computes_its_graph, nested_layers
from kquant.graph.kinds.table import OPAQUE, facts_of, kind_of_class
from kquant.graph.losses import SINKS
from kquant.graph.nodes import LayerDef, Origin, Ref
from kquant.graph.policies import in_float32

_LIBRARIES = ("tf_keras", "keras", "kquant", "tensorflow_model_optimization")


def needs_tracing(model: Any) -> bool:
  """Whether a tf_keras model is subclassed, or has layers of classes that only their `call` explains."""
  if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential) and not model.built:
    return False
  return not computes_its_graph(model) or any(_is_hidden(layer) for layer in nested_layers(model))


def traced(model: keras.Model) -> keras.Model:
  """Returns a functional model that computes what a model with layers of the user's own does.

  Layers keep their names, those inside of a layer or model "outer/inner". A layer that cannot be traced stays
  as it is, with a warning of absl.

  Raises:
    UnsupportedLayerError: a subclassed model whose call cannot be traced, with the line at fault.
    ValueError: a subclassed model that is not built, or whose trace computes something else.
  """
  reader = _TracingReader()
  if computes_its_graph(model):
    nodes, inputs, outputs = reader.read(model)
  else:
    nodes, inputs, outputs = reader.read_subclassed(model)
  if not reader.traced:
    return model
  sinks = [node for node in nodes if node.kind in SINKS]
  made = replay([node for node in nodes if node not in sinks], inputs, outputs, name=model.name, sinks=sinks)
  name_outputs(made, model.output_names or [])
  check_equal(f"Model {model.name!r}", made, LARGEST_DIFFERENCE, lambda arrays: tf.nest.flatten(
      model(tf.nest.pack_sequence_as(tf.nest.map_structure(lambda ref: 0, inputs), arrays), training=False)))
  return made


def _is_hidden(layer: keras.layers.Layer) -> bool:
  """Whether a layer is of the user's own class without a record, or of a kind that is traced (Lambda)."""
  facts = facts_of(kind_of_class(type(layer)))
  own = type(layer).__module__.split(".")[0] not in _LIBRARIES
  return facts.traced or own and facts is OPAQUE and not (
      isinstance(layer, keras.Model) and computes_its_graph(layer))


def _keras_class(layer: keras.layers.Layer) -> type | None:
  """Returns the class of Keras that a layer of the user's own computes as, None where it has its own call."""
  base = next(cls for cls in type(layer).__mro__ if cls.__module__.split(".")[0] == "tf_keras")
  alike = all(getattr(type(layer), name) is getattr(base, name) for name in ("call", "__call__", "build"))
  hidden = base is keras.layers.Layer or facts_of(kind_of_class(base)).traced
  return base if alike and not hidden else None


class _TracingReader(Reader):
  """Reads call records, and what hidden layers call in their place.

  Attributes:
    traced: names of the layers that were taken apart.
  """

  def __init__(self):
    super().__init__()
    self.traced: list[str] = []
    self._outer: tuple[Origin, ...] = ()
    self._alive: list[Any] = []  # symbols of traces: their ids must not be given to others

  def read_subclassed(self, model: keras.Model) -> tuple[list, Any, Any]:
    """Returns (nodes, inputs, outputs) of a subclassed model, as `keras_reader.read` does of others."""
    symbols = _symbols_of(model)
    refs = tf.nest.map_structure(self.add_input, symbols)
    with _without_records(model), _quiet():
      outputs = _run(model, lambda: _call_of(model)(symbols))
      self._alive += [symbols, outputs]
      self.traced.append(model.name)
      self.read_calls(_calls_of(outputs), prefix="")
    return self.nodes, refs, tf.nest.map_structure(self.value, outputs)

  def read_call(self, call: Any, args: tuple, kwargs: dict[str, Any], prefix: str) -> list[Ref]:
    """Reads a call; that of a hidden layer as the calls that it makes."""
    layer = call.layer
    if not _is_hidden(layer) or _keras_class(layer):
      return super().read_call(call, args, kwargs, prefix)
    try:
      return self._read_traced(call, args, kwargs, prefix)
    except UnsupportedLayerError as error:
      absl_logging.warning("%s", error)
      return super().read_call(call, args, kwargs, prefix)

  def _read_traced(self, call: Any, args: tuple, kwargs: dict[str, Any], prefix: str) -> list[Ref]:
    layer, outer, count = call.layer, self._outer, len(self.nodes)
    tensors = [leaf for leaf in tf.nest.flatten((call.call_args, call.call_kwargs)) if is_symbol(leaf)]
    symbols = {id(tensor): _symbol(tensor) for tensor in tensors}
    mine, options = tf.nest.map_structure(lambda leaf: symbols.get(id(leaf), leaf),
                                          (call.call_args, _without_mode(call.call_kwargs)))
    for tensor in tensors:
      self.hold(symbols[id(tensor)], self.value(tensor))
    with _without_records(layer), _quiet():
      outputs = _run(layer, lambda: _call_of(layer)(*mine, **options))
      self._alive += [symbols, outputs]
      self._outer = (*outer, Origin(layer.name, kind_of_class(type(layer))))
      try:
        self.read_calls(_calls_of(outputs), f"{prefix}{layer.name}/")
        results = [self.value(tensor) for tensor in tf.nest.flatten(outputs)]
      except UnsupportedLayerError:
        del self.nodes[count:]
        raise
      finally:
        self._outer = outer
    self.traced.append(layer.name)
    return results

  def define(self, layer: keras.layers.Layer, name: str) -> LayerDef:
    """Returns a layer as data: of Keras' class where the user's own adds no call."""
    definition = super().define(layer, name)
    if _is_hidden(layer) and (base := _keras_class(layer)):
      self.traced.append(layer.name)
      definition.cls = base
      config = base.get_config(layer)
      definition.config = {key: definition.config.get(key, value) for key, value in config.items()}
    definition.origins = (*definition.origins, *self._outer)
    return definition


def _symbols_of(model: keras.Model) -> Any:
  """Returns symbols for the inputs that a subclassed model was built with."""
  spec = model.save_spec()
  if spec is not None:
    nest = spec[0][0] if len(spec[0]) == 1 else list(spec[0])
    return tf.nest.map_structure(_input, nest)
  shape = getattr(model, "_build_input_shape", None)
  if shape is None:
    raise ValueError(f"Model {model.name!r} ({type(model).__name__}) is not built: its input shape is "
                     "unknown. Call it once on data, or model.build(input_shape).")
  if isinstance(shape, dict):
    return {name: keras.Input(batch_shape=tuple(part), name=name) for name, part in shape.items()}
  if isinstance(shape, list):
    return [keras.Input(batch_shape=tuple(part)) for part in shape]
  return keras.Input(batch_shape=tuple(shape))


def _input(spec: tf.TensorSpec) -> Any:
  name = spec.name.split("/")[-1].split(":")[0] if spec.name else None
  return keras.Input(batch_shape=(None, *spec.shape[1:]), dtype=in_float32(spec.dtype.name), name=name)


def _symbol(tensor: Any) -> Any:
  return keras.Input(batch_shape=tuple(tensor.shape), dtype=in_float32(tensor.dtype.name))


def _call_of(layer: keras.layers.Layer) -> Callable[..., Any]:
  """Returns what a layer computes, at inference; of a call under tf.function the Python function."""
  call = getattr(layer.call, "python_function", layer.call)
  takes = inspect.signature(call).parameters
  return (lambda *args, **kwargs: call(*args, **kwargs, training=False)) if "training" in takes else call


def _without_mode(kwargs: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in kwargs.items() if name != "training"}


def _run(layer: keras.layers.Layer, call: Callable[[], Any]) -> Any:
  """Returns the symbols that a call returns; raises UnsupportedLayerError, with the line, where it fails."""
  try:
    outputs = call()
  except UnsupportedLayerError:
    raise
  except Exception as error:  # the user's own code may raise anything
    raise _untraceable(layer, f"{first_line(error).rstrip('.')}{_line_of(error)}") from error
  strange = [leaf for leaf in tf.nest.flatten(outputs) if not is_symbol(leaf)]
  if strange:
    raise _untraceable(layer, f"it returns {type(strange[0]).__name__}, which its inputs do not enter")
  return outputs


def _untraceable(layer: keras.layers.Layer, reason: str) -> UnsupportedLayerError:
  what = "Model" if isinstance(layer, keras.Model) else "Layer"
  return UnsupportedLayerError(
      f"{what} {layer.name!r} ({type(layer).__name__}) cannot be traced into layers: {reason}. Write its "
      "call with layers and TensorFlow functions, without Python conditions on values.")


def _line_of(error: Exception) -> str:
  """Returns " (file:line)" of the last line of the user's own that an error went through."""
  own = [frame for frame in traceback.extract_tb(error.__traceback__)
         if "site-packages" not in frame.filename and frame.filename != __file__]
  return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _calls_of(outputs: Any) -> list[Any]:
  """Returns the calls that tensors come from, each behind those that it reads."""
  order: dict[int, Any] = {}
  waiting = [tensor.node for tensor in reversed(tf.nest.flatten(outputs))]
  while waiting:
    call = waiting[-1]
    before = [parent for parent in call.parent_nodes if id(parent) not in order]
    if before and id(call) not in order:
      waiting += before
    else:
      order.setdefault(id(waiting.pop()), call)
  return list(order.values())


@contextlib.contextmanager
def _without_records(layer: keras.layers.Layer) -> Iterator[None]:
  """Takes the call records of a trace away from the layers that the user's own holds."""
  records = [record for module in layer.submodules if isinstance(module, keras.layers.Layer)
             for record in (module._inbound_nodes, module._outbound_nodes)]
  counts = [len(record) for record in records]
  try:
    yield
  finally:
    for record, count in zip(records, counts):
      del record[count:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Keras from warning of variables that a layer multiplies itself."""
  logger, quiet = logging.getLogger("tensorflow"), lambda record: "Lambda layer" not in record.getMessage()
  logger.addFilter(quiet)
  try:
    yield
  finally:
    logger.removeFilter(quiet)
