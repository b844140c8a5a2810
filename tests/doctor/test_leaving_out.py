"""Remedies that bring nothing on top of the others are left out, with the reason."""

import dataclasses

import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.analysis.measure import measure
from kquant.analysis.rows import analysis_of
from kquant.analysis.sites import BOTH, sites
from kquant.core.encodings import activation_grid
from kquant.core.records import Report
from kquant.core.tensor_spec import TensorSpec
from kquant.doctor.choosing import Option
from kquant.doctor.patient import Patient
from kquant.doctor.remedies import WIDE, Remedy, on_grid, together
from kquant.doctor.scaling import Factorization
from kquant.doctor.treatment import Treatment
from kquant.doctor.variants import Bench, Variant
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read
from tests.analysis.test_layer_errors import chain, photos

ALL_AT_FAULT = kq.QuantConfig(rules=[kq.Rule(weights=kq.TensorSpec(per_channel=False))])


@pytest.fixture
def treatment():
  """(treatment of the chain, in which none has a remedy yet; its calls on the grids; those in float)."""
  patient = Patient(FloatNetwork(read(chain(), ALL_AT_FAULT), [photos(24)], 0), ALL_AT_FAULT, Report())
  network, images = patient.for_analysis(), [photos(24, seed=3)]
  single = [site for site in sites(network.graph) if site.part != BOTH]
  analysis = analysis_of(network, measure(network, single, images, None), has_labels=False)
  treatment = Treatment(patient, network, [photos(24)], Bench(network, images))
  treatment.examine(analysis, single, 0.8)
  for case in treatment.cases:
    case.remedies, case.options = [], []
  return treatment, *network.calls


def plant(case, name, variant, cost=""):
  """Gives a case one remedy, which seems to be the best by the noise of the tensor alone."""
  case.remedies = [Remedy(name, variant, TensorSpec(bits=8), cost=cost)]
  case.options = [Option(name, 0.0, 60.0, 0.1)]


def test_a_remedy_that_costs_something_and_brings_nothing_goes(treatment):
  treatment, on_grids, in_float = treatment
  good, dear = treatment.cases[:2]
  plant(good, WIDE, Variant(good.site, in_float), "latency")
  plant(dear, WIDE, Variant(dear.site, on_grids), "latency")
  treatment.choose(0, 99.0)
  first, second = treatment.rows()[:2]
  assert (first.remedy, first.left_out) == (WIDE, None) and first.gain_db > 0
  assert (second.left_out.method, second.left_out.kept, second.left_out.images) == (WIDE, False, 24)
  assert second.left_out.change == pytest.approx(0.0, abs=1e-3)
  assert second.remedy is None and second.noise_after == second.noise and second.gain_db == 0.0
  assert len(treatment.changes().specs) == 1


def test_a_free_remedy_that_brings_nothing_stays(treatment):
  treatment, on_grids, _ = treatment
  case = treatment.cases[0]
  plant(case, "range mse", Variant(case.site, on_grids))
  treatment.choose(0, 99.0)
  row = treatment.rows()[0]
  assert row.remedy == "range mse" and row.left_out is None and row.gain_db == pytest.approx(0.0, abs=1e-3)


def test_a_free_remedy_that_harms_beyond_chance_goes(treatment):
  treatment, *_ = treatment
  case = next(case for case in treatment.cases if case.site.part == "activation")
  plant(case, "range mse", Variant(case.site, on_grid(activation_grid(0.0, 1.0, bits=2, symmetric=False))))
  treatment.choose(0, 99.0)
  row = next(row for row in treatment.rows() if row.name == case.site.name and row.part == "activation")
  assert row.remedy is None and row.left_out.change < -2 * row.left_out.error
  assert not treatment.changes()


def test_of_two_remedies_that_do_the_same_one_stays(treatment):
  treatment, _, in_float = treatment
  both = treatment.cases[:2]
  for case in both:
    plant(case, WIDE, together([Variant(other.site, in_float) for other in both]), "latency")
  treatment.choose(0, 99.0)
  assert sum(row.left_out is not None for row in treatment.rows()[:2]) == 1
  assert sum(row.gain_db for row in treatment.rows()) > 0


@pytest.mark.parametrize("cap, cost", [(None, ""), (6.0, "latency")])
def test_a_factorization_is_free_but_for_a_cap(cap, cost):
  keras.utils.set_random_seed(0)
  image = keras.Input((8, 8, 3))
  x = layers.ReLU(cap, name="relu")(layers.Conv2D(8, 3)(image))
  model, config = keras.Model(image, layers.Conv2D(4, 3)(x)), kq.QuantConfig()
  patient = Patient(FloatNetwork(read(model, config), [photos(24)], 0), config, Report())
  network = patient.for_analysis()
  single = [site for site in sites(network.graph) if site.part != BOTH]
  site = next(site for site in single if site.name == "relu")
  factorization = Factorization(patient.graph, config, [photos(24)], patient.calibrated.statistics)
  assert factorization.remedy(network, single, site).cost == cost


@pytest.mark.parametrize("change, words", [
    (-1.5, "16 bits left out: -1.50 dB +- 0.20 on top of the others"),
    (0.1, "16 bits left out: +0.10 dB +- 0.20 on top of the others, too little for what it costs"),
])
def test_the_row_says_why(treatment, change, words):
  treatment, on_grids, _ = treatment
  case = treatment.cases[0]
  plant(case, WIDE, Variant(case.site, on_grids), "latency")
  treatment.choose(0, 99.0)
  row = treatment.rows()[0]
  row = dataclasses.replace(row, left_out=dataclasses.replace(row.left_out, change=change, error=0.2))
  assert str(row).endswith(f"as it was; {words}") and row.outcome == "none (16 bits left out)"
