"""allocate_bits(): bits for each layer and each grid, of least noise at the output within a budget."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.allocation.budget import Budget
from kquant.allocation.building import Builder, Outcome
from kquant.allocation.choices import Choices, Plan
from kquant.allocation.prices import Prices
from kquant.allocation.proxy import IMAGES as PROXY_IMAGES
from kquant.allocation.proxy import Proxies, hawq_proxies, with_proxies
from kquant.allocation.results import Allocation, AllocationPoint, AllocationRow
from kquant.allocation.rounded import rounded_layers
from kquant.allocation.sensitivities import Subject, Widths, measured_noises, priced_choices
from kquant.allocation.solver import Solver
from kquant.analysis.sites import ACTIVATION, WEIGHTS
from kquant.core import data
from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import Recipe
from kquant.core.records import Report
from kquant.core.target import target
from kquant.core.tensor_spec import at_bits
from kquant.doctor import files
from kquant.doctor.patient import Patient, result_of
from kquant.doctor.rules import with_specs
from kquant.graph import keras_calls
from kquant.graph.keras_reader import check_model
from kquant.graph.model_forms import as_tf_keras
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import Calibrated, read

WEIGHTS_BITS, ACTIVATIONS_BITS = (2, 3, 4, 5, 6, 8), (8, 16)
_FEWEST_IMAGES = 16
_SENSITIVITY_IMAGES, _JUDGING_IMAGES = 32, 64
_LARGEST_PART = 100
"""As a part of a file's bytes; a larger number means bytes."""

Points = tuple[AllocationPoint, ...]


def allocate_bits(model: keras.Model, images: Any, *, budget: Budget | float,
                  weights: Sequence[int] = WEIGHTS_BITS, activations: Sequence[int] = ACTIVATIONS_BITS,
                  config: QuantConfig | None = None, seed: int = 0) -> Allocation:
  """Chooses the bits of each layer and each grid: least noise at the output within a budget.

  The noise of each width at the output, of one layer or grid at a time, is found by backward passes, with the
  rounding that the config asks for. An integer program then finds the plan of least noise within the budget.
  Its network is built; the predictions are fitted once to the noise that it has, and the program is solved
  again.

  Args:
    model: a built float model, as `quantize` takes it; it is not changed.
    images: unlabelled inputs, in any form that `quantize` takes, 16 or more. A quarter of them is held back:
      noise is measured on it.
    budget: a Budget; or a number: this part of the bytes of the file with the most bits of weights and the
      fewest of activations.
    weights: bits to choose from.
    activations: bits to choose from, 8 and 16. Inputs and outputs of the model keep the fewest.
    config: all but the bits: target, recipe, ranges; None: int8, rounded in closed form.
    seed: of the images held back and of every other random choice.

  Returns:
    The config, the bits, and the curve of noise over budgets.

  Raises:
    ValueError: a budget that cannot be met (it says what the least is), widths that no file holds, fewer
      than 16 images, a recipe with fine-tuning, a model without weights.
    TypeError: not a model.
    UnsupportedLayerError: a layer that has no integer form, by name; an operator without a derivative.

  Example:
    >>> layers = [keras.layers.Dense(16, input_shape=(8,), activation="relu"), keras.layers.Dense(4)]
    >>> images = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    >>> allocation = kq.allocate_bits(keras.Sequential(layers), images, budget=0.99, activations=(8,))
    >>> result = kq.quantize(keras.Sequential(layers), images, config=allocation.config)
    >>> kq.export(result, "model.tflite").bytes <= allocation.budget.bytes
    True
  """
  config = config or QuantConfig(recipe=Recipe(rounding="closed_form"))
  widths = _checked(weights, activations, config, budget)
  model, report = as_tf_keras(model), Report()
  check_model(model)
  images = data.gather(images, keras_calls.input_specs(model))
  if len(images[0]) < _FEWEST_IMAGES:
    raise ValueError(f"allocate_bits: expected {_FEWEST_IMAGES} images or more, got {len(images[0])}; a "
                     "quarter of them is held back.")
  train, judge = data.hold_back(images, seed=seed)
  with report.stage("calibrate"):
    patient = Patient(FloatNetwork(read(model, config), train, seed), _of_most_bits(config, widths), Report())
    subject, wide, notes = _possible(patient, train, widths)
    if not subject.layers:
      raise ValueError("allocate_bits: expected a model whose layers have weights, got one without; its "
                       "activations get 16 bits by a kq.Rule.")
    contents = {"base": files.contents(result_of(patient.calibrated, patient.config, Report()))}
    if not isinstance(budget, Budget):
      budget = Budget(bytes=budget * len(contents["base"]))
    elif budget.latency_ms is not None:
      contents |= _timed_files(subject, train, wide)
  with report.stage("prices"):
    prices = Prices(budget, target(config.target), contents)
  with report.stage("rounding"):
    rounded = rounded_layers(patient, train, subject.widths.weights, seed=seed)
  with report.stage("noise"):
    few = [array[:_SENSITIVITY_IMAGES] for array in judge]
    noises = measured_noises(subject, rounded, few, seed=seed)
    choices = priced_choices(subject, rounded, noises, prices)
  with report.stage("proxy"):
    few = [array[:PROXY_IMAGES] for array in judge]
    proxies = hawq_proxies(subject.network, rounded, few, seed=seed)
  with report.stage("plans"):
    builder = Builder(subject, [array[:_JUDGING_IMAGES] for array in judge], prices)
    outcome = builder.refit_once(choices, budget.limits())
  with report.stage("curve"):
    points = _curve(outcome.choices, proxies, budget, subject.widths)
  budget = dataclasses.replace(budget, latencies=prices.latencies)
  return _allocation(outcome, budget, points, name=model.name, notes=notes, seconds=report.seconds)


