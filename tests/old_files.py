"""Model files as earlier versions wrote them, made from their documented layout."""

import io
import json
import zipfile

import h5py
import numpy as np
from tensorflow.core.protobuf import saved_model_pb2
from tf_keras.protobuf import saved_metadata_pb2


def rewritten_archive(source, target, *, rename=None, weights_name="model.weights.h5"):
  """Writes a .keras archive anew with other names of HDF5 groups: {path: path}."""
  with zipfile.ZipFile(source) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  parts[weights_name] = _renamed(parts.pop("model.weights.h5"), rename or (lambda path: path))
  write_archive(target, parts)


def write_archive(target, parts, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(target, "w", compression) as archive:
    for name, data in parts.items():
      archive.writestr(name, data)


def _renamed(data, rename):
  buffer = io.BytesIO()
  with h5py.File(io.BytesIO(data), "r") as old, h5py.File(buffer, "w") as new:
    paths = []
    old.visit(paths.append)
    for path in paths:
      if path.split("/")[-1] == "vars":
        owner = rename(path.removesuffix("vars").rstrip("/"))
        group = (new.require_group(owner) if owner else new).create_group("vars")
        for name, values in old[path].items():
          group[name] = values[()]
  return buffer.getvalue()


def of_2_13(model, separator="/"):
  """Returns {today's path: that of 2.13}: layers with weights count twice in the names of their class."""
  from tf_keras.src.utils.generic_utils import to_snake_case
  names = {}

  def walk(part, new, old):
    counts, counts_before = {}, {}
    for layer in part.layers:
      kind = to_snake_case(type(layer).__name__)
      number, before = counts.get(kind, 0), counts_before.get(kind, 0)
      counts[kind] = number + 1
      counts_before[kind] = before + (2 if layer.weights else 1)
      here = f"{new}layers/{kind}{f'_{number}' if number else ''}"
      there = f"{old}_layer_checkpoint_dependencies/{kind}{f'_{before}' if before else ''}"
      names[here] = there
      if hasattr(layer, "layers"):
        walk(layer, f"{here}/", f"{there}/")

  walk(model, "", "")

  def rename(path):
    best = max((name for name in names if path == name or path.startswith(f"{name}/")), key=len, default=None)
    path = path if best is None else names[best] + path[len(best):]
    return path.replace("/", separator)

  return rename


def to_2_4(folder):
  """Moves the configs of a SavedModel to where TensorFlow 2.4 and earlier had them."""
  metadata = saved_metadata_pb2.SavedMetadata()
  metadata.ParseFromString((folder / "keras_metadata.pb").read_bytes())
  model = saved_model_pb2.SavedModel()
  model.ParseFromString((folder / "saved_model.pb").read_bytes())
  for node in metadata.nodes:
    kept = model.meta_graphs[0].object_graph_def.nodes[node.node_id].user_object
    kept.identifier, kept.metadata = node.identifier, node.metadata
  (folder / "saved_model.pb").write_bytes(model.SerializeToString())
  (folder / "keras_metadata.pb").unlink()


def write_h5(path, config, weights, *, version=None, backend="tensorflow"):
  """Writes a whole model as Keras 1 and early Keras 2 did: {layer: [arrays]} in order."""
  with h5py.File(path, "w") as file:
    file.attrs["model_config"] = json.dumps(config).encode()
    file.attrs["keras_version"] = (version or "1.2.2").encode()
    write_weights(file.create_group("model_weights"), weights, version=version, backend=backend)


def write_weights(group, weights, *, version=None, backend="tensorflow"):
  group.attrs["layer_names"] = np.array([name.encode() for name in weights])
  if version is not None:  # Keras 1 did not write it here
    group.attrs["keras_version"], group.attrs["backend"] = version.encode(), backend.encode()
  for name, arrays in weights.items():
    layer = group.create_group(name)
    names = [f"{name}_{index}" for index in range(len(arrays))]
    layer.attrs["weight_names"] = np.array(names, "S40")
    for key, array in zip(names, arrays):
      layer[key] = array
