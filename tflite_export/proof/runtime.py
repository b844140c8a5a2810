"""A thin layer over LiteRT: load a .tflite file, run arrays through it.

To look at inner tensors, write the same program with more outputs,
`writer.to_bytes(program.with_outputs(names))`: that does not change the result, while asking the
interpreter to preserve all tensors does (it changes the kernels).
"""

import os
import time
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import interpreter as litert

KERNELS = {
    "xnnpack": litert.OpResolverType.AUTO,
    "reference": litert.OpResolverType.BUILTIN_REF,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
"""xnnpack: what users run; reference: plain loops; builtin: optimised, without the delegate."""


class Runtime:
  """One loaded file. Not for use by several threads at once.

  Attributes:
    inputs, outputs: LiteRT's details of the graph's inputs and outputs, in order: dicts with
      "name", "shape", "dtype", "quantization_parameters" and more.
  """

  def __init__(self, model: bytes | str | os.PathLike, *, kernels: str = "xnnpack",
               threads: int = 1, batch: int | None = None):
    """Loads `model`, the content of a .tflite file or its path.

    Args:
      kernels: one of KERNELS; they differ by small integers on the same file.
      threads: CPU threads of one run.
      batch: images of one run, for a file whose batch is open; None takes the file's own number.

    Raises:
      ValueError: unknown kernels, a file that these kernels refuse, or one that cannot have that batch.
    """
    if kernels not in KERNELS:
      raise ValueError(f"Expected kernels of {', '.join(KERNELS)}, got {kernels!r}.")
    content = model if isinstance(model, bytes) else None
    try:
      self._interpreter = litert.Interpreter(
          model_content=content, model_path=None if content is not None else os.fspath(model),
          num_threads=threads, experimental_op_resolver_type=KERNELS[kernels])
      for detail in self._interpreter.get_input_details() if batch is not None else ():
        self._interpreter.resize_tensor_input(detail["index"], [batch, *detail["shape"][1:]], strict=True)
      self._interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
      what = f"{len(content)} bytes" if content is not None else repr(os.fspath(model))
      reason = " ".join(str(error).split())
      raise ValueError(f"LiteRT kernels {kernels!r} cannot load {what}: {reason}") from error
    self.inputs = self._interpreter.get_input_details()
    self.outputs = self._interpreter.get_output_details()
    # These make views of the runtime's memory. A view must never outlive the statement that asks
    # for it: invoke() refuses to run while one is alive.
    self._input_views = [self._interpreter.tensor(d["index"]) for d in self.inputs]
    self._output_views = [self._interpreter.tensor(d["index"]) for d in self.outputs]

  def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the graph's outputs for one image, or one batch, as new arrays.

    Args:
      inputs: one array for each graph input, in order, of its shape ([batch, ...]) and dtype.

    Raises:
      ValueError: an input is missing or has another shape or dtype, or an operator fails.
    """
    self._check_count(inputs)
    for detail, array in zip(self.inputs, inputs):
      _check_array(detail, array, expected=tuple(detail["shape"].tolist()))
    for view, array in zip(self._input_views, inputs):
      np.copyto(view(), array)
    self._invoke()
    return [view().copy() for view in self._output_views]

  def run_many(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs for n images, run batch by batch: arrays [n, ...] in the outputs' order.

    The last batch is filled up with its last image. An output [k * batch, ...] gives k rows an image.

    Args:
      inputs: one array [n, ...] for each graph input, in order, of its dtype; n may be 0.

    Raises:
      ValueError: an input is missing, has another shape, dtype or n, or the graph has a tensor at
        its border whose first dimension is no multiple of the batch, or an operator fails.
    """
    self._check_count(inputs)
    batch = self._batch()
    n = len(inputs[0])
    for detail, array in zip(self.inputs, inputs):
      _check_array(detail, array, expected=(n, *detail["shape"][1:].tolist()))
    rows = [detail["shape"][0] // batch for detail in self.outputs]
    results = [np.empty((n * k, *d["shape"][1:].tolist()), d["dtype"]) for k, d in zip(rows, self.outputs)]
    into = list(zip(self._input_views, inputs))
    out_of = list(zip(rows, results, self._output_views))
    for i in range(0, n, batch):
      count = min(batch, n - i)
      for view, array in into:
        view()[:count] = array[i:i + count]
        view()[count:] = array[i + count - 1]
      self._invoke()
      for k, result, view in out_of:
        result[k * i:k * (i + count)] = view()[:k * count]
    return results

  def time_once(self, *, computing: bool = False) -> float:
    """Runs on what the inputs hold, zeros at first, and returns the seconds that took.

    Args:
      computing: without those that other programs had the processor for; of a runtime of one thread.
    """
    clock = time.thread_time if computing else time.perf_counter
    start = clock()
    self._invoke()
    return clock() - start

  def delegated_operators(self) -> set[int]:
    """Returns the positions in the file of the operators that the delegate runs."""
    nodes = self._interpreter._get_ops_details()
    made_by = {tensor: node["index"] for node in nodes if node["op_name"] != "DELEGATE"
               for tensor in node["outputs"].tolist()}
    reads = {node["index"]: node["inputs"].tolist() for node in nodes}
    delegated: set[int] = set()
    for part in nodes:
      if part["op_name"] == "DELEGATE":  # what lies between its outputs and its inputs
        given, wanted = set(part["inputs"].tolist()), part["outputs"].tolist()
        while wanted:
          tensor = wanted.pop()
          if tensor in given or tensor not in made_by or made_by[tensor] in delegated:
            continue
          delegated.add(made_by[tensor])
          wanted += reads[made_by[tensor]]
    return delegated

  def _invoke(self) -> None:
    """Runs what the inputs hold; the error of an operator is one line of ValueError."""
    try:
      self._interpreter.invoke()
    except RuntimeError as error:
      raise ValueError(f"LiteRT cannot run the file: {' '.join(str(error).split())}") from error

  def _batch(self) -> int:
    """Returns the images of one run; asserts that every tensor of the border holds as many."""
    firsts = [detail["shape"][0] if detail["shape"].size else 0 for detail in (*self.inputs, *self.outputs)]
    batch = int(firsts[0])
    for place, (detail, first) in enumerate(zip((*self.inputs, *self.outputs), firsts)):
      if not first or (first != batch if place < len(self.inputs) else first % batch):
        raise ValueError(f"{detail['name']!r}: expected a first dimension of {batch or 1}, the batch, got "
                         f"shape {tuple(detail['shape'].tolist())}; use run for this file.")
    return batch

  def _check_count(self, inputs: Sequence[np.ndarray]) -> None:
    """Asserts one array for each graph input."""
    if len(inputs) != len(self.inputs):
      raise ValueError(f"Expected {len(self.inputs)} input arrays "
                       f"({', '.join(d['name'] for d in self.inputs)}), got {len(inputs)}.")


def _check_array(detail: dict, array: np.ndarray, *, expected: tuple[int, ...]) -> None:
  """Asserts the dtype and the shape of an input array."""
  if array.dtype != detail["dtype"] or array.shape != expected:
    raise ValueError(f"Input {detail['name']!r}: expected {np.dtype(detail['dtype'])} of shape "
                     f"{expected}, got {array.dtype} of shape {array.shape}.")
