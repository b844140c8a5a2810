"""Float .tflite files and SavedModels of other makers become tf_keras models that compute the same."""

import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from tf_keras import layers

import kquant as kq
from kquant.core.images import ImageFormat, image_names, load_images
from tests import models

RANDOM = np.random.default_rng(0)


def converted(model, *, half=False):
  """The converter's float file of a Keras model."""
  converter = tf.lite.TFLiteConverter.from_keras_model(model)
  if half:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
  return bytes(converter.convert())


def of(shape, function, **options):
  x = keras.Input(shape, **options)
  return keras.Model(x, function(x))


def file_of(*shapes, function, dtype=tf.float32):
  """The converter's float file of a function of TensorFlow, the batch as given."""
  specs = [tf.TensorSpec(shape, dtype, name=f"x{index}") for index, shape in enumerate(shapes)]
  concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
  return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())


def run(data, *inputs):
  """The outputs of a file, the inputs given to it one by one."""
  interpreter = Interpreter(model_content=data)
  interpreter.allocate_tensors()
  results = []
  for sample in zip(*inputs):
    for detail, values in zip(interpreter.get_input_details(), sample):
      interpreter.set_tensor(detail["index"], values[None])
    interpreter.invoke()
    results.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
  return [np.concatenate(values) for values in zip(*results)]


def assert_same(data, model, *inputs):
  """The model computes what the file does, to 1e-5 of the largest value."""
  mine = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
  for a, b in zip(tf.nest.flatten(mine), run(data, *inputs), strict=True):
    assert a.shape[0] == len(inputs[0]) and (a.shape == b.shape or len(a.shape) == len(b.shape) + 1)
    assert np.abs(a - b.reshape(a.shape)).max() <= 1e-5 * np.abs(b).max()


def kinds(model):
  return [type(layer).__name__ for layer in model.layers]


# --- files of Keras models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.ZOO)
def test_a_file_of_the_zoo_computes_the_same(name):
  model = models.build(name)
  data = converted(model)
  made = kq.from_tflite(data)
  inputs = models.sample_inputs(made, images=3)
  assert_same(data, made, *inputs)
  assert sorted(made.input_names) == sorted(model.input_names)
  assert sorted(made.output_names) == sorted(model.output_names)


@pytest.mark.parametrize("name", ["mobile_block", "two_inputs", "functions"])
def test_a_file_becomes_an_integer_file(name, tmp_path):
  made = kq.from_tflite(converted(models.build(name)))
  inputs = models.sample_inputs(made)
  result = kq.quantize(made, inputs if len(inputs) > 1 else inputs[0])
  written = kq.export(result, tmp_path / "m.tflite", verify=[values[:2] for values in inputs])
  assert written.verification.ok
  assert written.program.input_names == made.input_names
  assert written.program.output_names == made.output_names


def test_layers_have_weights_and_the_names_of_the_file():
  made = kq.from_tflite(converted(models.build("mobile_block")))
  assert [layer.name for layer in made.layers] == [
      "image", "stem", "stem/activation", "expand", "expand/activation", "depthwise", "depthwise/activation",
      "max_pooling2d", "project", "add", "flatten", "logits", "softmax"]
  assert [type(made.get_layer(name)).__name__ for name in ("stem", "depthwise", "logits")] == [
      "Conv2D", "DepthwiseConv2D", "Dense"]
  assert len(made.trainable_weights) == 10


def test_weights_of_half_precision():
  model = models.build("mobile_block")
  data = converted(model, half=True)
  assert len(data) < 0.9 * len(converted(model))
  assert_same(data, kq.from_tflite(data), *models.sample_inputs(model, images=3))


def test_attention_and_normalization_come_back_as_layers():
  x = keras.Input((6, 8), name="sequence")
  y = layers.LayerNormalization(name="norm")(x + layers.MultiHeadAttention(2, 4, name="attention")(x, x))
  model = models.randomized(keras.Model(x, layers.Dense(3, name="out")(y)))
  data = converted(model)
  made = kq.from_tflite(data)
  assert_same(data, made, *models.sample_inputs(model, images=3))
  assert "LayerNormalization" in kinds(made) and kinds(made).count("Dense") == 5
  for weight in (0, 1):
    mine, theirs = (network.get_layer("norm").weights[weight] for network in (made, model))
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


