"""What users give as data -> batches of arrays, one array for each input of the model.

Every form of data is read as *elements*: one array, dict or tuple that holds one example or a
batch (`elements`). An element is split into one array for each input, checked, cast, and cut into batches.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kquant.core.elements import describe, elements, split
from kquant.core.input_spec import InputSpec

_ALL = 1 << 62
"""Samples of a batch that holds all of them."""
HELD_BACK = 0.25
"""Default fraction of the images that is held back to compare methods on."""


def batches(data, inputs: Sequence[InputSpec], *, batch_size: int = 32,
            where: str = "calibration") -> Iterator[list[np.ndarray]]:
  """Yields the data in batches: one array for each input, in the order of `inputs`.

  Args:
    data: an array or tensor (one input); a list or tuple of arrays, one for each input; a dict by input
      name; a tf.data.Dataset, Keras Sequence, list, generator or other iterable of examples or
      batches (arrays, tuples or dicts), or a callable that returns any of these; the path of an
      .npz (keys: input names, or "x" for one input; others are ignored) or .npy file. Of a tuple
      (x, y) or (x, y, weights), labels and weights are dropped. Whether arrays hold one example or
      a batch follows from their rank.
    inputs: the model's inputs.
    batch_size: largest number of samples in a batch. Only the last batch is smaller, and one before
      samples of another shape (where a spec leaves sizes free).
    where: what the data are for; errors begin with it.

  Returns:
    An iterator of lists of arrays [n, ...], n <= batch_size, each of its input's dtype. They may
    share memory with the data.

  Raises (a wrong path or kind of data at once, the rest as the iterator proceeds):
    ValueError: shapes, keys, numbers of inputs or samples that do not fit, NaN, infinity, no data.
    TypeError: data of no known kind, or arrays that hold no numbers.
    FileNotFoundError: there is no such file.

  >>> images = np.zeros((5, 8, 8, 1))
  >>> [len(x) for (x,) in batches(images, [InputSpec("image", (8, 8, 1))], batch_size=2)]
  [2, 2, 1]
  """
  inputs = list(inputs)
  if batch_size < 1:
    raise ValueError(f"{where} data: expected a batch_size of 1 or more, got {batch_size}.")
  read = elements(data, inputs, where)
  return _rebatch(_checked(read, inputs, batch_size, where), batch_size)


def choose(count: int, samples: int, *, order: str = "random", seed: int = 0) -> np.ndarray:
  """Returns `samples` of the indices 0 .. count - 1, ascending; all of them if there are fewer.

  Args:
    count: how many there are.
    samples: how many are wanted.
    order: "random" draws without repetition, seeded by `seed`; "first" takes the first ones.
    seed: of the draw.

  Raises:
    ValueError: no data, no sample wanted, or an unknown order.

  >>> choose(10, 3, order="first").tolist()
  [0, 1, 2]
  """
  if count < 1 or samples < 1:
    raise ValueError(f"choose: expected at least 1 sample of at least 1, got {samples} of {count}; "
                     "ask for one or more, and check that the data are not empty.")
  if order not in ("random", "first"):
    raise ValueError(f"choose: expected order 'random' or 'first', got {order!r}.")
  if order == "first" or samples >= count:
    return np.arange(min(samples, count))
  return np.sort(np.random.default_rng(seed).choice(count, samples, replace=False))


def hold_back(arrays: Sequence[np.ndarray], fraction: float = HELD_BACK, *,
              seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns (the rest, a seeded random fraction that is held back), each in the order it had.

  Args:
    arrays: one [n, ...] for each input of a model.
    fraction: of the images to hold back.
    seed: of the draw, which is the same for all arrays.

  >>> rest, held_back = hold_back([np.arange(8)])
  >>> len(rest[0]), len(held_back[0])
  (6, 2)
  """
  order = np.random.default_rng(seed).permutation(len(arrays[0]))
  held = round(len(order) * fraction)
  rest, back = np.sort(order[held:]), np.sort(order[:held])
  return [array[rest] for array in arrays], [array[back] for array in arrays]


def gather(data, inputs: Sequence[InputSpec], *, where: str = "calibration") -> list[np.ndarray]:
  """Returns all of the data as one array [n, ...] for each input; an array of its type is not copied.

  Args:
    data, inputs, where: as `batches` takes them.

  Raises:
    ValueError, TypeError, FileNotFoundError: as `batches`.
  """
  parts = list(batches(data, inputs, batch_size=_ALL, where=where))
  return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts)]


def all_equal(arrays: Sequence[np.ndarray], sample: Sequence[np.ndarray] | None = None) -> bool:
  """Returns whether the samples of all inputs are one and the same: nothing then varies with the image.

  Args:
    arrays: one [n, ...] for each input of a model.
    sample: what they are compared with, one array an input; None: the first of them.

  >>> all_equal([np.zeros((4, 2))]), all_equal([np.eye(2)])
  (True, False)
  """
  sample = [array[0] for array in arrays] if sample is None else sample
  return all(np.array_equal(other, one) for array, one in zip(arrays, sample) for other in array)


