"""Crops and resizing. What the runtime cannot resize is a product with a constant matrix along each axis."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.building import add_crop, add_dense, add_permute, is_fixed, replace
from kquant.rewrites.standardize.operators import become

_OF_THE_RUNTIME = ("bilinear", "nearest")


def split_resizing(graph: Graph, node: Node) -> None:
  """Writes a crop or resizing of an image of fixed size as Cropping2D, Resizing and products."""
  if len(node.inputs) != 1 or node.config.get("data_format") == "channels_first" or len(
      node.inputs[0].shape) != 4 or not is_fixed(node.inputs[0]):
    return
  (source,), config, size = node.inputs, node.config, node.shapes[0][1:3]
  if node.kind == "CenterCrop" and all(new <= old for new, old in zip(size, source.shape[1:3])):
    replace(graph, node, _cut(graph, node, size), "written as a crop")
  elif node.kind in ("CenterCrop", "RandomCrop"):
    _resize_cut(graph, node, "bilinear")
  elif node.layer.cls is keras.layers.Resizing and config["crop_to_aspect_ratio"]:
    _resize_cut(graph, node, config["interpolation"])
  elif node.layer.cls in (keras.layers.Resizing, keras.layers.UpSampling2D):
    if config["interpolation"] not in _OF_THE_RUNTIME:
      _multiply(graph, node, source, config["interpolation"])
  elif node.kind == "tf.image.resize":
    _name_function(graph, node)


def _name_function(graph: Graph, node: Node) -> None:
  method, antialias = str(node.argument(2, "method", "bilinear")), bool(node.argument(4, "antialias", False))
  if node.argument(3, "preserve_aspect_ratio", False):
    return
  if antialias and method != "nearest" or method not in _OF_THE_RUNTIME:
    _multiply(graph, node, node.inputs[0], method, antialias=antialias)
  else:
    _, height, width, _ = node.shapes[0]
    become(graph, node, keras.layers.Resizing, {"height": height, "width": width, "interpolation": method})


def _cut(graph: Graph, node: Node, size: tuple[int, int]) -> Ref:
  """The middle of an image, half of a row or column that is left over behind it."""
  (source,) = node.inputs
  extra = [old - new for old, new in zip(source.shape[1:3], size)]
  return add_crop(graph, f"{node.layer_name}/middle", source, *((cut // 2, cut - cut // 2) for cut in extra))


def _resize_cut(graph: Graph, node: Node, method: str) -> None:
  """Cuts the largest part with the new ratio of height to width out of the middle, and resizes it."""
  _, height, width, _ = node.inputs[0].shape
  _, new_height, new_width, _ = node.shapes[0]
  size = (min(height, int(np.float32(width * new_height) / np.float32(new_width))),
          min(width, int(np.float32(height * new_width) / np.float32(new_height))))
  x = _cut(graph, node, size)
  if method in _OF_THE_RUNTIME:
    become(graph, node, keras.layers.Resizing, {"height": new_height, "width": new_width,
                                                "interpolation": method}, (x,))
  else:
    _multiply(graph, node, x, method)


def _multiply(graph: Graph, node: Node, source: Ref, method: str, *, antialias: bool = False) -> None:
  """Multiplies rows, then columns, by what the resizing makes of a unit matrix."""
  _, height, width, _ = node.shapes[0]
  x, axes = source, (1, 2, 3)
  for name, axis, size in (("columns", 2, width), ("rows", 1, height)):
    order = [place for place in axes if place != axis] + [axis]
    x = add_permute(graph, f"{node.layer_name}/{name}_last", x, order)
    unit = np.eye(x.shape[-1], dtype=np.float32)[..., None, None]  # an image of one column for each row
    kernel = tf.image.resize(unit, (size, 1), method=method, antialias=antialias).numpy()[..., 0, 0]
    x = add_dense(graph, f"{node.layer_name}/{name}", x, {"kernel": kernel}, {"trainable": False})
    x = add_permute(graph, f"{node.layer_name}/{name}_back", x, [order.index(place) + 1 for place in axes])
  replace(graph, node, x, "written as products with constant matrices")
