"""A folder of images -> one float32 array, and its labels.csv."""

import concurrent.futures
import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_TORCH_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_TORCH_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68], np.float32)


@dataclasses.dataclass(frozen=True)
class ImageFormat:
  """How a network takes its images.

  Attributes:
    height, width: pixels.
    channels: 3 (RGB) or 1 (luminance).
    preprocess: a mode of the function `preprocess`.
  """

  height: int
  width: int
  channels: int = 3
  preprocess: str = "none"


def load_images(folder: str | os.PathLike, wanted: ImageFormat, *,
                names: Sequence[str] | None = None) -> np.ndarray:
  """Returns the images of a folder, float32 [images, height, width, channels], preprocessed.

  An image of another size is resized (bilinear, same aspect ratio) to the smallest size that covers the
  target, and cropped to its centre. An image of the right size keeps its pixels.

  Args:
    folder: holds the images, or folders of them by class.
    wanted: the format of the result.
    names: file names, in the order wanted; None takes all images sorted by name.

  Raises:
    FileNotFoundError: no such folder, or no such image in it.
    ValueError: no image in the folder, one that cannot be read, or an unknown mode.
  """
  folder = pathlib.Path(folder)
  convert = _mode(wanted.preprocess, wanted.channels)
  if wanted.channels not in (1, 3):
    raise ValueError(f"load_images: expected 1 or 3 channels, got {wanted.channels}; "
                     "give other images as an array.")
  names = image_names(folder) if names is None else list(names)
  images = np.empty((len(names), wanted.height, wanted.width, wanted.channels), np.float32)

  def load(index):
    images[index] = convert(_decode(folder / names[index], wanted).astype(np.float32))

  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for _ in pool.map(load, range(len(names))):
      pass
  return images


def image_names(folder: str | os.PathLike) -> list[str]:
  """Returns the names of the image files of a folder, sorted; "class/name" in class folders.

  Args:
    folder: holds images, or a folder of images for each class.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: there is no image in it.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"load_images: there is no folder {folder}; check the path.")
  names = _images_in(folder) or [f"{name}/{image}" for name in class_names(folder)
                                 for image in _images_in(folder / name)]
  if not names:
    raise ValueError(f"load_images: expected images ({', '.join(_SUFFIXES)}) in the folder "
                     f"{folder}, or in one folder a class in it, found none; check the path.")
  return names


def class_names(folder: pathlib.Path) -> list[str]:
  """Returns the names of the class folders of a folder, sorted, which is the order of the classes."""
  return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_in(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES
                and not path.name.startswith("."))


def _decode(path: pathlib.Path, wanted: ImageFormat) -> np.ndarray:
  """Returns the pixels of one image, uint8 [height, width, channels]."""
  if not path.exists():
    raise FileNotFoundError(f"load_images: there is no image {path}; check its name.")
  try:
    with PIL.Image.open(path) as file:
      image = _eight_bits(file).convert("RGB" if wanted.channels == 3 else "L")
  except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
    raise ValueError(f"load_images: {path} cannot be read as an image ({error}); "
                     "repair or remove that file.") from error
  height, width = wanted.height, wanted.width
  factor = max(width / image.width, height / image.height)
  size = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
  if size != image.size:
    image = image.resize(size, PIL.Image.Resampling.BILINEAR)
  left, top = (size[0] - width) // 2, (size[1] - height) // 2
  image = image.crop((left, top, left + width, top + height))
  return np.asarray(image, np.uint8).reshape(height, width, wanted.channels)


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns an image of 16 bits a pixel with the upper 8 of them: `convert` cuts at 255 instead."""
  if image.mode.startswith("I;16"):
    return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ("I", "F"):
    raise ValueError(f"mode {image.mode}: 32 bits a pixel, of unknown range")
  return image.convert("RGBA") if image.mode == "P" else image


def preprocess(images: np.ndarray, mode: str) -> np.ndarray:
  """Returns images as a network takes them, float32.

  Args:
    images: RGB or one channel, 0..255, [..., channels].
    mode: "mean:127,std:128": (x - 127) / 128, one number each or one for each channel ("mean:124,117,104,
      std:58,57,57" without the space). Names for such pairs: "none": as they are. "unit": x / 255.
      "tf": x / 127.5 - 1. "torch": x / 255, less the mean of ImageNet, over its deviation, per channel.
      "caffe": BGR, less the mean of ImageNet. "tf", "torch" and "caffe" are the modes of Keras'
      imagenet_utils.preprocess_input.

  Raises:
    ValueError: an unknown mode, or one of 3 channels for other images.

  >>> preprocess(np.array([[0.0], [255.0]]), "tf").tolist()
  [[-1.0], [1.0]]
  >>> preprocess(np.array([[7.0, 9.0]]), "mean:5,1,std:2").tolist()
  [[1.0, 4.0]]
  """
  images = np.asarray(images, np.float32)
  return _mode(mode, images.shape[-1])(images)


