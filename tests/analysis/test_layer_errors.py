"""analyze: known faults are found, and its figures are what they say."""

import json

import numpy as np
import pytest
import scipy
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.analysis.layer_errors import network_of
from kquant.analysis.rows import ROUNDED
from kquant.core.metrics import sqnr_db as sqnr_db_of
from kquant.graph.execution import Execution
from kquant.qmodel.outputs import network_outputs
from tests import models

PER_TENSOR = kq.TensorSpec(per_channel=False)


def chain(seed=0):
  """A network of four convolutions and a classifier, with ReLUs."""
  keras.utils.set_random_seed(seed)
  x = image = keras.Input((8, 8, 3), name="image")
  for index in range(4):
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name=f"conv{index}",
                      bias_initializer=keras.initializers.RandomUniform(0, 0.2))(x)
  x = layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(x))
  return keras.Model(image, layers.Softmax(name="softmax")(x), name="chain")


def photos(count=24, seed=1):
  """Smooth random images, [count, 8, 8, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.normal(size=(count, 2, 2, 3)).repeat(4, 1).repeat(4, 2)
  return (coarse + 0.3 * rng.normal(size=(count, 8, 8, 3))).astype(np.float32)


def quantized(model, images, **options):
  """Quantizes by the config alone: no effort mends a planted fault."""
  return kq.quantize(model, images, effort=None, **options)


def row(analysis, name, part):
  """Returns one row of an analysis."""
  (found,) = (r for r in (*analysis.rows, *analysis.layers) if (r.name, r.part) == (name, part))
  return found


def without(rows):
  """Returns (name, part) of rows in their order."""
  return [(r.name, r.part) for r in rows]


@pytest.fixture(scope="module")
def analysis():
  """Of the chain at int8, with labels: the float answers, every other one moved."""
  model, images = chain(), photos()
  labels = model.predict(images, verbose=0).argmax(-1)
  labels[::2] = (labels[::2] + 1) % 5
  return kq.analyze(quantized(model, images), images, labels)


def test_a_layer_on_its_grid_makes_no_noise():
  model = chain()
  kernel = np.random.default_rng(0).integers(-127, 128, (3, 3, 12, 12))
  kernel[0, 0, 0] = 127
  model.get_layer("conv2").kernel.assign(kernel * 2.0**-11)
  found = row(kq.analyze(quantized(model, photos()), photos()), "conv2", "weights")
  assert found.local == found.solo == found.share == found.mean_shift == 0.0
  assert found.amplification is None and found.noisy_channels == ()


@pytest.mark.parametrize("name", ["mobile_block", "branches", "convolutions"])
def test_the_noises_of_tensors_add_up(name):
  model = models.build(name)
  images = models.sample_inputs(model, 64)
  assert 0.75 < kq.analyze(quantized(model, images), images).additivity < 1.25


def test_shares_add_up_and_rows_are_sorted(analysis):
  for rows in (analysis.rows, analysis.layers):
    assert [r.solo for r in rows] == sorted((r.solo for r in rows), reverse=True)
  assert sum(r.share for r in analysis.rows) == pytest.approx(1.0)
  assert sum(r.solo for r in analysis.rows) == pytest.approx(analysis.additivity * analysis.whole)


def test_a_layer_makes_about_the_noise_of_its_weights_and_its_output(analysis):
  for layer in analysis.layers:
    output = layer.name  # a fused ReLU is a layer of its own in the graph
    (activation,) = (r for r in analysis.rows if r.part == "activation" and r.name.startswith(output))
    both = row(analysis, layer.name, "weights").solo + activation.solo
    assert 0.4 < layer.solo / both < 2.5


def test_planted_outlier_weight_is_found():
  model = chain()
  kernel = model.get_layer("conv1").kernel.numpy()
  kernel[1, 1, 5, 7] = 30 * np.abs(kernel).max()
  model.get_layer("conv1").kernel.assign(kernel)
  config = kq.QuantConfig(rules=[kq.Rule(weights=PER_TENSOR)])
  found = kq.analyze(quantized(model, photos(), config=config), photos())
  assert without(found.rows)[0] == ("conv1", "weights") and found.layers[0].name == "conv1"
  assert found.rows[0].wide_channels[0][0] == 7 and found.rows[0].wide_channels[0][1] > 10


def with_outlier_channel():
  """The chain whose conv1 has channel 4 made 30 times as large, which conv2 undoes: the same function."""
  model = chain()
  producer, consumer = model.get_layer("conv1"), model.get_layer("conv2")
  scale = np.where(np.arange(12) == 4, 30.0, 1.0).astype(np.float32)
  producer.kernel.assign(producer.kernel * scale)
  producer.bias.assign(producer.bias * scale)
  consumer.kernel.assign(consumer.kernel / scale[:, None])
  return model


def test_planted_outlier_channel_of_an_activation_is_found():
  first = kq.analyze(quantized(with_outlier_channel(), photos()), photos()).rows[0]
  assert first.part == "activation" and first.name.startswith("conv1")
  assert first.wide_channels[0][0] == 4 and first.wide_channels[0][1] > 10


def test_an_average_on_the_grid_of_its_input_is_the_loudest_of_the_group():
  """The mean of 64 values spreads less than they do, on the same steps."""
  keras.utils.set_random_seed(0)
  image = keras.Input((8, 8, 3), name="image")
  x = layers.AveragePooling2D(8, name="average")(layers.Conv2D(6, 3, padding="same", name="conv")(image))
  model = keras.Model(image, layers.Dense(3, name="out")(layers.Flatten(name="flat")(x)))
  found = row(kq.analyze(model, photos()), "conv", "activation")
  assert found.shared_with and found.loudest == "average"
  assert found.local > 1e-5 and found.amplification < 10


def test_planted_layer_of_two_bits_is_found():
  config = kq.QuantConfig(rules=[kq.Rule(match="^conv2$", weights=kq.TensorSpec(bits=2)), kq.Rule()])
  found = kq.analyze(quantized(chain(), photos(), config=config), photos())
  assert without(found.rows)[0] == ("conv2", "weights") and found.rows[0].bits == 2
  assert found.layers[0].name == "conv2"


def test_ranges_of_other_images_saturate():
  found = kq.analyze(quantized(chain(), 0.1 * photos()), photos())
  image = row(found, "image", "activation")
  assert image.saturated > 0.5 and found.rows[0] is image


def test_saturated_weights_are_counted():
  config = kq.QuantConfig(rules=[kq.Rule(weights=kq.TensorSpec(bits=4, range="mse")), kq.Rule()])
  found = kq.analyze(quantized(chain(), photos(), config=config), photos())
  assert max(r.saturated for r in found.rows if r.part == "weights") > 0.0
  assert all(r.saturated is None for r in found.layers)


def test_white_noise_has_the_amplification():
  """Noise of the power of the local one, injected at a tensor in place of quantization."""
  model, images = chain(), photos(64)
  qmodel = kq.calibrate(kq.insert_quantizers(model), images)
  found, net = kq.analyze(qmodel, images), network_of(qmodel, None)
  rng, (_, in_float) = np.random.default_rng(0), net.calls
  for layer in ("conv0", "conv2"):
    (chosen,) = (r for r in found.rows if r.part == "activation" and r.name.startswith(layer))

    def call(live, node, values, chosen=chosen):
      (output,) = in_float(live, node, values)
      if node.inputs[0].key == chosen.name and live.name.endswith("quantize"):
        power = chosen.local * np.square(output.numpy()).mean()
        return [output + rng.normal(0, np.sqrt(power), output.shape).astype(np.float32)]
      return [output]

    execution = Execution(net.graph, net.qmodel, call=call)
    noisy = execution.values([images])[net.answers[0]].numpy()
    clean = Execution(net.graph, net.qmodel, call=in_float).values([images])[net.answers[0]].numpy()
    injected = np.square(noisy - clean).sum() / np.square(clean - clean.mean(0)).sum()
    assert injected / chosen.local == pytest.approx(chosen.amplification, rel=0.35)


def test_leave_one_out_is_what_goes():
  """Only the layer of two bits makes noise to speak of: without it nearly all goes."""
  config = kq.QuantConfig(rules=[kq.Rule(match="^conv2$", weights=kq.TensorSpec(bits=2)), kq.Rule()])
  found = kq.analyze(quantized(chain(), photos(), config=config), photos())
  assert row(found, "conv2", "weights").leave_one_out == pytest.approx(found.whole, rel=0.05)


def test_top1_is_that_of_the_labels(analysis):
  assert analysis.top1 == (0.5, pytest.approx(0.5, abs=0.1))
  assert all(abs(r.top1_drop) <= 0.1 for r in analysis.rows)


def test_divergence_of_the_whole_is_that_of_the_models(analysis):
  images = photos()
  result = quantized(chain(), images)
  reference = chain().predict(images, verbose=0)
  scores = scipy.special.softmax(network_outputs(result.qmodel, [images])[0], -1)
  divergence = (reference * np.log(reference / scores)).sum(-1).mean()
  assert analysis.divergence == pytest.approx(divergence, rel=0.05)


def test_models_that_do_not_classify_have_no_divergence():
  image = keras.Input((8, 8, 3), name="image")
  model = keras.Model(image, layers.Conv2D(2, 3, name="map")(image))
  found = kq.analyze(model, photos(4))
  assert found.divergence is None and found.rows[0].divergence is None and "KL" not in str(found)


def test_a_float_model_is_quantized_as_the_effort_fast_does():
  model, images = chain(), photos()
  first = kq.analyze(model, images[:8], calibration=images)
  second = kq.analyze(kq.quantize(model, images, effort="fast"), images[:8])
  assert first.whole == pytest.approx(second.whole, rel=1e-3) and first.images == 8
  assert without(first.rows)[:3] == without(second.rows)[:3]


def test_a_model_that_was_rounded_says_that_its_weights_cannot_be_seen():
  result = quantized(chain(), photos(), recipe=kq.Recipe(rounding="closed_form"))
  assert kq.analyze(result, photos()).notes == ()
  alone = kq.analyze(result.qmodel, photos())
  assert alone.notes == (ROUNDED,) and ROUNDED in str(alone)
  assert all(r.solo == 0 for r in alone.rows if r.part == "weights")


@pytest.mark.parametrize("batch_norm", ["train", "absorb"])
def test_models_that_train_are_analyzed(batch_norm):
  model = models.build("conv_bn_relu")
  images = models.sample_inputs(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=batch_norm), images)
  found = kq.analyze(qmodel, images)
  assert 0 < found.whole < 0.01 and row(found, "conv", "weights").solo > 0


def test_a_model_with_several_inputs_and_outputs():
  model = models.build("two_inputs")
  images = dict(zip(("image", "vector"), models.sample_inputs(model)))
  found = kq.analyze(model, images)
  assert 0 < found.whole < 0.1 and {r.name for r in found.layers} == {"conv", "embed", "score", "class"}


def test_the_model_is_not_changed():
  result, images = quantized(chain(), photos()), photos()
  before = [w.numpy() for w in result.qmodel.weights]
  kq.analyze(result, images)
  for one, other in zip(before, result.qmodel.weights):
    np.testing.assert_array_equal(one, other.numpy())


def test_json_holds_the_rows(analysis):
  body = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
  assert body["images"] == 24 and len(body["rows"]) == len(analysis.rows)
  assert body["rows"][0]["solo"] == analysis.rows[0].solo and body["rows"][0]["part"]


def test_infinite_figures_are_none_in_json():
  """Outputs that are the same for every image are no signal."""
  found = kq.analyze(chain(), np.ones((2, 8, 8, 3), np.float32))
  assert found.whole == np.inf and found.to_json()["whole"] is None and "no signal" in str(found)


def test_the_qnsr_leaves_out_the_mean_that_the_sqnr_counts():
  model, images = chain(), photos()
  model.get_layer("logits").bias.assign(np.full(5, 10.0))  # the same for every image
  result = quantized(model, images)
  reference = network_outputs(keras.Model(model.input, model.get_layer("logits").output), [images])[0]
  found = kq.analyze(result, images)
  sqnr_db = sqnr_db_of(network_outputs(result.qmodel, [images])[0], reference)
  about_mean = np.square(reference - reference.mean(0)).sum() / np.square(reference).sum()
  assert about_mean < 0.1
  np.testing.assert_allclose(-10 * np.log10(found.whole), sqnr_db + 10 * np.log10(about_mean), atol=0.01)
  assert "dB; the SQNR, whose signal has the mean over images, too, is no lower)" in str(found)


def test_tables_have_a_row_each(analysis):
  assert len(analysis.table().splitlines()) == 2 + len(analysis.rows)
  assert len(analysis.table(2).splitlines()) == 4
  assert len(analysis.table(layers=True).splitlines()) == 2 + len(analysis.layers) == 7
  assert analysis.summary() in str(analysis)


def test_plot_draws_the_shares(analysis, tmp_path):
  figure = analysis.plot(3)
  (axes,) = figure.axes
  assert [label.get_text() for label in axes.get_yticklabels()] == [r.name for r in analysis.rows[:3]]
  assert axes.lines[0].get_xdata()[-1] == pytest.approx(100 * sum(r.share for r in analysis.rows[:3]))
  figure.savefig(tmp_path / "analysis.png")
  assert (tmp_path / "analysis.png").stat().st_size > 1000


@pytest.mark.parametrize("images, labels, words", [
    (photos(1), None, "2 images or more, got 1"),
    (photos(4)[:, :4], None, "analysis data"),
    (photos(4), np.zeros(3), r"labels of shape \(3,\)"),
])
def test_mistakes_are_errors_of_one_line(images, labels, words):
  with pytest.raises(ValueError, match=words) as raised:
    kq.analyze(chain(), images, labels)
  assert "\n" not in str(raised.value)


def test_a_model_that_was_not_calibrated_is_refused():
  with pytest.raises(ValueError, match="calibrate"):
    kq.analyze(kq.insert_quantizers(chain()), photos())


def test_something_else_is_no_model():
  with pytest.raises(TypeError):
    kq.analyze("model.h5", photos())


def test_the_ranking_holds_on_other_images(shared_data):
  model = kq.load_model(shared_data / "models" / "resnet8_cifar10.h5")
  with np.load(shared_data / "cifar10.npz") as stored:
    calibration, images = (stored[key].astype(np.float32) for key in ("x_train", "x_test"))
  result = quantized(model, calibration[:128])
  first, second = ({(r.name, r.part): r.solo for r in kq.analyze(result, part).rows}
                   for part in (images[:128], images[128:256]))
  assert scipy.stats.spearmanr(list(first.values()), [second[key] for key in first]).statistic > 0.8