SHARED = ["resnet8_cifar10", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "mobilenet_v2_1.0_224", "mobilenet_v3_small_224", "efficientnet_lite0_224"))]


@pytest.mark.parametrize("name", SHARED)
def test_a_file_of_a_trained_network_computes_the_same(name, shared_data):
  model = kq.load_model(shared_data / "models" / f"{name}.h5")
  if name.startswith("resnet8"):
    with np.load(shared_data / "cifar10.npz") as stored:
      images = stored["x_test"][:8].astype(np.float32)
  else:
    folder = shared_data / "imagenet"
    images = load_images(folder, ImageFormat(224, 224, preprocess="tf"), names=image_names(folder)[::80])
  made = kq.from_tflite(converted(model))
  assert "TFOpLambda" not in kinds(made) or "v3" in name
  a, b = (np.asarray(network(images)) for network in (made, model))
  assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
  names = {layer.name for layer in model.layers if layer.weights and "Batch" not in type(layer).__name__}
  assert len(names & {layer.name for layer in made.layers}) >= 0.9 * len(names)


# --- files of functions, as other frameworks write them --------------------------------------------


def kernel(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


C, W = kernel(3, 3, 4, 6), kernel(8, 5)
D, V = kernel(8, 8), kernel(8)
NORM = {
    "rsqrt": lambda x, m: (x - m) * tf.math.rsqrt(
        tf.reduce_mean(tf.math.squared_difference(x, m), -1, keepdims=True) + 1e-5),
    "root": lambda x, m: (x - m) / tf.sqrt(tf.reduce_mean((x - m) * (x - m), -1, keepdims=True) + 1e-5),
    "moments": lambda x, m: tf.nn.batch_normalization(x, *tf.nn.moments(x, [-1], keepdims=True), None, None,
                                                      1e-5),
}


def attention(x):
  """As PyTorch writes it: heads beside the batch, products of three axes."""
  heads = [tf.reshape(tf.matmul(x, D * scale), [1, 6, 2, 4]) for scale in (0.5, -0.5, 1.0)]
  heads = [tf.reshape(tf.transpose(head, [0, 2, 1, 3]), [2, 6, 4]) for head in heads]
  scores = tf.nn.softmax(tf.matmul(heads[0], heads[1], transpose_b=True) / 2.0)
  x = tf.transpose(tf.reshape(tf.matmul(scores, heads[2]), [1, 2, 6, 4]), [0, 2, 1, 3])
  return tf.reshape(x, [1, 6, 8])


def class_token(x):
  x = tf.concat([tf.constant(kernel(1, 1, 8)), x, tf.constant(kernel(1, 2, 8))], 1)
  return tf.matmul(x + kernel(1, 9, 8), W)


FUNCTIONS = {
    # name: (shape of the input, function, kinds of layers that it has to hold)
    "NCHW": ((1, 4, 9, 9), lambda x: tf.transpose(tf.nn.relu(tf.nn.conv2d(
        tf.transpose(x, [0, 2, 3, 1]), C, 2, "SAME")), [0, 3, 1, 2]), ["Permute", "Conv2D", "Permute"]),
    "a padded pool": ((1, 8, 8, 4), lambda x: tf.nn.max_pool2d(tf.pad(
        tf.nn.relu(x), [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID"), ["ZeroPadding2D", "MaxPooling2D"]),
    "a pool padded with -infinity": ((1, 8, 8, 4), lambda x: tf.nn.max_pool2d(tf.pad(
        x, [[0, 0], [1, 1], [1, 0], [0, 0]], constant_values=-np.inf), 3, 2, "VALID"), ["MaxPooling2D"]),
    "the same behind a ReLU": ((1, 8, 8, 4), lambda x: tf.nn.max_pool2d(tf.pad(
        tf.nn.relu(tf.nn.conv2d(x, C, 1, "SAME")), [[0, 0], [1, 1], [1, 1], [0, 0]],
        constant_values=-3e38), 3, 2, "VALID"), ["ZeroPadding2D", "MaxPooling2D"]),
    "rows of a matrix": ((1, 6, 8), lambda x: tf.reshape(tf.nn.relu(tf.matmul(tf.reshape(
        x, [6, 8]), W)), [1, 6, 5]), ["Dense"]),
    "flat": ((1, 2, 2, 2), lambda x: tf.matmul(tf.reshape(x, [1, 8]), W), ["Reshape", "Dense"]),
    "heads": ((1, 6, 8), attention, ["Dense", "Permute", "Softmax"]),
    "a token": ((1, 6, 8), class_token, ["TFOpLambda", "Dense"]),
    "dilated": ((1, 9, 9, 4), lambda x: tf.nn.conv2d(x, C, 1, "VALID", dilations=2), ["Conv2D"]),
    "space to batch": ((1, 9, 9, 4), lambda x: tf.nn.relu(tf.batch_to_space(tf.nn.elu(tf.nn.conv2d(
        tf.space_to_batch(x, [2, 2], [[2, 3], [2, 3]]), C, 1, "VALID")), [2, 2], [[0, 1], [0, 1]])),
                       ["ZeroPadding2D", "Conv2D", "ELU"]),
    "transposed": ((1, 5, 5, 6), lambda x: tf.nn.conv2d_transpose(x, C, [1, 10, 10, 4], 2, "SAME"),
                   ["Conv2DTranspose"]),
    "transposed, odd": ((1, 5, 5, 6), lambda x: tf.nn.conv2d_transpose(x, C, [1, 9, 9, 4], 2, "SAME"),
                        ["Conv2DTranspose", "Cropping2D"]),
    "grouped": ((1, 6, 6, 8), lambda x: tf.nn.conv2d(x, kernel(3, 3, 4, 6), 1, "SAME"), ["Conv2D"]),
    "volumes": ((1, 5, 5, 5, 4), lambda x: tf.nn.conv3d(x, kernel(2, 3, 3, 4, 6), [1] * 5, "SAME"),
                ["Conv3D"]),
    **{f"normalized, {name}": ((1, 6, 8), lambda x, norm=norm: norm(x, tf.reduce_mean(
        x, -1, keepdims=True)) * V + V[::-1], ["LayerNormalization"]) for name, norm in NORM.items()},
    "normalized by channel": ((1, 6, 6, 8), lambda x: tf.nn.batch_normalization(x, *tf.nn.moments(
        x, [1, 2], keepdims=True), V, V, 1e-5), ["GroupNormalization"]),
    "bounds": ((1, 8), lambda x: tf.clip_by_value(x, -0.5, 1.5) + tf.minimum(tf.nn.relu(x), 4.0)
               + tf.nn.relu6(x), ["ReLU", "TFOpLambda"]),
    "softplus": ((1, 8), tf.nn.softplus, ["TFOpLambda"]),
    "quotient": ((1, 8), lambda x: tf.exp(x) / (1.0 + tf.exp(-x)) + 2.0 / (3.0 + x * x), ["Multiply"]),
    "functions": ((1, 8), lambda x: sum(function(x) for function in (
        tf.abs, tf.negative, tf.square, tf.sin, tf.cos, tf.floor, tf.nn.elu, tf.nn.leaky_relu, tf.nn.gelu,
        tf.sigmoid, tf.tanh, tf.nn.log_softmax, tf.nn.softmax)) + tf.sqrt(tf.abs(x)) + tf.pow(x, 2.0)
        + tf.math.l2_normalize(x, -1), ["UnitNormalization", "ELU", "LeakyReLU"]),
    "extremes": ((1, 4, 4, 3), lambda x: tf.maximum(x, 0.25) + tf.reduce_max(x, [1, 2], keepdims=True)
                 - tf.reduce_min(x, 3, keepdims=True) + tf.reduce_sum(x, 1, keepdims=True),
                 ["GlobalMaxPooling2D"]),
    "slices": ((1, 6, 6, 4), lambda x: tf.stack(tf.unstack(x[:, 1:5:2, :, 1:], axis=1), 2)
               + x[:, 0, :, None, 1:] + tf.slice(x, [0, 2, 0, 0], [1, 1, 1, 3]), ["SlicingOpLambda"]),
    "parts": ((1, 6, 6, 4), lambda x: tf.concat(tf.split(x, [1, 3], -1)[::-1] + tf.split(x, 2, 1)[:0], -1)
              + tf.gather(x, [3, 2, 0, 1], axis=3) + tf.tile(x[:, :1], [1, 6, 1, 1]), ["Concatenate"]),
    "paddings": ((1, 6, 6, 4), lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [2, 0]]) + tf.pad(
        x, [[0, 0], [1, 1], [0, 0], [2, 0]], "REFLECT") + tf.pad(
            x, [[0, 0], [1, 1], [0, 0], [2, 0]], constant_values=2.0), ["TFOpLambda"]),
    "sizes": ((1, 6, 6, 4), lambda x: tf.image.resize(x, (12, 12)) + tf.image.resize(
        x, (12, 12), "nearest") + tf.image.resize(tf.image.resize(x, (9, 8)), (12, 12))
        + tf.compat.v1.image.resize_bilinear(x, (12, 12), align_corners=True), ["UpSampling2D", "Resizing"]),
    "blocks": ((1, 6, 6, 4), lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 3), 2), ["TFOpLambda"]),
    "a fixed batch": ((3, 5, 8), lambda x: tf.matmul(tf.reshape(x, [15, 8]), W), ["Dense"]),
    "an output without batch": ((1, 5, 8), lambda x: tf.matmul(x, W)[0, :, 1:], ["Dense"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_file_of_a_function_computes_the_same(name):
  shape, function, held = FUNCTIONS[name]
  data = file_of(shape, function=function)
  made = kq.from_tflite(data)
  assert set(held) <= set(kinds(made)), kinds(made)
  if shape[0] == 1:
    assert made.input_shape == (None, *shape[1:])
    assert_same(data, made, kernel(3, *shape[1:]))


def test_an_embedding_and_integer_inputs():
  model = of((5,), lambda x: layers.Dense(3)(layers.Embedding(10, 4, name="table")(x)), dtype="int32",
             name="indices")
  data = converted(model)
  made = kq.from_tflite(data)
  assert made.input_names == ["indices"] and made.inputs[0].dtype == tf.int32
  assert "Embedding" in kinds(made)
  assert_same(data, made, RANDOM.integers(0, 10, (3, 5)).astype(np.int32))


def test_open_sizes_stay_open_or_are_fixed():
  def pooled(x):
    y = tf.nn.conv2d(x, C, 2, "SAME")
    size = tf.shape(y)
    return tf.reduce_mean(tf.reshape(y, [size[0], size[1] * size[2], 6]), 1)

  data = file_of((None, None, None, 4), function=lambda x: tf.nn.relu(tf.nn.conv2d(x, C, 2, "SAME")))
  assert kq.from_tflite(data).input_shape == (None, None, None, 4)
  data = file_of((None, None, None, 4), function=pooled)
  with pytest.raises(kq.UnsupportedLayerError, match="open shape.*input_shape=") as error:
    kq.from_tflite(data)
  assert "\n" not in str(error.value)
  made = kq.from_tflite(data, input_shape=(8, 8, 4))
  assert made.input_shape == (None, 8, 8, 4) and made.output_shape == (None, 6)
  with pytest.raises(ValueError, match=r"input shape \(None, None, 4\), which \(8, 8, 3\) does not fit"):
    kq.from_tflite(data, input_shape=(8, 8, 3))


def test_the_difference_is_logged(caplog):
  with caplog.at_level("INFO", logger="absl"):
    kq.from_tflite(file_of((1, 8), function=tf.tanh))
  assert "outputs within" in caplog.text and "on random inputs" in caplog.text


def test_a_batch_that_the_network_moves_stays_fixed(caplog):
  data = file_of((2, 3), function=lambda x: tf.matmul(x, x, transpose_b=True))
  with caplog.at_level("INFO", logger="absl"):
    made = kq.from_tflite(data)
  assert made.input_shape == (2, 3) and "batch" in caplog.text and "stays fixed" in caplog.text


# --- what is refused -------------------------------------------------------------------------------


def quantized():
  converter = tf.lite.TFLiteConverter.from_keras_model(of((300,), layers.Dense(300)))
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  return bytes(converter.convert())


def edited(data, change):
  """The file with its object form changed."""
  model = schema.ModelT.InitFromPackedBuf(data, 0)
  change(model)
  builder = flatbuffers.Builder(1024)
  builder.Finish(model.Pack(builder), b"TFL3")
  return bytes(builder.Output())


def small():
  return file_of((1, 8), function=lambda x: tf.nn.relu(tf.matmul(x, W)))


def with_custom_operator():
  def change(model):
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM, 32
    code.customCode = "MaxPoolingWithArgmax2D"
  return edited(small(), change)


def of_operator(kind):
  def change(model):
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind), 127
  return edited(small(), change)


def loop():
  return file_of((1, 8), function=lambda x: tf.while_loop(
      lambda y: tf.reduce_sum(y) < 100.0, lambda y: (y * y + 1.0,), (x,))[0])


REFUSED = {
    "quantized": (quantized, ValueError, "is quantized already.*give the float model"),
    "control flow": (loop, ValueError, "holds control flow.*WHILE"),
    "a custom operator": (with_custom_operator, ValueError,
                          "the custom 'MaxPoolingWithArgmax2D' as operator 0"),
    "an unknown operator": (lambda: of_operator("CUMSUM"), kq.UnsupportedLayerError,
                            r"Operator 0 \(CUMSUM, output .*has no form in tf_keras"),
    "another file": (lambda: b"PK34" * 9, ValueError, "is no .tflite file; expected TFL3"),
    "an empty file": (lambda: b"", ValueError, "is no .tflite file"),
    "the half of a file": (lambda: small()[:300], ValueError, "is damaged"),
    "no operators": (lambda: edited(small(), lambda model: setattr(model.subgraphs[0], "operators", [])),
                     ValueError, "is damaged.*never computed"),
    "a tensor out of range": (lambda: edited(small(), lambda model: setattr(
        model.subgraphs[0].operators[0], "inputs", [99, 1, -1])), ValueError, "is damaged"),
    "a circle": (lambda: edited(small(), lambda model: setattr(
        model.subgraphs[0].operators[0], "inputs", [*model.subgraphs[0].operators[0].outputs, 1, -1])),
        ValueError, "before it is computed"),
    "a short constant": (lambda: edited(small(), lambda model: [
        setattr(buffer, "data", buffer.data[:-8]) for buffer in model.buffers if buffer.data is not None
        and len(buffer.data) == 160]), ValueError, "is damaged.*bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_on_one_line(name, tmp_path):
  make, error, message = REFUSED[name]
  (tmp_path / "m.tflite").write_bytes(make())
  with pytest.raises(error, match=message) as raised:
    kq.load_model(tmp_path / "m.tflite")
  assert "\n" not in str(raised.value) and str(tmp_path / "m.tflite") in str(raised.value)


def test_there_is_no_such_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="check the path"):
    kq.from_tflite(tmp_path / "m.tflite")


def test_a_file_of_another_function_is_refused(monkeypatch):
  from kquant.graph.readers.tflite import table
  monkeypatch.setitem(table.OPERATORS, "TANH", table.OPERATORS["LOGISTIC"])
  with pytest.raises(ValueError, match="computes something else than its Keras form: output 0 differs by"):
    kq.from_tflite(file_of((1, 8), function=tf.tanh))


def test_damaged_bytes_never_crash(tmp_path):
  """In a process of its own: a crash of the runtime would end this one."""
  data = converted(models.build("mobile_block"))
  (tmp_path / "m.tflite").write_bytes(data)
  code = """
import sys
import numpy as np, kquant as kq
data = np.frombuffer(open(sys.argv[1], "rb").read(), np.uint8)
rng = np.random.default_rng(0)
for _ in range(40):
  bad = data.copy()
  places = rng.integers(0, 3000, 4)
  bad[places] = rng.integers(0, 256, 4)
  try:
    kq.from_tflite(bad.tobytes())
  except ValueError as error:
    assert "\\n" not in str(error), error
"""
  done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.tflite")], capture_output=True,
                        text=True)
  assert done.returncode == 0, done.stderr[-2000:]


# --- SavedModels -----------------------------------------------------------------------------------


class Network(tf.Module):
  """As other frameworks export: raw operators, channels first, a batch of one."""

  def __init__(self):
    super().__init__()
    self.kernel, self.bias = tf.Variable(C), tf.Variable(kernel(6))
    self.mean, self.classes = tf.Variable(kernel(6)), tf.Variable(kernel(6, 5))

  @tf.function(input_signature=[tf.TensorSpec((1, 4, 9, 9), name="pixels")])
  def classify(self, pixels):
    with tf.name_scope("stem"):
      x = tf.nn.conv2d(tf.transpose(pixels, [0, 2, 3, 1]), self.kernel, 2, "SAME") + self.bias
    x = tf.transpose(tf.nn.relu((x - self.mean) * 0.5), [0, 3, 1, 2])
    features = tf.reduce_mean(x, [2, 3])
    return {"logits": tf.matmul(features, self.classes), "features": features}

  @tf.function(input_signature=[tf.TensorSpec((None, None, None, 4), name="images")])
  def embed(self, images):
    return {"features": tf.reduce_mean(tf.nn.conv2d(images, self.kernel, 2, "SAME"), [1, 2])}

  @tf.function(input_signature=[tf.TensorSpec((1, 6), name="x")])
  def unknown(self, x):
    return tf.math.igamma(tf.abs(x), 1.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(module, {name: folder})"""
  module, folder = Network(), tmp_path_factory.mktemp("saved")
  tf.saved_model.save(module, folder / "one", signatures=module.classify)
  tf.saved_model.save(module, folder / "two", signatures={"a": module.classify, "b": module.embed,
                                                          "unknown": module.unknown})
  return module, folder


def test_a_saved_model_of_raw_operators_becomes_an_integer_file(saved, tmp_path):
  module, folder = saved
  made = kq.load_model(folder / "one")
  assert made.input_names == ["pixels"] and made.output_names == ["logits", "features"]
  assert "stem" in [layer.name for layer in made.layers]
  images = kernel(24, 4, 9, 9)
  for mine, key in zip(made(images), made.output_names):
    theirs = np.concatenate([module.classify(image[None])[key] for image in images])
    assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
  result = kq.quantize(made, images, effort="balanced")
  assert kq.export(result, tmp_path / "m.tflite", verify=images[:2]).verification.ok
  qmodel = kq.calibrate(kq.insert_quantizers(made), images)
  qmodel.compile("sgd", ["mse", "mse"])
  assert np.isfinite(qmodel.fit(images, [kernel(24, 5), kernel(24, 6)], verbose=0).history["loss"]).all()


def test_a_signature_is_chosen(saved):
  _, folder = saved
  with pytest.raises(ValueError, match="signatures a, b, unknown; choose one.*signature='a'"):
    kq.load_model(folder / "two")
  assert kq.load_model(folder / "two", signature="b").output_names == ["features"]
  made = kq.load_model(folder / "two", signature="b", input_shape=(9, 9, 4))
  assert made.input_shape == (None, 9, 9, 4)
  with pytest.raises(ValueError, match="has the signatures serving_default; choose one"):
    kq.load_model(folder / "one", signature="b")
  keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]).save(folder / "layers.keras")
  with pytest.raises(ValueError, match="expected no signature, got 'b': the layers of this model are read"):
    kq.load_model(folder / "layers.keras", signature="b")


def test_a_saved_model_with_an_operator_that_no_file_holds(saved):
  _, folder = saved
  with pytest.raises(kq.UnsupportedLayerError, match="no operator for Igamma") as error:
    kq.load_model(folder / "two", signature="unknown")
  assert "\n" not in str(error.value)


def test_a_saved_model_that_reads_files_is_refused(tmp_path):
  module = tf.Module()
  module.read = tf.function(lambda x: x + tf.strings.to_number(tf.io.read_file("number.txt")),
                            input_signature=[tf.TensorSpec((1, 6), name="x")])
  tf.saved_model.save(module, tmp_path / "m", signatures=module.read)
  with pytest.raises(ValueError, match="holds ReadFile, which run code or touch files"):
    kq.load_model(tmp_path / "m")


def test_a_damaged_saved_model(tmp_path):
  (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
  with pytest.raises(ValueError, match="saved_model.pb is damaged"):
    kq.load_model(tmp_path)
