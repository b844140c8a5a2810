"""The TFLite metadata entry: how an application must prepare the images that a file takes.

The published schema is tflite-support's metadata_schema.fbs (root ModelMetadata, identifier M001); the few
of its fields that are said here are written by their numbers.
"""

from collections.abc import Sequence

import flatbuffers
import numpy as np

from kquant.core import images
from tflite_export.program.program import IntProgram

ENTRY = "TFLITE_METADATA"
"""Name of the entry in the file's list of metadata."""

_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
"""Of the schema; every field written here is as old as that."""

# Members of the unions ContentProperties and ProcessUnitOptions, and of the enum ColorSpaceType.
_FEATURE, _IMAGE = 1, 2
_NORMALIZATION = 1
_COLOR_SPACES = {"RGB": 1, "GRAYSCALE": 2}
_UNKNOWN = 0


def image_metadata(program: IntProgram, preprocess: str) -> bytes:
  """Returns the metadata of a program with one image input: its normalization, and the tensors' names.

  The normalization is (x - mean) / std a channel of pixels x in 0..255, before the input's own grid. A
  BGR input (mode "caffe") has its channels in that order and the colour space "unknown".

  Args:
    program: as written, border included.
    preprocess: a mode of `kquant.core.images.preprocess` but "none".

  Raises:
    ValueError: not one image input, or an unknown mode.
  """
  shapes = [program.tensors[name].shape for name in program.inputs]
  if len(shapes) != 1 or len(shapes[0]) != 4:
    raise ValueError(f"preprocess={preprocess!r}: expected a model of one image input, [1, height, width, "
                     f"channels], got inputs of {shapes}; leave preprocess out.")
  mean, deviation, colors = images.normalization(preprocess, shapes[0][-1])
  builder = flatbuffers.Builder(1024)
  inputs, outputs = (list(names) for names in program.signature)
  prepared = _normalized_image(builder, inputs[0], mean, deviation, colors)
  others = [_feature(builder, name) for name in outputs]
  graph = _table(builder, [("offset", 2, _vector(builder, [prepared])),
                           ("offset", 3, _vector(builder, others))])
  fields = [("offset", 1, builder.CreateString(program.description)),
            ("offset", 3, _vector(builder, [graph])),
            ("offset", 7, builder.CreateString(_MIN_PARSER_VERSION))]
  builder.Finish(_table(builder, fields), file_identifier=_IDENTIFIER)
  return bytes(builder.Output())


def _normalized_image(builder: flatbuffers.Builder, name: str, mean: np.ndarray, deviation: np.ndarray,
                      colors: str) -> int:
  """TensorMetadata of the input."""
  picture = _table(builder, [("byte", 0, _COLOR_SPACES.get(colors, _UNKNOWN))])
  options = _table(builder, [("offset", 0, builder.CreateNumpyVector(mean)),
                             ("offset", 1, builder.CreateNumpyVector(deviation))])
  unit = _table(builder, [("byte", 0, _NORMALIZATION), ("offset", 1, options)])
  order = f", channels in the order {colors}" if colors in ("RGB", "BGR") else ""
  return _table(builder, [
      ("offset", 0, builder.CreateString(name)),
      ("offset", 1, builder.CreateString(f"Image of pixels 0..255, then (x - mean) / std{order}.")),
      ("offset", 3, _table(builder, [("byte", 0, _IMAGE), ("offset", 1, picture)])),
      ("offset", 4, _vector(builder, [unit]))])


def _feature(builder: flatbuffers.Builder, name: str) -> int:
  """TensorMetadata of an output."""
  content = _table(builder, [("byte", 0, _FEATURE), ("offset", 1, _table(builder, []))])
  return _table(builder, [("offset", 0, builder.CreateString(name)), ("offset", 3, content)])


def _table(builder: flatbuffers.Builder, fields: Sequence[tuple[str, int, int]]) -> int:
  """Writes a table of (kind, field number, value or offset); everything it points to is written before."""
  builder.StartObject(max((number for _, number, _ in fields), default=-1) + 1)
  for kind, number, value in fields:
    if kind == "offset":
      builder.PrependUOffsetTRelativeSlot(number, value, 0)
    else:
      builder.PrependUint8Slot(number, value, 0)
  return builder.EndObject()


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
  builder.StartVector(4, len(offsets), 4)
  for offset in reversed(offsets):
    builder.PrependUOffsetTRelative(offset)
  return builder.EndVector()
