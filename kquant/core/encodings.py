"""What quantization found: one Encoding a tensor, and Encodings, the artefact that export reads."""

import dataclasses
import json
import os
import pathlib

import numpy as np

from kquant.core import numerics
from kquant.core.array_files import read_arrays
from kquant.core.files import written_whole
from kquant.core.text import first_line

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
  """The grid of one tensor: x = scale * (q - zero_point).

  Attributes:
    scale: float32, 1-D, [channels] or [1].
    zero_point: int64, same shape.
    bits: bits of the signed grid; a bias has 32, or 64 beside 16-bit activations.
    axis: the channel axes, ascending, of the tensor in its Keras layout; None for one grid.
    narrow: the grid leaves out its lowest integer (weights).
    packed: a file stores its integers, of at most 4 bits, as INT4, two in a byte.

  Raises:
    ValueError: scale and zero_point are not 1-D, or not alike.

  Example:
    >>> grid = kq.Encoding(scale=[0.5], zero_point=[-128])
    >>> grid.quantize([0.0, 0.6, 999.0])
    array([-128, -127,  127])
    >>> grid.dequantize([-127])
    array([0.5], dtype=float32)
  """

  scale: np.ndarray
  zero_point: np.ndarray
  bits: int = 8
  axis: tuple[int, ...] | None = None
  narrow: bool = False
  packed: bool = False

  def __post_init__(self):
    scale = np.atleast_1d(np.asarray(self.scale, np.float32))
    zero_point = np.atleast_1d(np.asarray(self.zero_point, np.int64))
    if scale.shape != zero_point.shape or scale.ndim != 1:
      raise ValueError(
          f"Encoding: scale {scale.shape} and zero_point {zero_point.shape} must be 1-D and alike.")
    object.__setattr__(self, "scale", scale)
    object.__setattr__(self, "zero_point", zero_point)
    object.__setattr__(self, "axis", None if self.axis is None else tuple(self.axis))

  @property
  def limits(self) -> tuple[int, int]:
    """(qmin, qmax) of the grid."""
    return numerics.grid_limits(self.bits, narrow=self.narrow)

  @property
  def range(self) -> tuple[np.ndarray, np.ndarray]:
    """The real numbers (low, high) that the first and the last integer stand for, each [channels]."""
    qmin, qmax = self.limits
    scale = self.scale.astype(np.float64)
    return scale * (qmin - self.zero_point), scale * (qmax - self.zero_point)

  def quantize(self, x) -> np.ndarray:
    """Rounds real numbers to the grid: half away from zero, clipped to `limits`.

    Args:
      x: real numbers; with an `axis`, an array in the Keras layout.

    Returns:
      Their int64 integers, of the shape of x.
    """
    return numerics.quantize(x, self.scale, self.zero_point, bits=self.bits, narrow=self.narrow,
                             axis=self.axis)

  def dequantize(self, q) -> np.ndarray:
    """Gives integers their real values.

    Args:
      q: integers; with an `axis`, an array in the Keras layout.

    Returns:
      Their float32 values, of the shape of q.
    """
    return numerics.dequantize(q, self.scale, self.zero_point, axis=self.axis)

  def __eq__(self, other) -> bool:
    return (isinstance(other, Encoding)
            and (self.bits, self.axis, self.narrow, self.packed)
            == (other.bits, other.axis, other.narrow, other.packed)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point))

  def to_json(self) -> dict:
    """Makes what `from_json` reads; float32 scales survive the round trip through their decimal form.

    Returns:
      A JSON-ready dict.
    """
    return {"scale": [float(s) for s in self.scale], "zero_point": [int(z) for z in self.zero_point],
            "bits": self.bits, "axis": None if self.axis is None else list(self.axis),
            "narrow": self.narrow, "packed": self.packed}

  @classmethod
  def from_json(cls, fields: dict) -> "Encoding":
    """Reads what `to_json` made.

    Args:
      fields: the dict.

    Returns:
      The Encoding.
    """
    return cls(**fields)


def activation_grid(low: float, high: float, *, bits: int, symmetric: bool) -> Encoding:
  """Returns the grid of an activation over a range.

  Args:
    low, high: real limits.
    bits: of its integers.
    symmetric: zero point 0.
  """
  if symmetric:
    return Encoding(numerics.symmetric_grid(max(-low, high), bits), np.zeros(1, np.int64), bits)
  return Encoding(*numerics.affine_grid(low, high, bits), bits)