def normalization(mode: str, channels: int) -> tuple[np.ndarray, np.ndarray, str]:
  """Returns (mean, deviation, order of the channels) of a mode: it gives (x - mean) / deviation.

  Args:
    mode: of `preprocess`.
    channels: of the images.

  Returns:
    Mean and standard deviation, float32 [channels], in the order of the channels that the network takes;
    and that order: "RGB", "BGR" or "GRAYSCALE", "" for other numbers of channels.

  Raises:
    ValueError: as `preprocess`.
  """
  _mode(mode, channels)
  mean, deviation = pair(mode)
  order = {1: "GRAYSCALE", 3: "BGR" if mode == "caffe" else "RGB"}.get(channels, "")
  mean, deviation = (np.full(channels, value, np.float32) for value in (mean, deviation))
  return mean, deviation, order


def pair(mode: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (mean, deviation) of a mode, float32 [1] or [channels].

  Raises:
    ValueError: no such mode, or a deviation that is not above 0.
  """
  if mode in _NAMED:
    return tuple(np.atleast_1d(np.float32(value)) for value in _NAMED[mode])
  found = re.fullmatch(r"mean:([-+.,e\d]+),std:([-+.,e\d]+)", mode)
  try:
    mean, deviation = (np.array(part.split(","), np.float32) for part in found.groups())
  except (AttributeError, ValueError) as error:
    raise ValueError(f"preprocess: expected a mode of {list(_NAMED)}, or mean:NUMBERS,std:NUMBERS, got "
                     f"{mode!r}; choose the one that the model was trained with.") from error
  if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
    raise ValueError(f"preprocess: expected finite numbers and deviations above 0, got {mode!r}.")
  return mean, deviation


def is_mode(mode: str) -> bool:
  """Whether `preprocess` knows a mode; the number of its numbers is compared with the channels there."""
  try:
    return bool(pair(mode))
  except ValueError:
    return False


def _mode(mode: str, channels: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the function of a preprocessing mode, float32 to float32."""
  if mode not in _MODES:
    mean, deviation = pair(mode)
    for numbers in (mean, deviation):
      if len(numbers) not in (1, channels):
        raise ValueError(f"preprocess: expected one number or {channels} for images of {channels} channels, "
                         f"got {len(numbers)} in {mode!r}.")
    return lambda x: (x - mean) / deviation
  if mode in ("torch", "caffe") and channels != 3:
    raise ValueError(f"preprocess: expected images of 3 channels for mode {mode!r}, got {channels} "
                     "channels; use none, unit or tf.")
  return _MODES[mode]


_NAMED = {"none": (0.0, 1.0), "unit": (0.0, 255.0), "tf": (127.5, 127.5),
          "torch": (255 * _TORCH_MEAN, 255 * _TORCH_DEVIATION), "caffe": (_CAFFE_MEAN, 1.0)}
"""{name: (mean, deviation)}; caffe in the order BGR."""
_MODES = {
    "none": lambda x: x,
    "unit": lambda x: x / np.float32(255),
    "tf": lambda x: x / np.float32(127.5) - np.float32(1),
    "torch": lambda x: (x / np.float32(255) - _TORCH_MEAN) / _TORCH_DEVIATION,
    "caffe": lambda x: x[..., ::-1] - _CAFFE_MEAN,
}
"""The same as Keras rounds it."""


def read_labels(folder: str | os.PathLike) -> dict[str, int]:
  """Returns {file name: class index} of the folder's labels.csv, whose header is file,label.

  Args:
    folder: holds the images and labels.csv.

  Raises:
    FileNotFoundError: there is no labels.csv.
    ValueError: a line is not a file name and a whole number from 0, or repeats a file.
  """
  path = pathlib.Path(folder) / "labels.csv"
  if not path.exists():
    raise FileNotFoundError(f"read_labels: there is no file {path}; write one with the header "
                            "file,label and a line an image.")
  labels = {}
  with open(path, newline="", encoding="utf-8-sig") as file:
    rows = csv.reader(file)
    header = next(rows, [])
    if [cell.strip() for cell in header] != ["file", "label"]:
      raise ValueError(f"{path}, line 1: expected the header file,label, got {','.join(header)!r}.")
    for row in rows:
      cells = [cell.strip() for cell in row]
      if not cells:
        continue
      here = f"{path}, line {rows.line_num}"
      if len(cells) != 2 or not cells[0] or not (cells[1].isascii() and cells[1].isdigit()):
        raise ValueError(f"{here}: expected a file name and a class index such as cat.jpg,281, "
                         f"got {','.join(row)!r}.")
      if cells[0] in labels:
        raise ValueError(f"{here}: expected each file once, got {cells[0]!r} again; remove one.")
      labels[cells[0]] = int(cells[1])
  if not labels:
    raise ValueError(f"{path}: expected a line an image below the header, got none.")
  return labels
