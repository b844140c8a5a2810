"""verify: faults planted in the file, the model or the encodings are each found."""

import copy
import dataclasses

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from tests import models
from tflite_export.file import writer
from tflite_export.file.reader import from_bytes
from tflite_export.lowering.lower import lower, with_border
from tflite_export.program.program import IntOp, IntTensor
from tflite_export.proof.errors import VerificationError
from tflite_export.proof.verifier import verify


def network():
  """A network in which every fault below changes something: square kernels, a fused ReLU, two outputs."""
  image = keras.Input((7, 7, 4), name="image")
  conv = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(image)
  other = layers.Conv2D(4, 1, strides=2, name="other")(image)
  both = layers.Concatenate(name="both")([layers.ReLU(name="relu")(conv), other])  # one grid: RELU is fused
  x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(both)
  x = layers.LeakyReLU(0.3, name="leaky")(layers.Subtract(name="minus")([both, x]))
  pooled = layers.MaxPooling2D(2, name="pool")(x)
  x = layers.Dense(8, name="square")(layers.Flatten(name="flat")(layers.AveragePooling2D(2, name="mean")(x)))
  x = layers.Softmax(name="softmax")(layers.Dense(5, name="logits")(x))
  return models.randomized(keras.Model(image, [pooled, x], name="network"))


@dataclasses.dataclass
class Case:
  """What is verified."""

  model: keras.Model
  encodings: kq.Encodings
  program: object
  images: list

  def verify(self, data, *, program=True, images=True, **changed):
    given = {"model": self.model, "encodings": self.encodings, **changed}
    return verify(data, given["model"], given["encodings"], program=self.program if program else None,
                  images=self.images if images else None)


@pytest.fixture(scope="module")
def case():
  keras.utils.set_random_seed(0)
  model = network()
  images = models.sample_inputs(model, images=16)
  result = kq.quantize(model, images[0], effort=None)
  program = lower(result.model, result.encodings)
  assert [op.options["fused_activation_function"] for op in program.ops if op.source == "conv"] == ["RELU"]
  return Case(result.model, result.encodings, program, [images[0][:4]])


def op_of(program, source, kind=None):
  return next(op for op in program.ops if op.source == source and kind in (None, op.kind))


def bumped(values, index=0, by=1):
  """Returns a copy with one element changed, away from the end of its type."""
  values = np.array(values, order="C")
  flat = values.reshape(-1)
  flat[index] += by if flat[index] <= 0 else -by
  return values


# --- the file as it should be ----------------------------------------------------------------------


def test_faithful_file_is_verified_layer_by_layer(case):
  found = case.verify(writer.to_bytes(case.program))
  assert found.ok and found.problems == []
  assert found.weights_equal and found.biases_equal and found.encodings_equal
  assert found.images == 4 and not found.float_operators
  assert found.max_lsb <= 1
  calls = [op.source for op in case.program.ops if op.source not in ("conv", "flat")]
  assert set(found.layers) == {*calls, "relu", "flat"}
  assert max(found.layers.values()) == found.max_lsb


def test_verification_without_images_runs_nothing(case):
  found = case.verify(writer.to_bytes(case.program), images=False)
  assert found.ok and (found.images, found.layers, found.max_lsb) == (0, {}, 0)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_files_with_other_borders_are_verified_too(case, io):
  bordered = with_border(case.program, io)
  found = verify(writer.to_bytes(bordered), case.model, case.encodings, program=bordered, images=case.images)
  assert found.ok, found.problems
  assert found.images == 4 and found.max_lsb <= 1


def test_json_of_a_verification_holds_every_field(case):
  found = case.verify(writer.to_bytes(case.program))
  assert set(found.to_json()) == {field.name for field in dataclasses.fields(found)}


# --- faults in the file ----------------------------------------------------------------------------


def change_tensor(name, **fields):
  """A fault in a tensor: each field is replaced by what a function of the old value returns."""
  def plant(program):
    tensor = program.tensors[name]
    for field, change in fields.items():
      setattr(tensor, field, change(getattr(tensor, field)))
  return plant


def change_option(source, kind=None, **options):
  def plant(program):
    op = op_of(program, source, kind)
    assert all(op.options[name] != value for name, value in options.items())
    op.options = {**op.options, **options}
  return plant


