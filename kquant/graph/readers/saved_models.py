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


def read_saved_model(path: pathlib.Path) -> StoredModel:
  """Returns what the folder of a SavedModel holds: weights alone where it holds no graph of Keras layers.

  Raises:
    ValueError: damaged.
  """
  metadata = _metadata(path)
  config = None if metadata is None else {name: metadata.get(name) for name in ("class_name", "config")}
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
  return _metadata(path) is not None


def _metadata(path: pathlib.Path) -> dict | None:
  """The metadata of the outermost Keras object, a model that is a graph of layers; None where it is not."""
  if (path / "keras_metadata.pb").exists():
    stored = _parsed(path / "keras_metadata.pb", saved_metadata_pb2.SavedMetadata())
    nodes = [(node.identifier, node.metadata) for node in stored.nodes if node.node_id == 0]
  else:
    stored = _parsed(path / "saved_model.pb", saved_model_pb2.SavedModel())
    nodes = [(graph.object_graph_def.nodes[0].user_object.identifier,
              graph.object_graph_def.nodes[0].user_object.metadata)
             for graph in stored.meta_graphs[:1] if graph.object_graph_def.nodes]
  if not nodes or nodes[0][0] not in _GRAPH_MODELS or not nodes[0][1]:
    return None
  metadata = read_json(nodes[0][1].encode(), "metadata of Keras")
  if not isinstance(metadata, dict):
    raise ValueError("its metadata of Keras are no JSON object")
  return metadata


def _parsed(path: pathlib.Path, message: Message) -> Message:
  try:
    message.ParseFromString(path.read_bytes())
  except DecodeError as error:
    raise ValueError(f"its {path.name} is damaged ({error}); save or copy it again") from error
  return message
