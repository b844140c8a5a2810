"""Float model against integer program or simulation, image by image.

Scores are taken at the input of a final softmax, which the program gives as an extra output: an int8
softmax ties. The integers of a program are LiteRT's, never a simulation's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from kquant.cli.sources import Loaded, Source
from kquant.core import data, metrics, numerics
from kquant.graph.graph import Graph
from kquant.qmodel.outputs import network_outputs
from kquant.rewrites.standardize.standardize import standardize
from tflite_export.file.writer import to_bytes
from tflite_export.program.program import IntProgram
from tflite_export.proof.runtime import Runtime

IMAGES_AT_ONCE = 64
CLOSENESS_IMAGES = 64
"""Calibration images on which a file's answers are compared with the float model's, without --eval."""


def evaluate(model: keras.Model, program: IntProgram, source: Source,
             indices: np.ndarray) -> dict[str, Any]:
  """Returns {images, classes, constant, float: {top1}, quantized: {top1}, agreement, sqnr_db, tied}.

  top1 is None without labels; top1, classes, agreement and tied are None where the first output is not
  [batch, classes]; sqnr_db is None where it is infinite (equal scores, or all zero). `tied` counts
  images whose largest final output is at several classes, `constant` whether all images are the same.

  Args:
    program: with int8 borders.
    indices: the samples of the source to look at.
  """
  scores, reference, outputs, constant = _run(model, program, source, indices)
  classes = scores.ndim == 2 and scores.shape[1] > 1
  labels = class_labels(model, source)
  labels = None if labels is None else labels[indices]
  sqnr_db = metrics.sqnr_db(scores, reference) if reference.any() else -np.inf
  return {
      "images": len(indices), "classes": scores.shape[1] if classes else None, "constant": constant,
      "float": {"top1": None if labels is None else metrics.top1(reference, labels)},
      "quantized": {"top1": None if labels is None else metrics.top1(scores, labels)},
      "agreement": metrics.agreement(scores, reference) if classes else None,
      "sqnr_db": sqnr_db if np.isfinite(sqnr_db) else None,
      "tied": metrics.tied(outputs) if classes else None,
  }


def some_of(calibration: list[np.ndarray]) -> tuple[Source, np.ndarray]:
  """Returns the samples to compare answers on where there are none to judge by: a source, and which of it."""
  return Loaded(calibration), np.arange(min(CLOSENESS_IMAGES, len(calibration[0])))


def simulation_judge(model: keras.Model, source: Source) -> Callable[[keras.Model], dict[str, float | None]]:
  """Returns a function from a trained model with its quantizers to its {"top1", "agreement"}.

  The float model runs over the images once; top1 is None without labels.
  """
  x, labels = source.load(np.arange(len(source))), class_labels(model, source)
  reference = before_softmax(model).predict(x if x[1:] else x[0], verbose=0)

  def judge(qmodel: keras.Model) -> dict[str, float | None]:
    scores = network_outputs(qmodel, x)[0]
    return {"top1": None if labels is None else metrics.top1(scores, labels),
            "agreement": metrics.agreement(scores, reference)}

  return judge


def class_labels(model: keras.Model, source: Source, *, flag: str = "--eval") -> np.ndarray | None:
  """Returns the class index of every sample; None without labels or where the model does not classify.

  Args:
    flag: that named the source.

  Raises:
    ValueError: labels that are none of the model's classes.
  """
  shape = model.outputs[0].shape
  labels = source.labels() if len(shape) == 2 and shape[1] > 1 else None
  if labels is not None and not 0 <= labels.min() <= labels.max() < shape[1]:
    raise ValueError(f"The labels of {flag} run from {labels.min()} to {labels.max()}, the model's classes "
                     f"from 0 to {shape[1] - 1}; number the labels as the model numbers its classes.")
  return labels


def _run(model: keras.Model, program: IntProgram, source: Source, indices: np.ndarray):
  """Returns (integer scores as real numbers, float scores, final integers, whether all images are equal)."""
  float_scores = before_softmax(model)
  watched = [scores_tensor(program), program.outputs[0]]
  runtime = Runtime(to_bytes(program.with_outputs(watched)), threads=2)
  grids = [program.tensors[name] for name in (*program.inputs, watched[0])]
  scores, reference, outputs, first, constant = [], [], [], None, len(indices) > 1
  with tqdm(desc="evaluate", unit=" images", total=len(indices), delay=2.0, disable=None) as bar:
    for start in range(0, len(indices), IMAGES_AT_ONCE):
      arrays = source.load(indices[start:start + IMAGES_AT_ONCE])
      first = first or [array[0] for array in arrays]
      constant = constant and data.all_equal(arrays, first)
      reference.append(np.asarray(float_scores.predict_on_batch(arrays if arrays[1:] else arrays[0])))
      integers = runtime.run_many([_to_grid(x, grid) for x, grid in zip(arrays, grids)])
      scores.append((integers[0].astype(np.float32) - grids[-1].zero_point[0]) * grids[-1].scale[0])
      outputs.append(integers[1])
      bar.update(len(arrays[0]))
  return np.concatenate(scores), np.concatenate(reference), np.concatenate(outputs), constant


def before_softmax(model: keras.Model) -> keras.Model:
  """Returns the float model that ends at the input of the first output's final softmax."""
  graph = Graph.from_model(model)
  standardize(graph)
  first = graph.output_refs[0]
  graph.outputs = first.node.inputs[0] if first.node.facts.takes_scores else first
  return graph.to_model()


def scores_tensor(program: IntProgram) -> str:
  """Returns the name of the tensor that feeds the final softmax, or of the first output."""
  name = program.outputs[0]
  for op in program.ops:
    if op.kind == "SOFTMAX" and op.outputs == [name]:
      return op.inputs[0]
  return name


def _to_grid(x: np.ndarray, tensor) -> np.ndarray:
  if tensor.scale is None:  # indices
    return x.astype(tensor.dtype)
  bits = np.iinfo(tensor.dtype).bits
  return numerics.quantize(x, tensor.scale, tensor.zero_point, bits=bits).astype(tensor.dtype)
