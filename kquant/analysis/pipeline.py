"""The buffer that hardware needs which computes a network while its image comes in row by row."""

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import tf_keras as keras

from kquant.analysis.row_stream import Held, stream
from kquant.core.text import first_line, text_table
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.rewrites.approximate.gates import image_and_means
from kquant.rewrites.approximate.squeeze_excite import TILE_OF_NAME
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class BlockBuffer:
  """What one squeeze-and-excite block holds of its image until the gates are known.

  Attributes:
    name: of the call that takes the mean, in the model as it was before it was tiled.
    rows, columns, channels: of the image.
    held_rows: rows that are held, as wide as the image.

  Example:
    >>> block = kq.BlockBuffer("se", rows=56, columns=56, channels=96, held_rows=7)
    >>> block.untiled, block.elements
    (301056, 37632)
  """

  name: str
  rows: int
  columns: int
  channels: int
  held_rows: int

  @property
  def untiled(self) -> int:
    """Elements of the whole image, which the block holds without tiles."""
    return self.rows * self.columns * self.channels

  @property
  def elements(self) -> int:
    """Elements that it holds."""
    return self.held_rows * self.columns * self.channels


@dataclasses.dataclass(frozen=True)
class PipelineBuffer:
  """The elements that a network holds while an image comes in; at 8 bits as many bytes.

  Attributes:
    blocks: the squeeze-and-excite blocks, in the order of the network.
    kernels: elements of the rows that windows of convolutions and pools need.
    residuals: elements of the rows beyond these that wait for another tensor that they are joined with.

  Example:
    >>> layers = [keras.layers.Conv2D(8, 3, padding="same", input_shape=(16, 16, 4))]
    >>> buffer = kq.pipeline_buffer(keras.Sequential(layers))
    >>> buffer.kernels, buffer.total
    (192, 192)
  """

  blocks: tuple[BlockBuffer, ...]
  kernels: int
  residuals: int

  @property
  def squeeze_excite(self) -> int:
    """Elements that all blocks hold together."""
    return sum(block.elements for block in self.blocks)

  @property
  def untiled(self) -> int:
    """Elements that all blocks would hold together without tiles."""
    return sum(block.untiled for block in self.blocks)

  @property
  def total(self) -> int:
    """Elements of all that is held."""
    return self.squeeze_excite + self.kernels + self.residuals

  def to_json(self) -> dict[str, Any]:
    """Lists all numbers, ready for JSON.

    Returns:
      {"blocks": one dict each, "squeeze_excite", "untiled", "kernels", "residuals", "total"}.
    """
    blocks = [{**dataclasses.asdict(block), "untiled": block.untiled, "elements": block.elements}
              for block in self.blocks]
    return {"blocks": blocks, "squeeze_excite": self.squeeze_excite, "untiled": self.untiled,
            "kernels": self.kernels, "residuals": self.residuals, "total": self.total}

  def plot(self) -> "Figure":
    """Draws what each block holds without tiles and with those that it has.

    Returns:
      The figure.

    Raises:
      ValueError: the network has no squeeze-and-excite block.
    """
    if not self.blocks:
      raise ValueError("PipelineBuffer.plot: the network has no squeeze-and-excite block; "
                       "print(buffer) lists what else it holds.")
    from kquant.analysis.pipeline_plot import draw  # matplotlib takes long to import
    return draw(self.blocks)

  def __str__(self) -> str:
    """A row for each block, and the sums."""
    rows = [(block.name, f"{block.rows} x {block.columns} x {block.channels}", f"{block.untiled:,}",
             str(block.held_rows), f"{block.elements:,}") for block in self.blocks]
    rows += [("all squeeze-and-excite", "", f"{self.untiled:,}", "", f"{self.squeeze_excite:,}"),
             ("windows of kernels", "", "", "", f"{self.kernels:,}"),
             ("residuals that wait", "", "", "", f"{self.residuals:,}"),
             ("total", "", "", "", f"{self.total:,}")]
    return text_table(("block", "image", "without tiles", "rows held", "elements (bytes at 8 bits)"), rows)


def pipeline_buffer(model: keras.Model, input_shape: tuple[int, int, int] | None = None,
                    rows_per_step: int = 1) -> PipelineBuffer:
  """Computes what hardware holds that computes a network while an image comes in row by row.

  Each layer computes a row as soon as the rows that it needs are there; a row is held until the last row that
  needs it is made. A convolution holds the rows of its window, a sum holds the earlier of its tensors until
  the other one comes, squeeze-and-excite holds the image of a tile until the gate is known: rows as wide as
  the image, so that tiles of columns hold as much as none (turn the image where it comes column by column).

  Args:
    model: a float model of one image.
    input_shape: rows, columns and channels of the image; None: those of the model, which must be fixed. A
      model that is tiled keeps its size.
    rows_per_step: rows of the image that come at a time.

  Returns:
    What each block holds, and what all else does.

  Raises:
    ValueError: a model of several inputs or of no image; an open size; another size that it does not take;
      rows_per_step below 1.

  Example:
    >>> image = keras.Input((56, 56, 8))
    >>> mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="mean")(image)
    >>> model = keras.Model(image, keras.layers.Multiply()([image, keras.layers.Dense(8, "sigmoid")(mean)]))
    >>> kq.pipeline_buffer(model).total, kq.pipeline_buffer(kq.tile_squeeze_excite(model, rows=7)).total
    (25088, 3136)
  """
  graph = _read(model, input_shape)
  if rows_per_step < 1:
    raise ValueError(f"pipeline_buffer: rows_per_step is 1 or more, got {rows_per_step}.")
  standardize(graph)
  fold_batch_norm(graph)
  graph.normalize()
  held = stream(graph, rows_per_step)
  blocks: dict[Ref, BlockBuffer] = {}
  for node in graph.nodes:
    found = image_and_means(node)
    if found is not None and found[0] in held:
      image, means = found
      name = re.sub(TILE_OF_NAME, "", means[0].layer.name)
      blocks[image] = BlockBuffer(name, *image.shape[1:], max(held[image].rows(), 1))
  others = [tensor for ref, tensor in held.items() if ref not in blocks]
  kernels = sum(map(_of_windows, others))
  waiting = sum(tensor.rows() * tensor.row_size for tensor in others) - kernels
  return PipelineBuffer(tuple(blocks.values()), kernels, waiting)


def _of_windows(tensor: Held) -> int:
  return tensor.rows(waiting=False) * tensor.row_size


def _read(model: keras.Model, input_shape: tuple[int, int, int] | None) -> Graph:
  """Returns the graph of a model, for images of another size where one is given."""
  graph = Graph.from_model(model)
  if len(graph.input_refs) != 1 or len(graph.input_refs[0].shape) != 4:
    raise ValueError("pipeline_buffer: expected a model of one image [batch, rows, columns, channels], got "
                     f"inputs of shapes {[ref.shape for ref in graph.input_refs]}.")
  (ref,) = graph.input_refs
  if input_shape is not None and tuple(input_shape) != tuple(ref.shape[1:]):
    layer = ref.node.layer
    layer.config = {**layer.config, "batch_input_shape": (None, *input_shape)}
    try:
      graph = Graph.from_model(graph.to_model())
    except ValueError as error:
      raise ValueError(f"pipeline_buffer: the model does not take images of {tuple(input_shape)}; build it "
                       f"for that size, and tile it then: {first_line(error)}") from error
  if None in graph.input_refs[0].shape[1:]:
    raise ValueError(f"pipeline_buffer: the image has an open size {graph.input_refs[0].shape}; give "
                     "input_shape.")
  return graph