def next_float(scale):
  return np.nextafter(np.asarray(scale, np.float32), np.float32(np.inf))


def one_ulp_of_one_channel(scale):
  scale = np.array(scale)
  scale[-1] = next_float(scale[-1])
  return scale


def transposed(kernel):
  return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 1, 2, 0)


# Found by comparing constants and grids with the encodings: without the program, without running.
STATIC = {
    "weight off by one": change_tensor("conv/kernel", data=bumped),
    "last weight off by one": change_tensor("logits/kernel", data=lambda q: bumped(q, -1)),
    "depthwise weight off by one": change_tensor("depthwise/kernel", data=lambda q: bumped(q, 17)),
    "bias off by one": change_tensor("square/bias", data=bumped),
    "activation scale off by an ulp": change_tensor("minus", scale=next_float),
    "input scale off by an ulp": change_tensor("image", scale=next_float),
    "kernel scale off by an ulp": change_tensor("conv/kernel", scale=one_ulp_of_one_channel),
    "bias scale off by an ulp": change_tensor("conv/bias", scale=one_ulp_of_one_channel),
    "zero point off by one": change_tensor("leaky", zero_point=bumped),
    "zero point of a moved tensor off by one": change_tensor("pool", zero_point=bumped),
    "square dense kernel not transposed": change_tensor("square/kernel", data=transposed),
    "square conv kernel with its ends swapped": change_tensor("conv/kernel", data=transposed),
    "conv kernel with its image transposed": change_tensor("conv/kernel",
                                                           data=lambda q: q.transpose(0, 2, 1, 3)),
    "channels of a kernel reversed": change_tensor("other/kernel", data=lambda q: q[::-1].copy()),
    "kernel of zeros": change_tensor("other/kernel", data=np.zeros_like),
    "one kernel scale for all channels": change_tensor("square/kernel", scale=lambda s: s[:1],
                                                       zero_point=lambda z: z[:1]),
}

# Found by comparing operators with the program, and by running without it.
COMPUTED = {
    "fused activation removed": change_option("conv", fused_activation_function="NONE"),
    "fused activation added": change_option("other", fused_activation_function="RELU"),
    "slope changed": change_option("leaky", alpha=0.5),
    "window of a pool moved": change_option("pool", "MAX_POOL_2D", stride_h=1, stride_w=1, filter_height=3,
                                            filter_width=3),
    "one row of a pool left out": change_option("pool", "MAX_POOL_2D", filter_height=1),
    "maximum for average": lambda program: setattr(op_of(program, "mean"), "kind", "MAX_POOL_2D"),
    "operands swapped": lambda program: op_of(program, "minus").inputs.reverse(),
    "operands of a concatenation swapped": lambda program: op_of(program, "both").inputs.reverse(),
    "addition for subtraction": lambda program: setattr(op_of(program, "minus"), "kind", "ADD"),
    "input of an operator exchanged": lambda program: op_of(program, "minus").inputs.__setitem__(1, "both"),
    "bias of another layer": lambda program: op_of(program, "other").inputs.__setitem__(2, "conv/bias"),
}

# Found by comparing with the program; some of these files no runtime loads.
STRUCTURAL = {
    "stride changed": change_option("conv", stride_h=1),
    "padding changed": change_option("depthwise", padding="VALID"),
    "dilation changed": change_option("depthwise", dilation_w_factor=2),
    "operator version changed": lambda program: setattr(op_of(program, "square"), "version", 4),
    "operator left out": lambda program: program.ops.remove(op_of(program, "softmax")),
    "operator twice": lambda program: program.ops.append(copy.deepcopy(op_of(program, "softmax"))),
    "operators reordered": lambda program: program.ops.insert(0, program.ops.pop(1)),
    "output missing": lambda program: program.outputs.pop(0),
    "outputs exchanged": lambda program: program.outputs.reverse(),
    "another output": lambda program: program.outputs.__setitem__(0, "leaky"),
    "tensor more": lambda program: program.add_tensor(IntTensor("more", (1,), "int8", [0.5], [0])),
    "tensor renamed": lambda program: _rename(program, "leaky", "leaked"),
    "shape changed": change_tensor("flat", shape=lambda shape: (1, *shape)),
    "type changed": change_tensor("softmax", dtype=lambda _: "uint8"),
}


