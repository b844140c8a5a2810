"""Random Keras models through the whole chain: float -> quantize -> file -> LiteRT == simulator.

    python -m tests.tflite_export.model_fuzz --cases=2000 --seed=0

draws models with hypothesis, in blocks of a fresh process each, prints what was compared, and for a
failure the smallest recipe that shows it. Exits with 1 where one failed.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import hypothesis
import numpy as np
import tf_keras as keras

import kquant as kq
import tflite_export
from tests.tflite_export.random_models import Recipe, Step, border_of, build, config_of, inputs_of, recipes
from tflite_export.program.batch import batch_of, is_dynamic, whole_batches
from tflite_export.proof.certificate import KERNEL_SETS
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import simulate

BLOCK = 100
"""Cases of one process: TensorFlow's memory grows with every model."""
REWRITE_TOLERANCE = 2e-4
"""Largest difference that rewrites may make, of the largest |value| of an output."""


@dataclasses.dataclass
class Tally:
  """What was compared.

  Attributes:
    cases: recipes tried; refused: {first words of the error: how many}.
    elements: of all tensors, in both sets of kernels; operators: {kind: how many}.
    left_out: operators that a certificate did not compare (the reference SOFTMAX of many classes).
  """

  cases: int = 0
  refused: dict[str, int] = dataclasses.field(default_factory=collections.Counter)
  elements: int = 0
  operators: dict[str, int] = dataclasses.field(default_factory=collections.Counter)
  left_out: int = 0

  def add(self, other: dict) -> None:
    """Adds the fields of another tally."""
    for name, value in other.items():
      if isinstance(value, dict):
        getattr(self, name).update(value)
      else:
        setattr(self, name, getattr(self, name) + value)


def check(recipe: Recipe, tally: Tally, folder: str) -> None:
  """Asserts the whole chain on one recipe; a refusal is counted."""
  keras.backend.clear_session()
  tally.cases += 1
  model = build(recipe)
  inputs = inputs_of(model, recipe)
  try:
    result = kq.quantize(model, inputs, config=config_of(model, recipe), effort=None)
    written = tflite_export.export(result, f"{folder}/m.tflite", verify=[x[:2] for x in inputs],
                                   io=border_of(recipe), batch=recipe.batch, certify=True)
  except ValueError as error:  # UnsupportedLayerError is one
    assert _is_documented(error), f"refused without a reason to act on: {error!r}"
    tally.refused[_subject(error)] += 1
    return
  _check_rewrites(model, inputs)
  wide = any(grid.bits == 16 for grid in result.encodings.grids.values())  # loops hold 16 bits
  assert written.verification.ok and (wide or written.verification.max_lsb <= 1)
  assert not written.verification.float_operators
  for kernels in written.certificate["kernel_sets"].values():
    tally.left_out += len(kernels["not_simulated"]) + sum(kernels["ties"]["left_out"].values())
    for rows in (kernels["operators"], kernels["ties"]["operators"]):
      for kind, row in rows.items():
        tally.elements += row["elements"]
        assert row["mismatching"] == 0, (kind, row)
  _check_outputs(written, inputs)
  tally.operators.update(written.program.operator_counts())


def _check_rewrites(model: keras.Model, inputs: list[np.ndarray]) -> None:
  """The rewritten float model computes the same function."""
  rewritten = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  for mine, theirs in zip(outputs_of(rewritten, inputs), outputs_of(model, inputs), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=REWRITE_TOLERANCE * np.abs(theirs).max() + 1e-6)


