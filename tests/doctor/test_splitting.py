"""Outlier split in the doctor: it measures what the network will compute, whose float function stays."""

import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.analysis.sites import WEIGHTS, sites
from kquant.core.records import Report
from kquant.doctor.patient import Patient
from kquant.doctor.rules import Changes
from kquant.doctor.splitting import SPLIT, split_remedy
from kquant.doctor.treatment import Treatment
from kquant.doctor.variants import Bench, Variant
from kquant.qmodel.outputs import network_outputs
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read
from kquant.search.trials import HeldBack
from tests.analysis.test_layer_errors import chain, photos


def with_outlier_channel():
  """The chain, one input channel of conv2 with weights 30 times as large."""
  model = chain()
  kernel = model.get_layer("conv2").kernel.numpy()
  kernel[..., 4, :] *= 30
  model.get_layer("conv2").kernel.assign(kernel)
  return model


def examined(model, config):
  """Returns the patient of a model, its network for analysis, and the weights of conv2 as a site."""
  patient = Patient(FloatNetwork(read(model, config), [photos(24)], 0), config, Report())
  network = patient.for_analysis()
  (site,) = [site for site in sites(network.graph) if (site.name, site.part) == ("conv2", WEIGHTS)]
  return patient, network, site


@pytest.fixture(scope="module", params=[False, True], ids=["one scale", "a scale a channel"])
def case(request):
  """Returns a patient, its network, the site and its remedy."""
  config = kq.QuantConfig(rules=[kq.Rule(weights=kq.TensorSpec(per_channel=request.param))])
  patient, network, site = examined(with_outlier_channel(), config)
  statistics, weights = patient.calibrated.statistics, config.rules[0].weights
  return patient, network, site, split_remedy(network, patient.graph, site, weights, statistics)


def test_it_is_less_noise(case):
  _, network, site, remedy = case
  before, after = Bench(network, [photos(16, seed=3)]).solo([Variant(site, network.calls[0]), remedy.variant])
  assert after.mean() < 0.5 * before.mean()


def test_it_is_what_the_changed_network_computes(case):
  patient, network, _, remedy = case
  images = [photos(16, seed=3)]
  bench = Bench(network, images)
  predicted = bench.sqnr_db(bench.among_all([remedy.variant]))[1].mean()
  _, changed = patient.changed(Changes(split=["conv2"]))
  kernel = changed.float_params["conv2"]["kernel"]
  assert kernel.shape == (3, 3, 13, 12) and changed.float_params["conv1"]["kernel"].shape[-1] == 13
  reference = network_outputs(patient.graph.to_model(), images, graph=patient.graph)
  answers = network_outputs(changed.qmodel, images, graph=changed.graph)
  measured = HeldBack(images, reference).quality(answers).mean()
  assert measured == pytest.approx(predicted, abs=1.5)


def test_the_doctor_takes_it_and_writes_its_file(monkeypatch, tmp_path):
  monkeypatch.setattr(Treatment, "_try_rounding", lambda self: None)
  diagnosis = kq.diagnose(with_outlier_channel(), photos(64), effort=None,
                          settings=kq.DiagnosisSettings(most_wide=0))
  first = diagnosis.rows[0]
  assert (first.name, first.part, first.remedy) == ("conv2", WEIGHTS, SPLIT)
  assert diagnosis.trial.kept and diagnosis.result.encodings["conv1/bias"].scale.shape == (13,)
  written = kq.export(diagnosis.result, tmp_path / "m.tflite", verify=photos(2), certify=True)
  assert written.certificate["exact"]


def test_nothing_to_split_where_two_layers_read():
  image = keras.Input((8, 8, 3))
  x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(image)
  branches = [layers.Conv2D(3, 3, padding="same", name=name)(x) for name in ("conv2", "conv3")]
  config = kq.QuantConfig()
  patient, network, site = examined(keras.Model(image, layers.Add()(branches)), config)
  statistics, weights = patient.calibrated.statistics, config.rules[0].weights
  assert split_remedy(network, patient.graph, site, weights, statistics) is None
