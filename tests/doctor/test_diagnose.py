"""diagnose: planted faults are found and mended at the least cost, and sound networks stay as they are."""

import dataclasses
import json

import numpy as np
import pytest

import kquant as kq
from kquant.doctor import mending
from kquant.qmodel.outputs import network_outputs
from tests.analysis.test_layer_errors import chain, photos, with_outlier_channel

PER_TENSOR = kq.TensorSpec(per_channel=False)
FEW_BITS = kq.QuantConfig(rules=[kq.Rule(match="^conv2$", weights=kq.TensorSpec(bits=2)), kq.Rule()])


def diagnosed(model, images=None, labels=None, **options):
  """Diagnoses a network that only its config quantizes."""
  return kq.diagnose(model, photos(64) if images is None else images, labels, effort=None, **options)


def with_outlier_weight():
  """The chain with one weight of conv1 30 times as large as the largest."""
  model = chain()
  kernel = model.get_layer("conv1").kernel.numpy()
  kernel[1, 1, 5, 7] = 30 * np.abs(kernel).max()
  model.get_layer("conv1").kernel.assign(kernel)
  return model


def sqnr_db(result, model, images):
  """SQNR of a result on images, before the softmax."""
  reference = network_outputs(kq.rewrite(model, [kq.standardize]), [images])[0]
  noise = network_outputs(result.qmodel, [images])[0] - reference
  return 10 * np.log10(np.square(reference).sum() / np.square(noise).sum())


FAULTS = {
    "few bits": (chain, FEW_BITS, ("conv2", "weights", "weights of 8 bits")),
    "outlier weight": (with_outlier_weight, kq.QuantConfig(rules=[kq.Rule(weights=PER_TENSOR)]),
                       ("conv1", "weights", "a scale a channel")),
    "outlier channel": (with_outlier_channel, kq.QuantConfig(),
                        ("conv1/relu", "activation", "factorization")),
}


@pytest.fixture(scope="module", params=FAULTS)
def case(request):
  """Returns (what is wanted, the faulty model, its diagnosis)."""
  make, config, wanted = FAULTS[request.param]
  model = make()
  return wanted, model, diagnosed(model, config=config)


def test_a_planted_fault_is_first_and_mended(case):
  (name, part, remedy), model, diagnosis = case
  first = diagnosis.rows[0]
  assert (first.name, first.part, first.remedy) == (name, part, remedy)
  assert first.noise_after < 0.3 * first.noise and first.gain_db > 3
  assert diagnosis.trial.kept and diagnosis.sqnr_db[1] > diagnosis.sqnr_db[0] + 2
  assert sqnr_db(diagnosis.result, model, photos(32, seed=9)) > diagnosis.sqnr_db[0] + 2


def test_the_mended_network_has_a_file(case, tmp_path):
  _, _, diagnosis = case
  written = kq.export(diagnosis.result, tmp_path / "m.tflite", verify=photos(2), certify=True)
  assert written.certificate["exact"] and written.bytes == diagnosis.bytes[1]


def test_it_is_data_and_words(case):
  (name, _, remedy), _, diagnosis = case
  body = json.loads(json.dumps(diagnosis.to_json()))
  assert body["rows"][0]["remedy"] == remedy and body["rows"][0]["tried"]
  assert kq.QuantConfig.from_json(body["config"]) == diagnosis.config
  assert f"- {name} (" in str(diagnosis) and "together: " in str(diagnosis) and "bytes" in str(diagnosis)
  assert remedy in diagnosis.table()


def test_each_remedy_says_what_it_adds_to_the_file():
  """What they add makes up what all of them do."""
  settings = kq.DiagnosisSettings(tolerance=99.0, most_wide=2, latency=True, coverage=1.0)
  diagnosis = diagnosed(chain(), config=FEW_BITS, settings=settings)
  treated = [row for row in diagnosis.rows if row.remedy is not None]
  assert len(treated) > 2 and sum(row.latency is not None for row in diagnosis.rows) == len(treated)
  for name, (before, after) in (("bytes", diagnosis.bytes), ("latency", diagnosis.milliseconds)):
    added = [getattr(row, name) for row in treated]
    assert sum(added) == pytest.approx(after / before - 1) and max(added) > 0
  assert f"{100 * treated[0].bytes:+.1f} % bytes, {100 * treated[0].latency:+.1f} % latency" in str(diagnosis)