def outputs_of(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
  """The outputs of a model at inference, flat, those of a dict by name."""
  given = dict(zip(model.input_names, inputs)) if isinstance(model.input, dict) else inputs
  outputs = model(given, training=False)
  if isinstance(outputs, dict):
    return [outputs[name].numpy() for name in sorted(outputs)]
  return [y.numpy() for y in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _check_outputs(written, inputs: list[np.ndarray]) -> None:
  """The file itself, without watched tensors, gives the simulator's integers on random inputs."""
  program, rng = written.program, np.random.default_rng(0)
  given = []
  for name, x in zip(program.inputs, inputs):
    dtype = np.dtype(program.tensors[name].dtype)
    drawn = x[:3] if dtype.kind == "f" else rng.integers(
        np.iinfo(dtype).min, np.iinfo(dtype).max, x[:3].shape, dtype, endpoint=True)
    given.append(whole_batches(drawn, batch_of(program)))
  for kernels in KERNEL_SETS:
    if written.certificate["kernel_sets"][kernels]["not_simulated"]:
      continue
    expected = simulate(program, given, mode=kernels)
    resized = 3 if is_dynamic(program) else None
    runtime = Runtime(written.path, kernels=kernels, threads=1 + (kernels == "xnnpack"), batch=resized)
    found = runtime.run_many(given)
    for name, output in zip(program.outputs, found):
      np.testing.assert_array_equal(output, expected[name], f"{kernels} kernels, output {name}")


def _is_documented(error: ValueError) -> bool:
  """Whether a refusal names the layer or tensor."""
  return any(word in str(error) for word in ("Layer ", "layer ", "Tensor ", "tensor "))


def _subject(error: ValueError) -> str:
  """The part of a refusal that is the same for all layers: behind the names."""
  words = [word for word in str(error).split(";")[0].split() if "'" not in word]
  return " ".join(words)[:90]


def fuzz(cases: int, seed: int, tally: Tally) -> None:
  """Checks `cases` random recipes; raises what the smallest failing one raises.

  Before each recipe is tried its text goes to the file `model_fuzz_case` of the folder of temporary
  files, for the case that it ends the process.
  """
  failed = []
  with tempfile.TemporaryDirectory() as folder:
    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, print_blob=False,
                         phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(recipes())
    def run(recipe):
      _last_case().write_text(repr(recipe))
      try:
        check(recipe, tally, folder)
      except Exception as error:
        if not failed:
          print(f"\n{type(error).__name__}: {str(error)[:300]}\n{recipe!r}\n", file=sys.stderr, flush=True)
        failed.append(recipe)
        raise
    run()


def _last_case() -> pathlib.Path:
  return pathlib.Path(tempfile.gettempdir()) / "model_fuzz_case"


def _block(cases: int, seed: int) -> int:
  """One process's share: the tally as JSON on the last line."""
  tally = Tally()
  try:
    fuzz(cases, seed, tally)
  finally:
    print(json.dumps(vars(tally)))
  return 0


def main(arguments: list[str] | None = None) -> int:
  """Prints the tally and the failures; returns 1 where there is one, else 0."""
  parser = argparse.ArgumentParser(description="Random Keras models through the whole chain.")
  parser.add_argument("--cases", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--recipe", default="", help="check one recipe, as a failure prints it")
  parser.add_argument("--block", action="store_true", help=argparse.SUPPRESS)
  flags = parser.parse_args(arguments)
  if flags.recipe:
    with tempfile.TemporaryDirectory() as folder:
      check(eval(flags.recipe, {"Recipe": Recipe, "Step": Step}), Tally(), folder)
    return 0
  if flags.block:
    return _block(flags.cases, flags.seed)
  tally, failures = Tally(), []
  for start in range(0, flags.cases, BLOCK):
    cases = min(BLOCK, flags.cases - start)
    command = [sys.executable, "-m", "tests.tflite_export.model_fuzz", "--block", f"--cases={cases}",
               f"--seed={flags.seed + start}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if lines:
      tally.add(json.loads(lines[-1]))
    if done.returncode:
      failures.append(flags.seed + start)
    if not lines:
      print(f"The process ended ({done.returncode}) on\n{_last_case().read_text()}", flush=True)
    print(f"{start + cases} cases, {sum(tally.refused.values())} refused, {len(failures)} blocks failed",
          flush=True)
  for text, count in sorted(tally.refused.items(), key=lambda item: -item[1]):
    print(f"  refused {count}: {text}")
  print(f"{tally.cases} models, {tally.elements:,} elements compared, {tally.left_out} operators left out")
  print(", ".join(f"{kind} {count}" for kind, count in sorted(tally.operators.items())))
  return int(bool(failures))


if __name__ == "__main__":
  sys.exit(main())
