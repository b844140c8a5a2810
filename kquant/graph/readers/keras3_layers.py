"""Layers that Keras 3 and tf_keras both have: the config of one for the other, and the weights."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError

_DROPPED = {"seed", "lora_rank", "lora_alpha", "quantization_config", "use_cudnn", "flash_attention",
            "autocast", "optional", "zero_output_for_mask", "input_shape", "build_config", "sparse", "ragged"}
"""Entries that say nothing of what a layer computes, or that tf_keras decides by itself."""
_BASE = {"name", "trainable"}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_TRACED = {"Lambda", "SpectralNormalization", "RMSNormalization", "GroupQueryAttention", "Pipeline",
           "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveMaxPooling1D",
           "AdaptiveMaxPooling2D"}
"""Layers whose own call is traced, although tf_keras may have one of that name."""
_SAME_ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh", "softmax", "elu", "selu", "softplus", "softsign",
                     "exponential", "gelu", "mish", "silu")
"""Functions of keras.activations that tf_keras has under these names (silu: swish)."""


def is_plain(layer: Any) -> bool:
  """Whether tf_keras has a layer of the same class that computes the same."""
  cls = type(layer)
  if cls.__module__.split(".")[0] != "keras" or cls.__name__ in _TRACED:
    return False
  if cls.__name__ == "LayerNormalization" and getattr(layer, "rms_scaling", False):
    return False
  return hasattr(keras.layers, cls.__name__)


def is_augmentation(layer: Any) -> bool:
  """Whether a layer that tf_keras does not have changes images in training alone."""
  name = type(layer).__name__
  augments = name.startswith("Random") or name in ("RandAugment", "AugMix", "CutMix", "MixUp")
  return augments and type(layer).__module__.split(".")[0] == "keras" and not hasattr(keras.layers, name)


def config_of(layer: Any) -> tuple[type, dict[str, Any], Callable[[Any], Any] | None]:
  """Returns (tf_keras class, its arguments, a function of Keras 3 to apply behind it or None).

  Raises:
    UnsupportedLayerError: an argument that tf_keras does not have.
  """
  name = type(layer).__name__
  if name == "RandomCrop":
    raise UnsupportedLayerError(f"Layer {layer.name!r} (RandomCrop) crops at inference otherwise than in "
                                "tf_keras; use Resizing or CenterCrop, and crop the training data before.")
  cls = getattr(keras.layers, name)
  config, behind = dict(layer.get_config()), None
  if name == "Normalization":
    return cls, _normalization(layer), None
  taken = _parameters(cls)
  renamed = _RENAMED.get(name, {})
  arguments: dict[str, Any] = {}
  for key, value in config.items():
    key = renamed.get(key, key)
    if key == "dtype":
      arguments["dtype"] = _dtype(value)
    elif key == "activation" and (fn := getattr(layer, "activation", None)) is not None:
      arguments[key], behind = _activation(fn)
    elif key.endswith("_initializer"):
      arguments.update({key: "zeros"} if key in taken else {})
    elif key in ("layer", "forward_layer", "backward_layer", "cell", "cells"):
      inner = getattr(layer, key, None) or getattr(layer, "forward_layer", None)
      arguments[key] = _inner(inner)
    elif key in _BASE or key in taken:
      arguments[key] = _plain(value)
    elif not _says_nothing(type(layer), key, value):
      raise UnsupportedLayerError(f"Layer {layer.name!r} ({name}) has {key}={value!r}, which tf_keras does "
                                  "not have; build the model without it.")
  return cls, arguments, behind


def _inner(layer: Any) -> Any:
  """The tf_keras form of a layer that another one holds."""
  if isinstance(layer, (list, tuple)):
    return [_inner(part) for part in layer]
  if not is_plain(layer):
    raise UnsupportedLayerError(f"Layer {layer.name!r} ({type(layer).__name__}) inside another layer has no "
                                "equal in tf_keras; replace it.")
  cls, config, behind = config_of(layer)
  if behind is not None:
    raise UnsupportedLayerError(f"Layer {layer.name!r} ({type(layer).__name__}) inside another layer has an "
                                "activation that tf_keras does not have; use relu, sigmoid or tanh.")
  return cls(**config)


def _normalization(layer: Any) -> dict[str, Any]:
  mean, variance = (np.asarray(_numpy(value), np.float32).reshape(-1)
                    for value in (layer.mean, layer.variance))
  config = layer.get_config()
  axis = config["axis"]
  axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
  if isinstance(axis, tuple) and len(axis) == 1:
    (axis,) = axis
  return {"name": layer.name, "axis": axis, "mean": mean, "variance": variance,
          "invert": bool(config.get("invert", False)), "dtype": "float32"}


def _dtype(policy: Any) -> Any:
  name = policy["config"]["name"] if isinstance(policy, dict) else str(policy)
  return "float32" if "float" in name else name


def _activation(fn: Callable[..., Any]) -> tuple[str, Callable[[Any], Any] | None]:
  """Returns (name for tf_keras, None), or ("linear", the function) where tf_keras has no equal."""
  from keras import activations, ops
  for name in _SAME_ACTIVATIONS:
    if fn is getattr(activations, name, None):
      return {"silu": "swish"}.get(name, name), None
  operation = getattr(ops, getattr(fn, "__name__", ""), None)
  of_keras = fn is getattr(activations, getattr(fn, "__name__", ""), None)
  return "linear", operation if of_keras and operation is not None else fn  # activations take no symbols


def _plain(value: Any) -> Any:
  """A regularizer, constraint or the like without the module of Keras 3."""
  if isinstance(value, dict) and "class_name" in value and "config" in value:
    return {"class_name": value["class_name"], "config": _plain(value["config"])}
  if isinstance(value, dict):
    return {key: _plain(part) for key, part in value.items()}
  return value


def _parameters(cls: type) -> set[str]:
  """Names that the constructor of a tf_keras layer takes by itself."""
  names: set[str] = set()
  for base in cls.__mro__:
    if "__init__" in vars(base) and base is not keras.layers.Layer:
      parameters = inspect.signature(base.__init__).parameters.values()
      names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
      if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        break
    if base is keras.layers.Layer:
      break
  return names - {"self"}


def _says_nothing(cls: type, key: str, value: Any) -> bool:
  """Whether an entry that tf_keras does not take may be left out: nothing, or at its default in Keras 3."""
  if key in _DROPPED or value is None or value is False or (key, value) == ("data_format", "channels_last"):
    return True
  for base in cls.__mro__:
    if "__init__" in vars(base):
      parameter = inspect.signature(base.__init__).parameters.get(key)
      if parameter is not None and parameter.default is not parameter.empty:
        default = parameter.default
        return value == default or (
            isinstance(value, (list, tuple)) and list(value) == list(np.atleast_1d(default)))
  return False


def set_weights(layer: Any, made: keras.layers.Layer) -> None:
  """Gives a layer the weights of the Keras 3 layer that it stands for, by their order and shapes.

  Raises:
    UnsupportedLayerError: they do not match.
  """
  if type(made).__name__ == "Normalization":  # its config holds them
    return
  values = [_numpy(variable) for variable in layer.weights if "seed_generator" not in variable.path]
  variables = list(made.weights)
  if [tuple(value.shape) for value in values] != [tuple(variable.shape) for variable in variables]:
    raise UnsupportedLayerError(
        f"Layer {layer.name!r} ({type(layer).__name__}) has weights of shapes {[v.shape for v in values]}, "
        f"in tf_keras {[tuple(v.shape) for v in variables]}; replace the layer.")
  made.set_weights(values)


def _numpy(value: Any) -> np.ndarray:
  import keras as keras3
  array = np.asarray(keras3.ops.convert_to_numpy(value))
  return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16", "float64") else array