def _rename(program, old, new):
  tensor = program.tensors.pop(old)
  tensor.name = new
  program.tensors[new] = tensor
  for op in program.ops:
    op.inputs = [new if name == old else name for name in op.inputs]
    op.outputs = [new if name == old else name for name in op.outputs]


def faulty(case, plant):
  program = copy.deepcopy(case.program)
  plant(program)
  data = writer.to_bytes(program)
  assert data != writer.to_bytes(case.program)
  return data


@pytest.mark.parametrize("fault", STATIC)
def test_fault_in_a_constant_or_grid_is_found_without_program_or_images(case, fault):
  found = case.verify(faulty(case, STATIC[fault]), program=False, images=False)
  assert not found.ok
  assert not (found.weights_equal and found.biases_equal and found.encodings_equal)


@pytest.mark.parametrize("fault", STATIC)
def test_fault_in_a_constant_or_grid_is_named_by_its_tensor(case, fault):
  data = faulty(case, STATIC[fault])
  clean, planted = copy.deepcopy(case.program), copy.deepcopy(case.program)
  STATIC[fault](planted)
  names = [name for name in clean.tensors if clean.tensors[name].difference(planted.tensors[name])]
  assert len(names) == 1
  assert [problem for problem in case.verify(data).problems if problem.startswith(f"{names[0]}:")]


@pytest.mark.parametrize("fault", [*STATIC, *COMPUTED, *STRUCTURAL])
def test_every_fault_is_found_against_the_program_without_running(case, fault):
  plant = {**STATIC, **COMPUTED, **STRUCTURAL}[fault]
  found = case.verify(faulty(case, plant), images=False)
  assert not found.ok
  assert all("\n" not in problem for problem in found.problems)


@pytest.mark.parametrize("fault", COMPUTED)
def test_fault_in_an_operator_is_found_by_running_it_beside_the_keras_layer(case, fault):
  found = case.verify(faulty(case, COMPUTED[fault]), program=False)
  assert not found.ok
  assert found.max_lsb > 1 or not found.layers


@pytest.mark.parametrize("fault", ["stride changed", "padding changed", "dilation changed", "output missing",
                                   "outputs exchanged", "another output"])
def test_structural_fault_is_found_by_running_too(case, fault):
  assert not case.verify(faulty(case, STRUCTURAL[fault]), program=False).ok


def test_one_flipped_bit_in_the_files_bytes_is_found_wherever_it_lies_in_a_kernel(case):
  data = writer.to_bytes(case.program)
  kernel = case.program.tensors["conv/kernel"].data.tobytes()
  assert data.count(kernel) == 1
  start = data.index(kernel)
  for offset in (0, len(kernel) // 2, len(kernel) - 1):
    flipped = bytearray(data)
    flipped[start + offset] ^= 1 << (offset % 8)
    found = case.verify(bytes(flipped), program=False, images=False)
    assert not found.weights_equal and found.biases_equal
    assert found.problems == ["conv/kernel: the file's integers differ from the chosen ones"]


def test_random_flipped_bits_never_pass_unless_they_change_nothing_that_is_read(case):
  data = writer.to_bytes(case.program)
  rng = np.random.default_rng(0)
  passed = 0
  for position in rng.integers(8, len(data), 60):
    flipped = bytearray(data)
    flipped[position] ^= 1 << rng.integers(8)
    try:
      same = not _differences(from_bytes(bytes(flipped)), case.program)
    except ValueError:
      same = False
    found = case.verify(bytes(flipped), images=False)
    assert found.ok <= same, position
    passed += found.ok
  assert passed < 60


def _differences(program, other):
  names = set(program.tensors) | set(other.tensors)
  wrong = [name for name in names if name not in program.tensors or name not in other.tensors
           or other.tensors[name].difference(program.tensors[name])]
  shape = lambda p: [(op.kind, op.version, op.inputs, op.outputs) for op in p.ops]
  return wrong or shape(program) != shape(other) or (program.inputs, program.outputs) != (
      other.inputs, other.outputs)


def test_float_tensor_in_the_middle_is_found_and_its_operators_are_named(case):
  def plant(program):
    position = program.ops.index(op_of(program, "leaky"))
    shape = program.tensors["minus"].shape
    program.add_tensor(IntTensor("float", shape, "float32"))
    program.add_tensor(IntTensor("back", shape, "int8", program.tensors["minus"].scale,
                                 program.tensors["minus"].zero_point))
    program.ops[position:position] = [IntOp("DEQUANTIZE", ["minus"], ["float"], version=2),
                                      IntOp("QUANTIZE", ["float"], ["back"])]
    op_of(program, "leaky").inputs = ["back"]
  for program in (False, True):
    found = case.verify(faulty(case, plant), program=program, images=False)
    assert not found.ok
    assert found.float_operators == ["DEQUANTIZE", "QUANTIZE"]
    assert any("operators on float tensors: DEQUANTIZE, QUANTIZE" in line for line in found.problems)


def _without_operands(base, kind):
  """For each operator of a kind: the program without its last inputs, or without its outputs."""
  for place, op in enumerate(base.ops):
    if op.kind == kind:
      for changed in (*({"inputs": op.inputs[:count]} for count in range(len(op.inputs))), {"outputs": []}):
        program = copy.deepcopy(base)
        program.ops[place] = dataclasses.replace(op, **changed)
        yield program


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "QUANTIZE",
                                  "DEQUANTIZE"])
