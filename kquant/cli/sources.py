"""What --calibration and --eval name: a folder of images, or an array file; read a part at a time."""

import pathlib
from collections.abc import Sequence

import numpy as np

from kquant.core import data, images
from kquant.core.data import InputSpec


class ImageFolder:
  """Images resized on their short side and centre-cropped to a model's one input.

  Raises:
    ValueError: the model's input is not one image of fixed size, or the folder holds none.
  """

  def __init__(self, folder: pathlib.Path, inputs: Sequence[InputSpec], preprocess: str):
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 3:
      raise ValueError(f"{folder} is a folder of images, the model takes {len(inputs)} input(s) of shape "
                       f"{shape}; give a .npz file instead.")
    if None in shape:
      raise ValueError(f"The model's input shape {shape} is open; give --input_shape=H,W,C.")
    self._folder = folder
    self._names = images.image_names(folder)
    self._size = dict(zip(("height", "width", "channels"), shape))
    self._preprocess = preprocess

  def __len__(self) -> int:
    return len(self._names)

  def load(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns the inputs of those images, [array [images, h, w, c]]."""
    names = [self._names[i] for i in indices]
    return [images.load_images(self._folder, **self._size, preprocess=self._preprocess, names=names)]

  def labels(self) -> np.ndarray | None:
    """Returns the class index of every image; None without a labels.csv.

    Raises:
      ValueError: an image has no label.
    """
    if not (self._folder / "labels.csv").exists():
      return None
    labels = images.read_labels(self._folder)
    missing = [name for name in self._names if name not in labels]
    if missing:
      raise ValueError(f"{self._folder}/labels.csv has no label for {missing[0]!r} ({len(missing)} images "
                       "are missing); add a line for each image.")
    return np.array([labels[name] for name in self._names])


class ArrayFile:
  """A .npz (x and y, or one key an input and y) or .npy file."""

  def __init__(self, path: pathlib.Path, inputs: Sequence[InputSpec]):
    if not path.exists():
      raise FileNotFoundError(f"There is no file or folder {path}; check the path.")
    chunks = list(data.batches(path, inputs, batch_size=1 << 62, where=str(path)))
    (self._arrays,) = chunks
    self._labels = None
    if path.suffix == ".npz":
      with np.load(path) as stored:
        if "y" in stored.files and "y" not in [spec.name for spec in inputs]:
          self._labels = np.asarray(stored["y"]).reshape(len(self), -1)
    if self._labels is not None:
      one_hot = self._labels.shape[1] > 1
      self._labels = self._labels.argmax(-1) if one_hot else self._labels[:, 0].astype(np.int64)

  def __len__(self) -> int:
    return len(self._arrays[0])

  def load(self, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns the inputs of those samples, one array an input."""
    return [array[indices] for array in self._arrays]

  def labels(self) -> np.ndarray | None:
    """Returns the class index of every sample; None without `y`."""
    return self._labels


Source = ImageFolder | ArrayFile


def open_source(path: str, inputs: Sequence[InputSpec], *, preprocess: str = "none") -> Source:
  """Returns the images or arrays at a path, for a model's inputs.

  Raises:
    FileNotFoundError, ValueError: nothing there, or not what the model takes.
  """
  if pathlib.Path(path).is_dir():
    return ImageFolder(pathlib.Path(path), inputs, preprocess)
  if preprocess != "none":
    raise ValueError(f"--preprocess={preprocess} applies to folders of images; {path} is an array file, "
                     "which must hold what the model takes.")
  return ArrayFile(pathlib.Path(path), inputs)