def _checked(weights: Sequence[int], activations: Sequence[int], config: QuantConfig,
             budget: Budget | float) -> Widths:
  """Returns the widths, ascending; raises ValueError for what does not fit."""
  if not isinstance(budget, Budget) and budget > _LARGEST_PART:
    raise ValueError(f"allocate_bits: expected a Budget, or a part of the bytes as 0.5, got {budget:g}; for "
                     f"bytes give kq.Budget(bytes={budget:g}).")
  held = target(config.target)
  for what, bits, possible in (("weights", weights, held.weight_bits),
                               ("activations", activations, held.activation_bits)):
    if not bits or not set(bits) <= set(possible):
      raise ValueError(f"allocate_bits: {what} must be some of {', '.join(map(str, possible))}, the bits "
                       f"that a file holds, got {tuple(bits)}.")
  if config.recipe.finetune != "none":
    raise ValueError(f"allocate_bits: expected a recipe without fine-tuning, got finetune="
                     f"{config.recipe.finetune!r}; leave it to kq.quantize with the config that is found.")
  return Widths(tuple(sorted(set(weights))), tuple(sorted(set(activations))))


def _of_most_bits(config: QuantConfig, widths: Widths) -> QuantConfig:
  """Returns the config with the most bits of weights and the fewest of activations in every rule."""
  return dataclasses.replace(config, rules=tuple(
      dataclasses.replace(rule, weights=at_bits(rule.weights, widths.weights[-1]),
                          activations=at_bits(rule.activations, widths.activations[0]))
      for rule in config.rules))


def _possible(patient: Patient, images: list[np.ndarray],
              widths: Widths) -> tuple[Subject, bytes | None, tuple[str, ...]]:
  """Returns the network with the widths that each layer has a kernel for, and why it has no others.

  Between them its file of the most bits, where it was made.
  """
  subject = Subject(patient, widths)
  if len(widths.activations) == 1:
    return subject, None, ()
  try:
    return subject, _uniform_file(subject, images, widths.weights[-1], widths.activations[-1]), ()
  except UnsupportedLayerError as error:
    fewest = dataclasses.replace(widths, activations=widths.activations[:1])
    return Subject(patient, fewest), None, (
        f"Activations have {widths.activations[0]} bits throughout: {error}",)


def _timed_files(subject: Subject, images: list[np.ndarray], wide: bytes | None) -> dict[str, bytes]:
  """Returns the files that `Prices` takes beside "base" to count latency; `wide` is not made again."""
  weights, activations = subject.widths.weights, subject.widths.activations
  return {"narrow": _uniform_file(subject, images, weights[0], activations[0]),
          "wide": wide or _uniform_file(subject, images, weights[-1], activations[-1])}


def _uniform_file(subject: Subject, images: list[np.ndarray], weights: int, activations: int) -> bytes:
  """Returns the file of a plan of one width, rounded to nearest."""
  patient = subject.patient
  plan = Plan((weights,) * len(subject.layers), tuple(
      activations if activations in subject.grid_widths(site) else subject.grid_widths(site)[0]
      for site in subject.grids))
  config = with_specs(patient.config, subject.changes(plan))
  network = Calibrated(patient.graph.copy(), config, images, Report())
  return files.contents(result_of(network, config, Report()))


def _curve(choices: Choices, proxies: Proxies, budget: Budget, widths: Widths) -> dict[str, Points]:
  """Returns the best plans for budgets of the first limit, those of one width, and those of HAWQ-V2."""
  limits = budget.limits()
  what = next(iter(limits))
  plans = Solver(choices).curve(what, limits)
  of_proxy = Solver(with_proxies(choices, proxies)).curve(what, limits)
  return {"curve": tuple(_point(choices, plan, "") for plan in plans),
          "proxy": tuple(_point(choices, plan, "hawq") for plan in of_proxy),
          "uniform": tuple(_point(choices, choices.uniform(weights, activations), f"w{weights}a{activations}")
                           for weights in widths.weights for activations in widths.activations)}


def _point(choices: Choices, plan: Plan, label: str) -> AllocationPoint:
  costs = {what: choices.cost(plan, what) for what in choices.constant}
  return AllocationPoint(label, noise=choices.noise(plan), **costs)


def _allocation(outcome: Outcome, budget: Budget, points: dict[str, Points], **told: Any) -> Allocation:
  choices, plan = outcome.choices, outcome.built.plan
  rows = [AllocationRow(choice.name, part, bits, dict(zip(choice.widths, choice.noise.tolist())))
          for part, parts, chosen in ((WEIGHTS, choices.layers, plan.weights),
                                      (ACTIVATION, choices.grids, plan.activations))
          for choice, bits in zip(parts, chosen)]
  costs = {"bops": choices.cost(plan, "bops"), **outcome.built.costs}
  return Allocation(config=outcome.built.config, rows=tuple(rows), budget=budget, trial=outcome.trial,
                    predictions=outcome.predictions, **points, **costs, **told)