def test_operators_without_their_operands_are_problems_and_no_exceptions(case, kind):
  base = with_border(case.program, "float32")
  programs = list(_without_operands(base, kind))
  assert len(programs) >= 2
  for program in programs:
    data = writer.to_bytes(program)
    assert not verify(data, None, case.encodings, program=base).ok
    verify(data, None, case.encodings)  # every constant may be there, under its key


def test_operators_that_lack_an_input_are_not_run(case):
  """LiteRT ends the process over both."""
  def without_bias(program):
    op_of(program, "depthwise").inputs.pop()

  def absent(program):
    op_of(program, "both").inputs[0] = ""

  found = case.verify(faulty(case, without_bias), program=False, images=False)
  assert found.problems == ["DEPTHWISE_CONV_2D of depthwise: 2 inputs, expected 3"]
  found = case.verify(faulty(case, absent), program=False, images=False)
  assert found.problems == ["CONCATENATION of both: 1 inputs, expected 2"]


@pytest.mark.parametrize("source, problem", [("leaky", "no operator makes 'leaky'"),
                                             ("flat", "LiteRT cannot run the file")])
def test_files_that_cannot_be_run_are_problems_and_no_exceptions(case, source, problem):
  def plant(program):
    op = op_of(program, source)
    op.inputs, op.outputs = op.inputs[::-1], [] if source == "leaky" else op.outputs
  (found,) = case.verify(faulty(case, plant), program=False).problems
  assert problem in found and found.startswith("cannot be run beside the Keras model: ")


def test_bias_in_the_place_of_the_kernel_is_a_problem_and_no_exception(case):
  def plant(program):
    op_of(program, "square").inputs[1:] = ["square/bias", "square/kernel"]
  found = case.verify(faulty(case, plant), program=False, images=False)
  assert "square/kernel: the file's integers differ from the chosen ones" in found.problems


def test_file_that_no_runtime_loads_is_a_problem_and_no_exception(case):
  def plant(program):
    op_of(program, "minus").inputs.pop()
  found = case.verify(faulty(case, plant), program=False)
  assert not found.ok


@pytest.mark.parametrize("data", [b"", b"no model", b"\0" * 64])
def test_bytes_that_are_no_file_are_a_problem(case, data):
  found = case.verify(data)
  assert not found.ok and "TFLite file" in found.problems[0]


