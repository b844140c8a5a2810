"""Analysis: the noise that each tensor brings to a network's output, as rows of data and as a table."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kquant.core.text import text_table

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class AnalysisRow:
  """What the quantization of one tensor, or of one layer, does.

  Attributes:
    name: of the layer whose weights they are, or of the tensor; of a grid that tensors share the first.
    part: "weights", "activation", or "both": the weights of a layer with its output.
    kind: of the layer: "Conv2D".
    bits: of the integers; of "both" those of the weights.
    shared_with: other tensors on the same grid, or other calls of a shared layer.
    loudest: the tensor on the grid, or the call of the layer, with the largest local noise: `local`,
      `mean_shift` and the channels are of it.
    solo: noise at the output where this alone is quantized: its power over that of the signal (QNSR).
    share: of `solo` in the sum over all tensors, 0..1.
    leave_one_out: how much noise goes where all but this is quantized; below 0 it cancels other noise.
    local: noise where it comes in, with float inputs: power over that of the tensor.
    amplification: solo / local: what the network behind makes of it; None where there is no noise.
    mean_shift: share of the local noise that is a constant shift of the channels, 0..1.
    saturated: share of the values beyond the grid, 0..1; None for "both".
    noisy_channels: (channel, its share of the local noise), largest first.
    wide_channels: (channel, its largest magnitude over the median channel's), widest first: of an
      activation, and of weights with one scale, they set the step of all.
    divergence: nats, Kullback-Leibler, of the answers where this alone is quantized; None where the outputs
      are no classes.
    top1_drop: top-1 in float less top-1 where this alone is quantized; None without labels.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> row = kq.analyze(model, np.eye(3, dtype=np.float32)).rows[0]
    >>> round(row.local * row.amplification / row.solo, 6)
    1.0
  """

  name: str
  part: str
  kind: str
  bits: int
  shared_with: tuple[str, ...]
  loudest: str
  solo: float
  share: float
  leave_one_out: float
  local: float
  amplification: float | None
  mean_shift: float
  saturated: float | None
  noisy_channels: tuple[tuple[int, float], ...]
  wide_channels: tuple[tuple[int, float], ...]
  divergence: float | None = None
  top1_drop: float | None = None


@dataclasses.dataclass(frozen=True)
class Analysis:
  """Where the noise at a network's output comes from; printed it is a table.

  Noise is the quantization-noise-to-signal ratio (QNSR) before a closing softmax: sum ||z_q - z_f||^2 over
  sum ||z_f - mean z_f||^2, of several outputs the mean. The SQNR of a file counts the mean of z_f over the
  images as signal, too.

  Attributes:
    images: that were looked at.
    whole: noise of the network with everything quantized.
    divergence: Kullback-Leibler of its answers in nats; None where the outputs are no classes.
    top1: (in float, quantized); None without labels.
    additivity: sum of `solo` over all tensors / `whole`; None without noise. Far from 1 the noises are not
      independent: they cancel (above) or are coherent shifts (below).
    rows: weights of layers and grids of activations, the largest noise first.
    layers: weights together with the output of their layer, the largest noise first.
    notes: what the analysis could not see.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> analysis = kq.analyze(model, np.eye(3, dtype=np.float32))
    >>> sorted((row.part, row.bits) for row in analysis.rows)
    [('activation', 8), ('activation', 8), ('weights', 8)]
  """

  images: int
  whole: float
  divergence: float | None
  top1: tuple[float, float] | None
  additivity: float | None
  rows: tuple[AnalysisRow, ...]
  layers: tuple[AnalysisRow, ...]
  notes: tuple[str, ...] = ()

  def table(self, most: int | None = None, *, layers: bool = False) -> str:
    """Makes a table, the largest noise first.

    Args:
      most: rows; None: all.
      layers: weights together with the output of their layer, in place of tensor by tensor.

    Returns:
      The text.
    """
    rows = self.layers if layers else self.rows
    header = ["layer" if layers else "tensor", "part", "bits", "noise", "share", "left out", "local", "gain",
              "shift", "saturated", "noisiest channel", "widest channel"]
    if self.divergence is not None:
      header.append("KL nats")
    if self.top1 is not None:
      header.append("top-1 drop")
    return text_table(header, [_cells(row) for row in rows[:most]])

  def summary(self) -> str:
    """Says in a line how much noise there is, and how independent its parts are.

    Returns:
      The text.
    """
    parts = [f"output QNSR {self.whole:.3g} ({_decibels(self.whole)}) on {self.images} images"]
    if self.additivity is not None:
      parts.append(f"sum of the tensors alone / whole: {self.additivity:.2f}")
    if self.divergence is not None:
      parts.append(f"KL {self.divergence:.3g} nats")
    if self.top1 is not None:
      parts.append(f"top-1 {self.top1[0]:.4f} -> {self.top1[1]:.4f}")
    return "; ".join(parts)

  def to_json(self) -> dict[str, Any]:
    """Makes what a JSON file holds: the attributes, rows as dicts; what is infinite as None.

    Returns:
      A JSON-ready dict.
    """
    return finite(dataclasses.asdict(self))

  def to_node_data(self, program: Any) -> dict[str, Any]:
    """Makes the node data that Google's Model Explorer shows over the graph of a .tflite file.

    Args:
      program: of the file: `export(...).program`.

    Returns:
      A JSON-ready dict: for each tensor 1 / QNSR at the output, in dB, where it alone is quantized.
    """
    from kquant.analysis.node_data import node_data  # it reads the rows that are defined here
    return node_data(self.rows, program)

  def to_tensorboard(self, folder: str | os.PathLike, *, step: int = 0) -> None:
    """Writes the noise of each tensor and the table for TensorBoard.

    Args:
      folder: of the event files.
      step: of all of them, to compare several analyses of one training.
    """
    from kquant.analysis.summaries import write  # TensorFlow takes long to import
    write(self, folder, step)

  def plot(self, most: int = _SHOWN) -> "Figure":
    """Draws the share of each tensor and their cumulative sum, the largest first.

    Args:
      most: tensors.

    Returns:
      A matplotlib Figure, for `.savefig(path)`.
    """
    from kquant.analysis.plots import draw  # matplotlib takes long to import
    return draw(self, most)

  def __str__(self) -> str:
    """The summary, the tensors with the largest noise, what could not be seen."""
    hidden = len(self.rows) - _SHOWN
    more = [f"... and {hidden} more; .table() has all"] if hidden > 0 else []
    return "\n".join([self.summary(), "", self.table(_SHOWN), *more, *self.notes])


def _cells(row: AnalysisRow) -> list[str]:
  """What `Analysis.table` shows of a row; the last two where there are classes, and labels."""
  others = f" +{len(row.shared_with)}" if row.shared_with else ""
  others += f" ({row.loudest})" if row.loudest != row.name else ""
  cells = [row.name + others, row.part, str(row.bits), f"{row.solo:.2e}", _percent(row.share),
           f"{row.leave_one_out:.2e}", f"{row.local:.2e}", _number(row.amplification, ".3g"),
           _percent(row.mean_shift), _percent(row.saturated, 2),
           "".join(f"{channel} ({_percent(share)})" for channel, share in row.noisy_channels[:1]) or "-",
           "".join(f"{channel} (x{ratio:.3g})" for channel, ratio in row.wide_channels[:1]) or "-"]
  cells += [] if row.divergence is None else [f"{row.divergence:.2e}"]
  return cells + ([] if row.top1_drop is None else [f"{row.top1_drop:.4f}"])


def _percent(share: float | None, digits: int = 0) -> str:
  return "-" if share is None else f"{100 * share:.{digits}f} %"


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else f"{value:{form}}"


def _decibels(noise: float) -> str:
  if not noise or math.isinf(noise):
    return "no signal" if noise else "no noise"
  level = -10 * math.log10(noise)
  return f"{level:.1f} dB; the SQNR, whose signal has the mean over images, too, is no lower"


def finite(tree: Any) -> Any:
  """Returns a nest of dicts and tuples ready for JSON: what is not finite is None."""
  if isinstance(tree, dict):
    return {key: finite(value) for key, value in tree.items()}
  if isinstance(tree, Sequence) and not isinstance(tree, str):
    return [finite(value) for value in tree]
  return None if isinstance(tree, float) and not math.isfinite(tree) else tree
