"""The C header makes the weights that Python makes; on damaged bundles it says so and reads nothing else."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
import tflite_export.family
from kquant.core import nested_codes
from tests.anyprecision.networks import any_network, data
from tflite_export.family import container
from tflite_export.family.bundle import Bundle

HEADER = pathlib.Path(tflite_export.family.__file__).with_name("kquant_family.h")
GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed: the C header is not compiled")
OK, NO_BUNDLE, VERSION, CUT_OFF, DAMAGED, NO_WIDTH = range(6)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
  """The compiled program, with checks of every access."""
  program = tmp_path_factory.mktemp("c") / "extract"
  command = [GCC, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{HEADER.parent}",
             pathlib.Path(__file__).with_name("extract.c"),
             "-o", program]
  subprocess.run(command, check=True, capture_output=True)
  return program


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  keras.utils.set_random_seed(0)
  anymodel, (x, _) = any_network((2, 8)), data()
  anymodel.at(8).get_layer("middle_bn").gamma.assign([1.0, -0.5, 0.0, 1.0, 0.5, -0.25])
  for bits in (1, 3, 4, 5, 6, 7):
    anymodel.add_width(bits, x, batches=1)
  return kq.export_family(anymodel, tmp_path_factory.mktemp("out")).bundle


def run(extractor, bundle, bits, output, *args):
  done = subprocess.run([extractor, bundle, str(bits), output, *args], capture_output=True, text=True)
  assert not done.stderr, done.stderr[:2000]
  return done.returncode


@pytest.mark.parametrize("bits", nested_codes.WIDTHS)
@pytest.mark.parametrize("place", [(), ("in_place",)])
def test_weights_of_every_kernel_are_those_of_python(extractor, bundle, bits, place, tmp_path):
  assert run(extractor, bundle, bits, tmp_path / "w", *place) == OK
  read, stored = Bundle(bundle), (tmp_path / "w").read_bytes()
  program = read.program(bits)
  for name, integers in read.kernels(bits).items():
    own, stored = np.frombuffer(stored[:integers.size], np.int8), stored[integers.size:]
    np.testing.assert_array_equal(own, integers)
    scale = program.tensors[name].scale
    multipliers, stored = np.frombuffer(stored[:scale.nbytes], "<f4"), stored[scale.nbytes:]
    np.testing.assert_array_equal(np.abs(multipliers), scale)
  assert not stored


def test_damage_is_told(extractor, bundle, tmp_path):
  contents, rng = bundle.read_bytes(), np.random.default_rng(0)
  sections = {tag: bytes(part) for tag, part in container.unpack(contents).items()}
  other = lambda **changed: container.pack({**sections, **changed})
  flipped = bytearray(contents)
  flipped[int(rng.integers(400, 1000))] ^= 4
  cases = [(b"TFL3" + contents[4:], NO_BUNDLE), (contents[:4] + b"\1" + contents[5:], VERSION),
           (contents[:100], CUT_OFF), (contents[:-300], CUT_OFF), (b"", NO_BUNDLE), (bytes(flipped), DAMAGED),
           (other(KERN=sections["KERN"][:-1]), DAMAGED), (other(KERN=b"\xff" * 64), DAMAGED),
           (other(KERN=bytes(64)), DAMAGED), (other(CODE=sections["CODE"][:-1]), DAMAGED),
           (other(W004=sections["W004"][:16]), DAMAGED),
           (other(W004=b"\x09" + sections["W004"][1:]), DAMAGED),
           (other(W004=sections["W004"][:1] + b"\3" + sections["W004"][2:]), DAMAGED),
           (other(W004=sections["W004"][:-4]), DAMAGED),
           (other(W004=sections["W004"][:16] + b"\xff" * 400), DAMAGED)]
  for index, (damaged, expected) in enumerate(cases):
    (tmp_path / "m.kqf").write_bytes(damaged)
    assert run(extractor, tmp_path / "m.kqf", 4, tmp_path / "w") == expected, index


def test_a_width_that_there_is_not(extractor, bundle, tmp_path):
  for bits in (0, 9, -1):
    assert run(extractor, bundle, bits, tmp_path / "w") == NO_WIDTH


def test_the_header_is_short():
  assert len(HEADER.read_text().splitlines()) < 300