def test_file_cut_off_anywhere_is_a_problem(case):
  data = writer.to_bytes(case.program)
  for end in (9, len(data) // 2, len(data) - 64):
    assert not case.verify(data[:end]).ok


def test_file_of_another_network_is_a_problem(case):
  model = models.build("conv_bn_relu")
  result = kq.quantize(model, models.sample_inputs(model)[0], effort=None)
  data = writer.to_bytes(lower(result.model, result.encodings))
  assert not case.verify(data).ok
  assert not case.verify(data, program=False, images=False).ok


# --- faults in the model and the encodings ---------------------------------------------------------


def clone(model):
  other = keras.models.clone_model(model)
  other.set_weights(model.get_weights())
  return other


@pytest.mark.parametrize("layer", ["conv", "other", "depthwise", "square", "logits"])
def test_kernel_of_the_keras_model_two_steps_off_shows_as_more_than_one_lsb(case, layer):
  model = clone(case.model)
  variable = model.get_layer(layer).weights[0]
  grid = case.encodings[f"{layer}/kernel"]
  integers = case.encodings.integers[f"{layer}/kernel"].astype(int)
  variable.assign(grid.dequantize(integers - 2 * np.sign(integers)))
  found = case.verify(writer.to_bytes(case.program), model=model)
  assert not found.ok
  assert found.weights_equal  # the file is right: running shows that the model is not
  (problem,) = found.problems
  assert problem.startswith({"conv": "relu"}.get(layer, layer)) and "LSB from the Keras layer" in problem


def test_layer_of_the_keras_model_exchanged_shows(case):
  config = case.model.get_config()
  for fields in config["layers"]:
    if fields["config"]["name"] == "leaky":
      fields["config"]["alpha"] = 0.1
  model = keras.Model.from_config(config)
  model.set_weights(case.model.get_weights())
  assert not case.verify(writer.to_bytes(case.program), model=model).ok


@pytest.mark.parametrize("key", ["conv/kernel", "square/bias"])
def test_integer_changed_in_the_encodings_alone_is_found(case, key):
  encodings = kq.Encodings(case.encodings.grids, case.encodings.integers)
  encodings.integers[key] = bumped(encodings.integers[key])
  found = case.verify(writer.to_bytes(case.program), encodings=encodings, images=False)
  assert [problem for problem in found.problems if problem.startswith(f"{key}:")]


@pytest.mark.parametrize("key", ["image", "relu", "conv/kernel", "logits/bias", "softmax"])
def test_grid_changed_in_the_encodings_alone_is_found(case, key):
  encodings = kq.Encodings(case.encodings.grids, case.encodings.integers)
  grid = encodings.grids[key]
  encodings.grids[key] = dataclasses.replace(grid, scale=next_float(grid.scale))
  found = case.verify(writer.to_bytes(case.program), encodings=encodings, images=False)
  assert not found.encodings_equal
  assert [problem for problem in found.problems if problem.startswith(f"{key}:")]


def test_key_missing_from_the_file_is_found(case):
  encodings = kq.Encodings(case.encodings.grids, case.encodings.integers)
  encodings.integers["gone/kernel"] = np.zeros((2, 2), np.int8)
  encodings.grids["gone"] = encodings.grids["image"]
  found = case.verify(writer.to_bytes(case.program), encodings=encodings, images=False)
  assert len(found.problems) == 2 and not found.weights_equal and not found.encodings_equal


def test_verification_error_is_no_value_error():
  assert not issubclass(VerificationError, ValueError)


def test_a_file_is_verified_by_its_path_and_its_names(tmp_path):
  x = keras.Input((4,), name="x")
  model = keras.Model(x, layers.Dense(2, name="y")(x))
  images = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  result = kq.quantize(model, images, effort=None)
  path = kq.export(result, tmp_path / "m.tflite").path
  assert verify(path, result.model, result.encodings, images=images[:2]).ok
  result.encodings.output_names = ["z"]
  found = verify(path, result.model, result.encodings)
  assert found.problems == ["the signature calls its outputs ['y'], expected ['z']"]
  with pytest.raises(ValueError, match="images are compared with the model"):
    verify(path, None, result.encodings, images=images)


@pytest.mark.parametrize("width, factor", [(9, 3), (8, 4), (20, 5)])
def test_centres_of_a_resize_of_16_bits_may_drift(width, factor, tmp_path):
  """They are summed up in steps of 1/1024 pixel, and pixels may be 65535 LSB apart."""
  x = keras.Input((4, width, 2), name="x")
  model = keras.Model(x, layers.UpSampling2D((1, factor), interpolation="bilinear")(x))
  images = np.sign(np.random.default_rng(0).normal(size=(8, 4, width, 2))).astype(np.float32)
  result = kq.quantize(model, images, config="int16x8", effort=None)
  found = kq.export(result, tmp_path / "m.tflite", verify=images).verification
  assert found.ok
  assert (found.max_lsb > 256) == (factor != 4)