def _checked(read: Iterable, inputs: Sequence[InputSpec], batch_size: int,
             where: str) -> Iterator[list[np.ndarray]]:
  """Yields lists of checked arrays [n, ...], n <= batch_size, of the inputs' dtypes."""
  seen = 0
  for element in read:
    values = split(element, inputs, where)
    arrays = [_batched(value, spec, seen, where) for value, spec in zip(values, inputs)]
    counts = {spec.name: len(array) for spec, array in zip(inputs, arrays)}
    if len(set(counts.values())) > 1:
      raise ValueError(f"{where} data: expected as many samples for each input, got {counts}; "
                       "give every input the same samples.")
    for start in range(0, len(arrays[0]), batch_size):
      yield [_cast(array[start:start + batch_size], spec, seen + start, where)
             for array, spec in zip(arrays, inputs)]
    seen += len(arrays[0])
  if not seen:
    raise ValueError(f"{where} data: expected at least one sample, got none; check that the data "
                     "are not empty and that a generator was not used up before.")


def _batched(value, spec: InputSpec, seen: int, where: str) -> np.ndarray:
  """Returns value as an array [n, ...] of numbers whose samples have the shape of the spec."""
  prefix = f"{where} data, input {spec.name!r}"
  try:
    array = np.asarray(value)
  except ValueError as error:
    raise ValueError(f"{prefix}: expected an array, got {describe(value)} of parts of "
                     f"different shapes at sample {seen}; if it holds labels, make it a tuple "
                     "(x, y).") from error
  if array.dtype.kind not in "biuf":
    raise TypeError(f"{prefix}: expected numbers ({spec.dtype}), got {describe(value)} of dtype "
                    f"{array.dtype} at sample {seen}; convert it to an array of {spec.dtype}.")
  rank = len(spec.shape)
  if array.ndim == rank:
    array = array[None]
  fits = array.ndim == rank + 1 and all(
      want in (None, got) for want, got in zip(spec.shape, array.shape[1:]))
  if not fits:
    given = np.shape(value)
    flat = rank > 1 and given[1 - rank:] == spec.shape[:-1]  # grey images without their channel
    channels_first = rank == 3 and given[-3:] == (spec.shape[-1], *spec.shape[:-1])
    remedy = ("move the channels to the end: np.moveaxis(x, -3, -1)" if channels_first else
              "add the last axis, as x[..., None]" + (
                  f" repeated {spec.shape[-1]} times" if spec.shape[-1] != 1 else "") if flat else
              "resize or reshape the data")
    shape = array.shape[1:] if len(given) == rank + 1 else f"an array of shape {given}"
    raise ValueError(f"{prefix}: expected samples of shape {spec.shape}, or batches of them, got "
                     f"{shape} at sample {seen}; {remedy}.")
  return array


def _cast(array: np.ndarray, spec: InputSpec, seen: int, where: str) -> np.ndarray:
  """Returns array [n, ...] in the dtype of the spec, every number finite and in its reach."""
  with np.errstate(over="ignore", invalid="ignore"):
    cast = array.astype(spec.dtype, copy=False)
  if cast.dtype.kind == "f":
    good, wanted, remedy = np.isfinite(cast), "finite numbers", "repair or leave out that sample"
  else:
    good, wanted = cast == array, f"whole numbers within {spec.dtype}"
    remedy = "check that the array belongs to this input"
  if spec.rows is not None:
    good &= (array >= 0) & (array < spec.rows)
    wanted = f"indices from 0 to {spec.rows - 1}, the rows of its table"
    remedy = "check how the indices were made, and the input_dim of the Embedding"
  if not good.all():
    first = np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0]
    value = array[first][~good[first]].flat[0]
    raise ValueError(f"{where} data, input {spec.name!r}: expected {wanted}, got {value} in sample "
                     f"{seen + first}; {remedy}.")
  return cast


def _rebatch(chunks: Iterable[list[np.ndarray]], batch_size: int) -> Iterator[list[np.ndarray]]:
  """Yields the samples of chunks, each of at most batch_size, joined to batches of batch_size."""
  held, count = [], 0
  for chunk in chunks:
    if held and any(a.shape[1:] != b.shape[1:] for a, b in zip(held[0], chunk)):
      yield _join(held)
      held, count = [], 0
    held.append(chunk)
    count += len(chunk[0])
    if count >= batch_size:
      whole = _join(held)
      yield [array[:batch_size] for array in whole]
      count -= batch_size
      held = [[array[batch_size:] for array in whole]] if count else []
  if held:
    yield _join(held)


def _join(chunks: list[list[np.ndarray]]) -> list[np.ndarray]:
  """Returns chunks, each one array an input, as one chunk."""
  if len(chunks) == 1:
    return chunks[0]
  return [np.concatenate(parts) for parts in zip(*chunks)]