class Encodings:
  """The grids of a network by key, and the integers of its constants.

  Keys: `<node>` for the output of a call, `<node>:1` for a further one, `<layer>/kernel` for a
  weight, `<node>/bias` for a bias (its scale depends on the call's input: calls whose inputs have one scale
  have that of the first of them), `<node>/constant` for a constant operand. The node of a layer's first call
  bears the layer's name.

  Attributes:
    grids: {key: Encoding}.
    integers: {key: integer array in Keras layout} for weights, biases and constants.
    input_names, output_names: of the Keras model, in flat order, for the signature of a file; [] where
      they are not known. `diff` leaves them out.

  Example:
    >>> encodings = kq.Encodings({"image": kq.Encoding(scale=[0.5], zero_point=[0])})
    >>> encodings["image"].limits
    (-128, 127)
    >>> encodings.save("encodings.json")
    >>> encodings.diff(kq.Encodings.load("encodings.json"))
    []
  """

  def __init__(self, grids: dict[str, Encoding] | None = None,
               integers: dict[str, np.ndarray] | None = None):
    self.grids = dict(grids or {})
    self.integers = dict(integers or {})
    self.input_names: list[str] = []
    self.output_names: list[str] = []

  def __getitem__(self, key: str) -> Encoding:
    return self.grids[key]

  def __contains__(self, key: str) -> bool:
    return key in self.grids

  def __len__(self) -> int:
    return len(self.grids)

  def __eq__(self, other) -> bool:
    return isinstance(other, Encodings) and not self.diff(other)

  def diff(self, other: "Encodings") -> list[str]:
    """Compares with other encodings.

    Args:
      other: those.

    Returns:
      One line for each key whose grid or integers differ; an empty list means equal.
    """
    lines = []
    for key in sorted(set(self.grids) | set(other.grids)):
      if self.grids.get(key) != other.grids.get(key):
        mine, theirs = (" ".join(str(side.grids.get(key)).split()) for side in (self, other))
        lines.append(f"{key}: grid {mine} != {theirs}")
    for key in sorted(set(self.integers) | set(other.integers)):
      mine, theirs = self.integers.get(key), other.integers.get(key)
      if mine is None or theirs is None or not np.array_equal(mine, theirs):
        lines.append(f"{key}: integers differ")
    return lines

  def save(self, path: str | os.PathLike) -> None:
    """Writes `path` (JSON: the grids) and beside it `<stem>.npz` (the integers), whole or not at all.

    Args:
      path: of the JSON file.
    """
    path = pathlib.Path(path)
    integers_path = path.with_suffix(".npz")
    body = {"format": "kquant encodings", "version": FORMAT_VERSION, "integers": integers_path.name,
            "input_names": self.input_names, "output_names": self.output_names,
            "grids": {key: grid.to_json() for key, grid in self.grids.items()}}
    with written_whole(integers_path, path) as (integers, grids):
      with open(integers, "wb") as file:
        np.savez_compressed(file, **{k.replace("/", "|"): v for k, v in self.integers.items()})
      grids.write_text(json.dumps(body, indent=1))

  @classmethod
  def load(cls, path: str | os.PathLike) -> "Encodings":
    """Reads what `save` wrote.

    Args:
      path: of the JSON file.

    Returns:
      The encodings.

    Raises:
      FileNotFoundError: there is no such file, or no file of the integers beside it.
      ValueError: the file is not an encodings file of this version, or one of the two is damaged.
    """
    path = pathlib.Path(path)
    try:
      body = json.loads(path.read_text())
    except ValueError:
      body = None
    fields = body if isinstance(body, dict) else {}
    if fields.get("format") != "kquant encodings" or fields.get("version") != FORMAT_VERSION:
      raise ValueError(f"{path}: expected a kquant encodings file of version {FORMAT_VERSION}, "
                       f"got format {fields.get('format')!r}, version {fields.get('version')!r}.")
    try:
      grids = {key: Encoding.from_json(grid) for key, grid in body["grids"].items()}
      integers_path = path.with_name(body["integers"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ValueError(f"{path}: is damaged ({first_line(error)}); save the encodings again.") from error
    encodings = cls(grids, {key.replace("|", "/"): values
                            for key, values in _read_integers(integers_path, path).items()})
    encodings.input_names = list(body.get("input_names", []))
    encodings.output_names = list(body.get("output_names", []))
    return encodings


def _read_integers(path: pathlib.Path, grids_path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays beside a file of grids; an error names both files."""
  remedy = "expected the .npz file with its integers; keep the two beside one another, or save both again"
  if not path.exists():
    raise FileNotFoundError(f"{grids_path}: there is no file {path}, {remedy}.")
  try:
    stored = read_arrays(path)
  except ValueError as error:
    raise ValueError(f"{grids_path}: {error}, {remedy}.") from error
  if not isinstance(stored, dict):
    raise ValueError(f"{grids_path}: {path} is no file of named arrays, {remedy}.")
  return stored
