"""Configs of Keras 1 and of early Keras 2 in the words of today."""

from typing import Any

import tf_keras as keras

from kquant.graph.readers.tf_op_layers import as_call

_CLASSES = {
    "Convolution1D": "Conv1D", "Convolution2D": "Conv2D", "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D", "AtrousConvolution2D": "Conv2D", "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D", "CuDNNGRU": "GRU", "CuDNNLSTM": "LSTM"}
_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate"}
_NAMES = {
    "nb_filter": "filters", "filter_length": "kernel_size", "border_mode": "padding", "subsample": "strides",
    "subsample_length": "strides", "atrous_rate": "dilation_rate", "bias": "use_bias",
    "inner_activation": "recurrent_activation", "p": "rate", "sigma": "stddev", "pool_length": "pool_size",
    "stride": "strides", "length": "size", "input_dtype": "dtype", "dropout_U": "recurrent_dropout",
    "dropout_W": "dropout"}
"""{word of Keras 1: today's}; words that Keras 2 uses for other things are not among them."""
_DROPPED = {"init", "inner_init", "forget_bias_init", "beta_init", "gamma_init", "consume_less"}
_DROPPED |= {f"{name}_{what}" for name in ("W", "U", "b", "beta", "gamma")
             for what in ("regularizer", "constraint")}
"""What matters in training alone."""
_UNITS = ("Dense", "LSTM", "GRU", "SimpleRNN")


def modern(config: Any) -> Any:
  """Returns a config whose layers have today's classes and arguments; those that have are left alone.

  Raises:
    ValueError: a layer or a mode of it that has no form today.
  """
  if isinstance(config, (list, tuple)):
    return type(config)(modern(part) for part in config)
  if not isinstance(config, dict):
    return config
  config = {key: modern(part) for key, part in config.items()}
  if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
    return _modern_layer(config)
  return config


def _modern_layer(layer: dict[str, Any]) -> dict[str, Any]:
  """One layer, without what it holds."""
  kind, old = layer["class_name"], layer["config"]
  if kind == "Merge":
    return {**layer, **_merge(old)}
  if kind == "TensorFlowOpLayer":
    return as_call(layer)
  if kind == "Activation" and old.get("activation") == "relu6":
    return {**layer, "class_name": "ReLU", "config": {"name": old.get("name"), "max_value": 6.0}}
  name = _CLASSES.get(kind, kind)
  if not hasattr(keras.layers, name):
    return layer
  config = {_NAMES.get(key, key): value for key, value in old.items() if key not in _DROPPED}
  for change in (_sizes, _formats, _units, _recurrent, _normalization):
    change(kind, name, config)
  return {**layer, "class_name": name, "config": config}


def _sizes(kind: str, name: str, config: dict[str, Any]) -> None:
  """nb_row and nb_col, kernel_dim1 to 3."""
  for words in (("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3")):
    if all(word in config for word in words):
      config["kernel_size"] = [config.pop(word) for word in words]


def _formats(kind: str, name: str, config: dict[str, Any]) -> None:
  """dim_ordering, of 'tf' and 'th'; the output_shape that transposed convolutions were given."""
  if (ordering := config.pop("dim_ordering", None)) in ("tf", "th"):
    config["data_format"] = {"tf": "channels_last", "th": "channels_first"}[ordering]
  if kind == "Deconvolution2D":
    config.pop("output_shape", None)


def _units(kind: str, name: str, config: dict[str, Any]) -> None:
  """output_dim, which Embedding alone still has; its input_dim, which others took for their input shape."""
  if name in _UNITS and "output_dim" in config:
    config["units"] = config.pop("output_dim")
  for word in ("dropout",) if name == "Embedding" else ("input_dim", "input_length"):
    config.pop(word, None)


def _recurrent(kind: str, name: str, config: dict[str, Any]) -> None:
  """GRUs knew no reset_after; layers of cuDNN had fixed activations."""
  if kind.startswith("CuDNN"):
    config.update({"activation": "tanh", "recurrent_activation": "sigmoid"})
    config.update({"reset_after": True} if kind == "CuDNNGRU" else {})
  elif name == "GRU":
    config.setdefault("reset_after", False)


def _normalization(kind: str, name: str, config: dict[str, Any]) -> None:
  """The modes of BatchNormalization: 0 is today's."""
  if name == "BatchNormalization" and config.pop("mode", 0) != 0:
    raise ValueError(f"layer {config.get('name')!r} (BatchNormalization) normalizes in a mode of Keras 1 "
                     "that takes the statistics of each batch; train it in mode 0")


def _merge(config: dict[str, Any]) -> dict[str, Any]:
  """{class_name, config} of a Merge of Keras 1."""
  mode, name = config.get("mode"), config.get("name")
  if mode not in _MERGES or config.get("layers"):
    raise ValueError(f"layer {name!r} (Merge of mode {mode!r}) has no form in Keras 2; build it from Add, "
                     "Concatenate or Dot on the tensors of a functional model")
  arguments = {"axis": config.get("concat_axis", -1)} if mode == "concat" else {}
  return {"class_name": _MERGES[mode], "config": {"name": name, **arguments}}