def test_the_predicted_gain_is_that_of_the_network(case):
  _, _, diagnosis = case
  gain = diagnosis.sqnr_db[1] - diagnosis.sqnr_db[0]
  assert sum(row.gain_db for row in diagnosis.rows) == pytest.approx(gain, abs=2.0)


def test_nothing_is_at_fault_in_a_sound_network_of_equal_layers():
  diagnosis = diagnosed(chain(), settings=kq.DiagnosisSettings(coverage=0.0))
  assert diagnosis.rows == () and diagnosis.trial is None and diagnosis.sqnr_db[0] == diagnosis.sqnr_db[1]
  assert "no tensor stands out" in str(diagnosis) and "nothing was changed" in str(diagnosis)


def test_no_more_sixteen_bits_than_it_takes():
  config = kq.QuantConfig(rules=[kq.Rule(weights=PER_TENSOR)])
  settings = [kq.DiagnosisSettings(tolerance=tolerance, most_wide=most) for tolerance, most in
              ((-99.0, 8), (99.0, 8), (99.0, 1))]
  wide = [sum(row.remedy == "16 bits" for row in diagnosed(chain(), config=config, settings=each).rows)
          for each in settings]
  assert wide[0] == 0 and wide[1] > 1 and wide[2] == 1


def test_what_is_not_better_is_not_kept(monkeypatch):
  try_change = mending.HeldBack.try_change

  def worse(self, *args, **more):
    trial, quality = try_change(self, *args, **more)
    return dataclasses.replace(trial, kept=False), quality

  monkeypatch.setattr(mending.HeldBack, "try_change", worse)
  diagnosis = diagnosed(chain(), config=FEW_BITS)
  assert diagnosis.config == FEW_BITS and "nothing was changed" in diagnosis.summary()
  assert diagnosis.result.encodings["conv2/kernel"].bits == 2


def test_activations_of_few_bits_are_simulated():
  config = kq.QuantConfig.preset("w4a4").with_quantizers(weights="dorefa")
  diagnosis = diagnosed(chain(), config=config)
  assert diagnosis.bytes is None and diagnosis.rows
  assert not any(row.tried for row in diagnosis.rows if row.part == "weights")  # it rounds no plain weights


def test_a_layer_without_kernels_for_sixteen_bits(monkeypatch):
  contents, asked = mending.files.contents, []

  def refusing(result):
    asked.append(max(grid.bits for key, grid in result.encodings.grids.items() if "/bias" not in key))
    if asked[-1] == 16:
      raise kq.UnsupportedLayerError("Layer 'x' has no kernel.")
    return contents(result)

  monkeypatch.setattr(mending.files, "contents", refusing)
  diagnosis = diagnosed(chain(), settings=kq.DiagnosisSettings(tolerance=99.0))
  assert asked[0] == 16 and 16 not in asked[1:]
  assert any("no kernel" in note for note in diagnosis.notes)
  assert all(row.remedy != "16 bits" for row in diagnosis.rows)


def test_images_to_calibrate_on_of_their_own_and_labels():
  model, images = chain(), photos(32)
  labels = model.predict(images, verbose=0).argmax(-1)
  diagnosis = diagnosed(model, images, labels, calibration=photos(48, seed=5))
  assert diagnosis.analysis.images == 32 and diagnosis.analysis.top1[0] == 1.0


def test_few_images():
  assert "too few to hold some back" in str(diagnosed(chain(), photos(8)))


def test_mistakes():
  model = chain()
  with pytest.raises(TypeError, match=r"got str; load it first: kquant.load_model\('m.keras'\)"):
    kq.diagnose("m.keras", photos(8))
  with pytest.raises(TypeError, match="expected a float model"):
    kq.diagnose(kq.quantize(model, photos(8), effort=None), photos(8))
  with pytest.raises(TypeError, match="expected a float model"):
    kq.diagnose(kq.calibrate(kq.insert_quantizers(model), photos(8)), photos(8))
  with pytest.raises(ValueError, match="effort must be one of"):
    kq.diagnose(model, photos(8), effort="best")
  with pytest.raises(ValueError, match="without fine-tuning"):
    kq.diagnose(model, photos(8), config=kq.QuantConfig(recipe=kq.Recipe(finetune="bft")))
  with pytest.raises(ValueError, match="diagnose: expected 2 images or more"):
    kq.diagnose(model, photos(1))
  for wrong in ({"coverage": 1.5}, {"images": 1}, {"most_wide": -1}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      kq.DiagnosisSettings(**wrong)
