"""Random Keras models through the whole chain, a few for each run of the suite; findings by name."""

import collections

import hypothesis
import numpy as np
import pytest
import tf_keras as keras

from tests.tflite_export import faults, model_fuzz
from tests.tflite_export.model_fuzz import Tally, check
from tests.tflite_export.random_layers import STEPS
from tests.tflite_export.random_models import Builder, Recipe, Step, recipes
from tflite_export.proof.errors import VerificationError

EXAMPLES = 30
LARGEST_REFUSAL_RATE = 0.05

IMAGE, ROWS = (6, 5, 4), (7, 3)


def test_random_models_are_exact_from_float_to_file(tmp_path):
  tally = Tally()

  @hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
                       suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(recipes())
  def run(recipe):
    check(recipe, tally, str(tmp_path))

  run()
  assert tally.cases >= EXAMPLES and tally.elements > 1000 * EXAMPLES and len(tally.operators) > 15
  assert sum(tally.refused.values()) <= LARGEST_REFUSAL_RATE * tally.cases, tally.refused


@pytest.mark.parametrize("kind", STEPS)
def test_every_kind_of_step_makes_a_tensor(kind):
  """Else a kind would silently never be drawn."""
  rng, made = np.random.default_rng(0), 0
  for number in range(12):
    builder = Builder([keras.Input(shape) for shape in (IMAGE, (4, 4, 4), ROWS, (3, 2), (4,))])
    builder.take(Step("dense"))  # a layer that can be called again
    before = len(builder.tensors)
    builder.take(Step(kind, number % 5, number % 3, tuple(int(n) for n in rng.integers(0, 12, 5))))
    made += len(builder.tensors) > before
  assert made >= 3


def test_recipes_hold_every_kind_of_step():
  seen = collections.Counter()

  @hypothesis.settings(max_examples=300, derandomize=True, deadline=None, database=None,
                       suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(recipes())
  def run(recipe):
    seen.update(step.kind for step in recipe.steps)

  run()
  assert seen.keys() == STEPS.keys()


def test_a_wrong_kernel_is_found(tmp_path, monkeypatch):
  faults.plant(monkeypatch, "CONV_2D", faults.off_by_one)
  with pytest.raises(VerificationError, match="CONV_2D differs"):
    check(Recipe((IMAGE,), (Step("conv_2d"),)), Tally(), str(tmp_path))


def test_a_wrong_rewrite_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(model_fuzz.kq, "standardize", lambda graph: graph.nodes[1].layer.params.update(
      bias=graph.nodes[1].layer.params["bias"] + 1))
  with pytest.raises(AssertionError, match="Mismatched elements"):
    check(Recipe((IMAGE,), (Step("conv_2d", numbers=(0, 0, 0, 3, 1)),)), Tally(), str(tmp_path))


# --- findings: recipes that failed once --------------------------------------------------------------

FINDINGS = {
    "a layer with an activation that is called twice: its name held an @":
        Recipe(((1,),), (Step("dense", numbers=(0, 6, 0, 0, 0)), Step("again"))),
    "a difference that is always 0: its grid was narrower than the reference kernel of SUB can hold":
        Recipe(((4,),), (Step("combine", numbers=(3, 0, 0, 0, 0)),)),
    "an input that is an output too: two tensors of the border had one name":
        Recipe(((3,),), (Step("elementwise", numbers=(8, 0, 0, 0, 0)), Step("dense")), inner_output=True,
               io="uint8"),
}


@pytest.mark.parametrize("recipe", FINDINGS.values(), ids=FINDINGS)
def test_findings_stay_fixed(recipe, tmp_path):
  tally = Tally()
  check(recipe, tally, str(tmp_path))
  assert tally.elements and not tally.refused
