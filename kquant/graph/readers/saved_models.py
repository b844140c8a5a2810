"""SavedModels of Keras: config and variables. The functions in them are never run.

TensorFlow 2.5 and later keep the configs in keras_metadata.pb, earlier ones in the graph of objects.
"""

import pathlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from google.protobuf.message import DecodeError, Message
from tensorflow.core.protobuf import saved_model_pb2
from tf_keras.protobuf import saved_metadata_pb2

from kquant.graph.readers.stored import StoredModel, read_json

_GRAPH_MODELS = ("_tf_keras_network", "_tf_keras_sequential")
_OTHER_MODEL = "_tf_keras_model"


def read_saved_model(path: pathlib.Path) -> StoredModel:
  """Returns what the folder of a SavedModel holds.

  Raises:
    ValueError: damaged, or without a Keras model that is a graph of layers.
  """
  found = _root(path)
  if found is None:
    raise ValueError("it is a SavedModel without a Keras model in it (no keras_metadata.pb and no older "
                     "metadata); save it with tf_keras: model.save(path, save_format='tf')")
  identifier, metadata = found
  if identifier == _OTHER_MODEL:
    raise ValueError(f"its model {metadata.get('name')!r} ({metadata.get('class_name')}) is subclassed, so "
                     "that its layers cannot be read; build it in Python, wrap it there (tf_keras.Model(x, "
                     "model.call(x)) with x = tf_keras.Input(shape)), and save that")
  config = {name: metadata.get(name) for name in ("class_name", "config")}
  variables = path / "variables" / "variables"
  if not variables.with_suffix(".index").exists():
    raise ValueError("its folder variables is missing or empty; copy the whole folder")
  try:
    shapes = tf.train.load_checkpoint(str(variables)).get_variable_to_shape_map()
  except (tf.errors.OpError, RuntimeError, ValueError) as error:
    raise ValueError(f"its variables are damaged ({str(error)[:80]}); save or copy it again") from error

  def load_weights(model: keras.Model) -> None:
    model.load_weights(str(variables)).assert_existing_objects_matched().expect_partial()

  elements = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
  return StoredModel(config, "", elements, load_weights)


def holds_layers(path: pathlib.Path) -> bool:
  """Whether the folder of a SavedModel holds a Keras model that is a graph of layers.

  Raises:
    ValueError: damaged.
  """
  found = _root(path)
  return found is not None and found[0] in _GRAPH_MODELS


def _root(path: pathlib.Path) -> tuple[str, dict] | None:
  """(identifier, metadata) of the outermost Keras object; None where there is none."""
  if (path / "keras_metadata.pb").exists():
    stored = _parsed(path / "keras_metadata.pb", saved_metadata_pb2.SavedMetadata())
    nodes = [(node.identifier, node.metadata) for node in stored.nodes if node.node_id == 0]
  else:
    stored = _parsed(path / "saved_model.pb", saved_model_pb2.SavedModel())
    nodes = [(graph.object_graph_def.nodes[0].user_object.identifier,
              graph.object_graph_def.nodes[0].user_object.metadata)
             for graph in stored.meta_graphs[:1] if graph.object_graph_def.nodes]
  if not nodes or nodes[0][0] not in (*_GRAPH_MODELS, _OTHER_MODEL) or not nodes[0][1]:
    return None
  identifier, text = nodes[0]
  metadata = read_json(text.encode(), "metadata of Keras")
  if not isinstance(metadata, dict):
    raise ValueError("its metadata of Keras are no JSON object")
  return identifier, metadata


def _parsed(path: pathlib.Path, message: Message) -> Message:
  try:
    message.ParseFromString(path.read_bytes())
  except DecodeError as error:
    raise ValueError(f"its {path.name} is damaged ({error}); save or copy it again") from error
  return message
