"""config any8: one set of codes, a usable network at each width."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.cli.demo import digits, train_digits
from kquant.core import metrics, nested_codes
from kquant.core.recipe import TOLERANCE_DB
from kquant.qmodel.outputs import network_outputs
from tflite_export.family.bundle import Bundle


@pytest.fixture(scope="module")
def found():
  model, ((images, _), (x, _)) = train_digits(), digits()
  return model, images[:64], x, kq.quantize(model, images[:64], config="any8")


def test_codes_of_eight_bits_shifted_right_are_those_of_every_width(found):
  family = found[3].family()
  assert list(family) == [8, 7, 6, 5, 4]
  for bits, member in family.items():
    for key, width in member.kernel_bits.items():
      assert width == (8 if key in ("conv/kernel", "classes/kernel") else bits)
      codes = nested_codes.codes_of(family[8].encodings.integers[key])
      np.testing.assert_array_equal(nested_codes.codes_of(member.encodings.integers[key], width),
                                    nested_codes.narrower(codes, width))
      assert (member.signs[key] == 1).all()
  assert found[3].encodings is family[8].encodings and found[3].model is family[8].model


def test_every_width_is_usable_and_has_biases_of_its_own(found):
  model, images, x, result = found
  reference = network_outputs(model, [x])[0]
  agreements = {bits: metrics.agreement(network_outputs(member.model, [x])[0], reference)
                for bits, member in result.family().items()}
  assert agreements[4] > 0.95 and min(agreements[bits] for bits in (5, 6, 7, 8)) > 0.97, agreements
  biases = [member.encodings.integers["expand_1/bias"] for member in result.family().values()]
  assert not np.array_equal(biases[0], biases[-1])


def test_eight_bits_are_refined_within_four(found):
  """Not the four bits with zeros behind them: nearer to the float weights."""
  model, _, _, result = found
  family = result.family()
  wide, coarse = (np.abs(family[bits].model.get_layer("expand_2").kernel - result.float_params["expand_2"][
      "kernel"]).mean() for bits in (8, 4))
  assert wide < 0.6 * coarse


def test_the_bundle_gives_certified_files(found, tmp_path):
  _, images, _, result = found
  written = kq.export_family(result, tmp_path, widths=(8, 4), verify=images[:2])
  for bits in (8, 4):
    assert written.files[bits].certificate["exact"]
    assert Bundle(written.bundle).tflite(bits) == written.files[bits].path.read_bytes()


def test_all_parts_of_the_last_layer_keep_eight_bits():
  """As in an AnyPrecisionModel: the depthwise one had codes of 4 bits on a grid of 8."""
  parts = [keras.layers.Conv2D(2, 1, name="first", input_shape=(4, 4, 2)),
           keras.layers.Conv2D(2, 1, name="mid"), keras.layers.SeparableConv2D(2, 3, name="last")]
  images = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype(np.float32)
  member = kq.quantize(keras.Sequential(parts), images, config="any8").family((4,))[4]
  bits = {"first/kernel": 8, "mid/kernel": 4, "last/depthwise/kernel": 8, "last/kernel": 8}
  assert member.kernel_bits == bits
  assert {key: member.encodings[key].bits for key in bits} == bits


def test_what_makes_no_family(tmp_path):
  model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
  images = np.ones((8, 3), np.float32)
  with pytest.raises(ValueError, match="quantize with config='any8'"):
    kq.export_family(kq.quantize(model, images), tmp_path)
  with pytest.raises(ValueError, match="rounds on calibration images"):
    kq.quantize(model, kq.InputRange(0, 1), config="any8")
  with pytest.raises(ValueError, match="no convolution and no dense layer"):
    kq.quantize(keras.Sequential([keras.layers.ReLU(input_shape=(3,))]), images, config="any8")


@pytest.mark.parametrize(("options", "name"), [
    ({"effort": "best"}, "effort"), ({"effort": None}, "effort"), ({"tolerance": 40.0}, "tolerance"),
    ({"recipe": kq.Recipe(rounding="adaround")}, "recipe")])
def test_methods_that_are_asked_for_are_refused(options, name):
  model, images = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), np.ones((8, 3), np.float32)
  with pytest.raises(ValueError, match=f"config='any8' has methods of its own, got {name}=.*leave it out"):
    kq.quantize(model, images, config="any8", **options)


def test_the_default_methods_may_be_named():
  model, images = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), np.ones((8, 3), np.float32)
  result = kq.quantize(model, images, config="any8", recipe=kq.Recipe(), effort="auto",
                       tolerance=TOLERANCE_DB)
  assert list(result.family()) == [8, 7, 6, 5, 4]
