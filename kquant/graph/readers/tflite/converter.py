"""SavedModels of any maker, through TensorFlow's own conversion to a float .tflite file."""

import pathlib
import re

import tensorflow as tf
import tf_keras as keras
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph.readers.tflite.reader import from_tflite

_DEFAULT = "serving_default"
_REACHES_OUT = re.compile(r"PyFunc|ReadFile|WriteFile|MatchingFiles|Reader(V2)?$|RecordDataset|LineDataset|"
                          r"^Save(Slices)?$|FileSystem|Rpc")
"""Operators of TensorFlow that run Python or touch files: the conversion runs parts of a graph."""
_UNKNOWN_OPERATOR = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")


def from_saved_model(path: pathlib.Path, *, signature: str | None = None,
                     input_shape: tuple[int, ...] | None = None) -> keras.Model:
  """Returns a tf_keras model of one signature of a SavedModel that holds no Keras model.

  Args:
    path: of the folder.
    signature: None: "serving_default", or the only one.
    input_shape: without batch; fixes the one input whose shape is open.

  Raises:
    ValueError: a damaged folder, no such signature or several, or what `from_tflite` refuses.
    UnsupportedLayerError: an operator that TensorFlow Lite does not have.
  """
  name = _chosen(path, signature)
  try:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=[name])
    data = converter.convert()
  except Exception as error:  # its errors are of many classes
    if kinds := sorted(set(_UNKNOWN_OPERATOR.findall(str(error)))):
      raise UnsupportedLayerError(f"{path}: TensorFlow Lite has no operator for {', '.join(kinds)}; write "
                                  "that part with others.") from error
    reason = first_line(error).split("error: ")[-1].rstrip(".")  # a place in the source is in front
    raise ValueError(f"{path} cannot be converted to TensorFlow Lite: {reason}. "
                     "Export a function of fixed types without control flow.") from error
  return from_tflite(bytes(data), input_shape=input_shape)


def _chosen(path: pathlib.Path, signature: str | None) -> str:
  """The name of the signature to read."""
  stored = saved_model_pb2.SavedModel()
  try:
    stored.ParseFromString((path / "saved_model.pb").read_bytes())
  except DecodeError as error:
    raise ValueError(f"{path}/saved_model.pb is damaged; save or copy it again.") from error
  graphs = [graph.graph_def for graph in stored.meta_graphs]
  kinds = {node.op for graph in graphs for part in (graph.node, *(f.node_def for f in graph.library.function))
           for node in part}
  if found := sorted(kind for kind in kinds if _REACHES_OUT.search(kind)):
    raise ValueError(f"{path} holds {', '.join(found)}, which run code or touch files; export the network "
                     "without reading and preparing its data.")
  names = sorted({name for graph in stored.meta_graphs if "serve" in graph.meta_info_def.tags
                  for name in graph.signature_def if not name.startswith("__")})
  if signature is None and (_DEFAULT in names or len(names) == 1):
    return _DEFAULT if _DEFAULT in names else names[0]
  if signature in names:
    return signature
  if not names:
    raise ValueError(f"{path} has no signature; save it with one: tf.saved_model.save(module, path, "
                     "signatures=module.function).")
  raise ValueError(f"{path} has the signatures {', '.join(names)}; choose one: kquant.load_model(path, "
                   f"signature={names[0]!r}), or --signature={names[0]} in scripts.")
