"""What --calibration and --eval name: a folder of images, or an array file; read a part at a time."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from kquant.core import data, images, tables
from kquant.core.array_files import read_arrays
from kquant.core.input_spec import InputSpec


class ImageFolder:
  """Images resized on their short side and centre-cropped to a model's one input.

  Args:
    inputs: the model's, of fixed shapes.

  Raises:
    ValueError: the model's input is not one image, or the folder holds none.
  """

  def __init__(self, folder: pathlib.Path, inputs: Sequence[InputSpec], preprocess: str):
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 3:
      takes = ", ".join(f"{spec.name!r} of shape {spec.shape}" for spec in inputs)
      raise ValueError(f"{folder} is a folder of images, but the model takes {takes}; give a .npz file.")
    self._folder = folder
    self._names = images.image_names(folder)
    self._format = images.ImageFormat(*shape, preprocess)
    self._has_told = False

  def __len__(self) -> int:
    return len(self._names)

  def load(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns the inputs of those images, [array [images, h, w, c]]."""
    names = [self._names[i] for i in indices]
    return [images.load_images(self._folder, self._format, names=names)]

  def labels(self) -> np.ndarray | None:
    """Returns the class index of every image: of labels.csv, or of its class folder in their order.

    None without either.

    Raises:
      ValueError: an image has no label.
    """
    if not (self._folder / "labels.csv").exists():
      return self._classes()
    labels = images.read_labels(self._folder)
    absent = sorted(labels.keys() - set(self._names))
    if absent and not self._has_told:
      self._has_told = True
      logging.warning("%s/labels.csv labels %d images that are not there, such as %r; they are left out.",
                      self._folder, len(absent), absent[0])
    missing = [name for name in self._names if name not in labels]
    if missing:
      raise ValueError(f"{self._folder}/labels.csv has no label for {missing[0]!r} ({len(missing)} images "
                       "are missing); add a line for each image.")
    return np.array([labels[name] for name in self._names])


  def _classes(self) -> np.ndarray | None:
    if "/" not in self._names[0]:
      return None
    classes = images.class_names(self._folder)
    return np.array([classes.index(name.split("/")[0]) for name in self._names])


class Loaded:
  """Inputs that are in memory, without labels."""

  def __init__(self, arrays: Sequence[np.ndarray]):
    self._arrays = arrays

  def __len__(self) -> int:
    return len(self._arrays[0])

  def load(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns the inputs of those samples, one array an input."""
    return [array[indices] for array in self._arrays]

  def labels(self) -> np.ndarray | None:
    """None: there are none."""
    return None


class ArrayFile(Loaded):
  """A .npz (x and y, or one key an input and y) or .npy file."""

  def __init__(self, path: pathlib.Path, inputs: Sequence[InputSpec], preprocess: str = "none"):
    if preprocess != "none" and (len(inputs) != 1 or len(inputs[0].shape) != 3):
      raise ValueError(f"--preprocess={preprocess} is for models of one image input, this one takes "
                       f"{[spec.shape for spec in inputs]}; leave the flag out and prepare {path} yourself.")
    if not path.exists():
      raise FileNotFoundError(f"There is no file or folder {path}; check the path.")
    (arrays,) = data.batches(path, inputs, batch_size=1 << 62, where=str(path))
    super().__init__(arrays)
    self._path = path
    self._preprocess = preprocess
    self._has_labels = path.suffix == ".npz" and "y" not in [spec.name for spec in inputs]

  def load(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns the inputs of those samples, one array an input."""
    arrays = super().load(indices)
    if self._preprocess != "none":
      arrays = [images.preprocess(array, self._preprocess) for array in arrays]
    return arrays

  def labels(self) -> np.ndarray | None:
    """Returns the class index of every sample: y [n], [n, 1] or one-hot [n, classes]; None without y.

    Raises:
      ValueError: y holds something else, or another number of labels.
    """
    if not self._has_labels:
      return None
    try:
      stored = read_arrays(self._path, lambda names: [name for name in names if name == "y"])
    except ValueError as error:
      raise ValueError(f"y cannot be read: {error}; write it with numpy.savez.") from error
    if not isinstance(stored, dict) or "y" not in stored:
      return None
    y = stored["y"]
    fits = y.dtype.kind in "biuf" and y.ndim in (1, 2) and len(y) == len(self)
    labels = y if not fits or y.ndim == 1 else y[:, 0] if y.shape[1] == 1 else y.argmax(-1)
    if not fits or (labels % 1 != 0).any():
      raise ValueError(f"{self._path}: expected y to hold the class index of each of {len(self)} samples, or "
                       f"one-hot rows, got {y.dtype} of shape {y.shape}; write class numbers from 0, one a "
                       "sample.")
    return labels.astype(np.int64)


class TableFile(Loaded):
  """A .csv file: a row a sample, its numbers in the order of the model's one input."""

  def __init__(self, path: pathlib.Path, inputs: Sequence[InputSpec]):
    numbers, self._labels = tables.read_table(path)
    shape = inputs[0].shape
    if len(inputs) != 1 or None in shape or numbers.shape[1] != np.prod(shape):
      raise ValueError(f"{path} has {numbers.shape[1]} columns of numbers, the model takes "
                       f"{[spec.shape for spec in inputs]}; give as many columns, or an .npz file.")
    self._path = path
    (arrays,) = data.batches(numbers.reshape(-1, *shape), inputs, batch_size=1 << 62, where=str(path))
    super().__init__(arrays)

  def labels(self) -> np.ndarray | None:
    """Returns the class index of every sample, the column label or y; None without one.

    Raises:
      ValueError: numbers that are no class indices.
    """
    if self._labels is not None and ((self._labels % 1 != 0) | (self._labels < 0)).any():
      raise ValueError(f"{self._path}: expected class numbers from 0 as labels, got fractions or "
                       "negative ones.")
    return None if self._labels is None else self._labels.astype(np.int64)


Source = ImageFolder | Loaded


def open_source(path: str, inputs: Sequence[InputSpec], *, preprocess: str = "none") -> Source:
  """Returns the images or arrays at a path, for a model's inputs.

  Raises:
    FileNotFoundError, ValueError: nothing there, or not what the model takes.
  """
  if pathlib.Path(path).is_dir():
    return ImageFolder(pathlib.Path(path), inputs, preprocess)
  if path.endswith(".csv"):
    if preprocess != "none":
      raise ValueError(f"--preprocess={preprocess} is for images, {path} holds numbers; leave the flag out.")
    return TableFile(pathlib.Path(path), inputs)
  return ArrayFile(pathlib.Path(path), inputs, preprocess)
