"""The bytes of a file as C source: microcontrollers have no file system and link the model in."""

import re

from kquant.core import images

ALIGNMENT = 16
"""Bytes; what TensorFlow Lite Micro asks of the array: it reads constants in place."""

_BYTES_A_LINE = 16


def to_c_source(data: bytes, name: str, *, preprocess: str = "none") -> str:
  """Returns C11 and C++11 source that defines `<name>_tflite` and `<name>_tflite_len`.

  Args:
    data: the bytes of the .tflite file.
    name: of the model; what C takes no identifier from becomes "_".
    preprocess: what the model's images went through, for the comment: a mode of
      `kquant.core.images.preprocess`.
  """
  identifier = f"{re.sub(r'[^0-9A-Za-z]', '_', name)}_tflite"
  if identifier[0].isdigit():
    identifier = f"_{identifier}"
  lines = (data[start:start + _BYTES_A_LINE].hex(",").replace(",", ", 0x")
           for start in range(0, len(data), _BYTES_A_LINE))
  rows = "".join(f"  0x{line},\n" for line in lines)
  return f"""\
/* Made by kquant: a TensorFlow Lite model of {len(data)} bytes. Compile and link this file, and declare

     extern "C" const unsigned char {identifier}[];   // in C without "C"
     extern "C" const unsigned int {identifier}_len;

   where tflite::GetModel({identifier}) is called.{_preprocessing(preprocess)} */

#ifdef __cplusplus
extern "C" {{
#else
#include <stdalign.h>
#endif

extern const unsigned char {identifier}[];
extern const unsigned int {identifier}_len;

alignas({ALIGNMENT}) const unsigned char {identifier}[] = {{
{rows}}};
const unsigned int {identifier}_len = {len(data)};

#ifdef __cplusplus
}}
#endif
"""


def _preprocessing(mode: str) -> str:
  """What the comment says of the images."""
  if mode == "none":
    return ""
  mean, deviation = (", ".join(f"{value:.8g}" for value in values) for values in images.pair(mode))
  order = " of channels in the order BGR" if mode == "caffe" else ""
  return f"""

   Its images are (pixel - mean) / std of pixels 0..255{order}: mean {mean}; std {deviation}."""
