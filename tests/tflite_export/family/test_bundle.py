"""Families of files and their bundle: equal codes, equal bytes, damage."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.core import nested_codes
from tests.anyprecision.networks import any_network, data
from tflite_export.family import container, exporter
from tflite_export.family.bundle import Bundle, Member, pack_members
from tflite_export.family.kernels import Kernel, WidthPart, common_codes
from tflite_export.file.reader import from_bytes

WIDTHS = (8, 5, 4, 3, 2, 1)


@pytest.fixture(scope="module")
def anymodel():
  keras.utils.set_random_seed(0)
  anymodel, (x, _) = any_network((2, 8), steps=True), data()
  anymodel.at(2).get_layer("middle_bn").gamma.assign([1.0, -0.5, 2.0, -1.0, 0.5, 0.25])
  anymodel.at(8).get_layer("middle_bn").gamma.assign([1.0, -0.5, 0.0, 1.0, 0.5, -0.25])
  for bits in (1, 3, 4, 5):
    anymodel.add_width(bits, x, batches=2)
  return anymodel


@pytest.fixture(scope="module")
def written(anymodel, tmp_path_factory):
  return kq.export_family(anymodel, tmp_path_factory.mktemp("out") / "family", verify=data()[0][:2])


def test_every_file_is_certified(written):
  assert tuple(written.files) == WIDTHS
  for bits, file in written.files.items():
    assert file.path == written.bundle.parent / f"w{bits}.tflite" and file.path.stat().st_size == file.bytes
    assert file.certificate["exact"] and file.verification.ok
    program = from_bytes(file.path.read_bytes())
    sizes = [tensor.data.size for name, tensor in program.tensors.items() if name.endswith("/kernel")]
    assert file.certificate["codes"] == {"shifted_from": 8, "kernels": len(sizes), "elements": sum(sizes),
                                         "differing": 0}
  assert written.bytes == written.bundle.stat().st_size


def test_a_kernel_of_other_codes_is_counted(written):
  program = from_bytes(written.files[4].path.read_bytes())
  other = program.tensors["middle/kernel"].data.copy()
  other.reshape(-1)[:2] += 1
  program.tensors["middle/kernel"].data = other
  assert Bundle(written.bundle).compared_codes(4, program)["differing"] == 2


def test_a_file_in_the_place_of_the_folder_is_refused(anymodel, tmp_path):
  (tmp_path / "taken").write_text("mine")
  with pytest.raises(ValueError, match=r"expected a folder, got .*taken, which is a file"):
    kq.export_family(anymodel, tmp_path / "taken")
  assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("widths", [4, (4.0,), (), (7.5, 8)])
def test_widths_of_other_kinds_are_refused(anymodel, tmp_path, widths):
  with pytest.raises(ValueError, match="A family has widths of 8, .* choose from these"):
    kq.export_family(anymodel, tmp_path / "f", widths=widths)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_bundle_gives_the_files_byte_by_byte(written, bits):
  assert Bundle(written.bundle).tflite(bits) == written.files[bits].path.read_bytes()


@pytest.mark.parametrize("bits", [5, 4, 3, 2, 1])
@pytest.mark.parametrize("name", ["middle/kernel", "depthwise/kernel"])
def test_codes_of_eight_bits_shifted_right_are_those_of_the_narrower_file(anymodel, written, bits, name):
  family = anymodel.family()
  codes = {}
  for width in (bits, 8):
    tensor = from_bytes(written.files[width].path.read_bytes()).tensors[name]
    signs = Kernel.of(tensor, 0).along(family[width].signs[name])
    alive = signs != 0
    codes[width] = nested_codes.codes_of((tensor.data.reshape(-1) * signs)[alive], width)
    if width == 8:
      codes[bits] = codes.pop(bits)[alive] if len(codes[bits]) == len(alive) else codes[bits]
  np.testing.assert_array_equal(codes[bits], nested_codes.narrower(codes[8], bits))


def test_narrow_kernels_are_packed(written):
  types = {bits: from_bytes(file.path.read_bytes()).tensors["middle/kernel"].dtype
           for bits, file in written.files.items()}
  assert types == {8: "int8", 5: "int8", 4: "int4", 3: "int4", 2: "int4", 1: "int4"}


def test_a_dead_channel_and_negative_gammas_are_told_by_multipliers(anymodel, written):
  assert anymodel.family((8,))[8].signs["middle/kernel"].tolist() == [1, -1, 0, 1, 1, -1]
  integers = from_bytes(written.files[8].path.read_bytes()).tensors["middle/kernel"].data
  np.testing.assert_array_equal(Bundle(written.bundle).kernels(8)["middle/kernel"], integers.reshape(-1))
  assert not integers[2].any()


def test_some_widths_alone(anymodel, tmp_path):
  written = kq.export_family(anymodel, tmp_path, widths=(2, 4), io="float32", batch=None, preprocess="unit")
  bundle = Bundle(written.bundle)
  assert bundle.widths == (4, 2) and written.files[4].certificate is None
  for bits in (2, 4):
    assert bundle.tflite(bits) == written.files[bits].path.read_bytes()


def test_files_of_an_older_family_do_not_stay_and_others_do(anymodel, tmp_path):
  kq.export_family(anymodel, tmp_path, widths=(2, 4, 8))
  for name in ("w1.tflite", "notes.txt"):
    (tmp_path / name).write_bytes(b"the user's")
  (tmp_path / "w4.tflite").write_bytes(b"replaced by the user")
  kq.export_family(anymodel, tmp_path, widths=(8, 5))
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      "family.kqf", "notes.txt", "w1.tflite", "w4.tflite", "w5.tflite", "w8.tflite"]


def test_a_family_that_cannot_be_written_leaves_the_older_one(anymodel, tmp_path, monkeypatch):
  kq.export_family(anymodel, tmp_path, widths=(2, 8))
  older = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  def full(members):
    raise OSError("No space left")
  monkeypatch.setattr(exporter, "pack_members", full)
  with pytest.raises(OSError, match="No space left"):
    kq.export_family(anymodel, tmp_path, widths=(8, 5))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == older


def test_a_bundle_is_read_without_tensorflow(written):
  code = ("import sys\nfrom tflite_export.family.bundle import Bundle\n"
          f"print(len(Bundle({str(written.bundle)!r}).tflite(4)))\nsys.exit('tensorflow' in sys.modules)")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert int(done.stdout) == written.files[4].bytes


def test_reading_is_by_hand():
  # Channel 0: code 0b10111000 = 184, of 3 bits 5, 2 * 5 - 7 = 3; multiplier -0.5 changes its sign.
  kernels = [Kernel(place=0, count=4, channels=2, inner=2), Kernel(place=4, count=1, channels=1, inner=1)]
  # Words of 8 bits: 0x3F00 and 0x3E80 (0.5, 0.25), base 0x3E80 and a byte each; 0x3F80 (1) is the base alone.
  section = struct.pack("<2BH2BH1I2B2x", 8, 1, 0x3E80, 8, 0, 0x3F80, 0, 0x80, 0)
  widest = WidthPart.unpack(memoryview(section), kernels)
  assert (widest.scales.tolist(), widest.signs.tolist()) == ([0.5, 0.25, 1], [1, 1, 1])
  assert widest.pack(kernels) == section
  # Of 3 bits: -0.5 is 0x8000 more, in two bytes; channel 1 is dead; 16 is 2^4 times 1: a base of 4 << 7.
  section = struct.pack("<2BH2BH2I2H", 3, 2, 0, 3, 0, 4 << 7, 1, 1, 0x8000, 0)
  part = WidthPart.unpack(memoryview(section), kernels, widest)
  bits, scales, signs = part.of_kernel(0, kernels)
  assert (bits, scales.tolist(), signs.tolist()) == (3, [0.5, 0.25], [-1, 0])
  assert part.of_kernel(1, kernels)[1].tolist() == [16]
  assert kernels[0].along(signs).tolist() == [-1, -1, 0, 0]
  assert (nested_codes.integers_of([176, 9], bits) * -1).tolist() == [-3, 7]
  assert part.pack(kernels, widest) == section


# --- what does not nest ----------------------------------------------------------------------------


def test_codes_that_are_no_truncation_are_an_error():
  kernel, signs = Kernel(0, 2, 1, 2), np.int8([1])
  wide, narrow = np.int8([100, -100]), np.int8([3, -3])
  assert common_codes("k", [(8, wide, signs), (2, narrow, signs)], kernel).tolist() == [228, 28]
  with pytest.raises(ValueError, match="Kernel 'k': its codes of 2 bits are not those"):
    common_codes("k", [(8, wide, signs), (2, narrow[::-1], signs)], kernel)


def test_a_file_that_was_changed_is_not_given(written):
  members = {}
  for bits in (8, 4):
    program = Bundle(written.bundle).program(bits)
    names = {name: bits for name in ("middle/kernel", "depthwise/kernel")}
    signs = {name: np.ones(program.tensors[name].scale.size, np.int8) for name in names}
    members[bits] = Member(program, b"another file", names, signs)
  with pytest.raises(ValueError, match="no nested code|not those of more bits"):
    pack_members(members)  # signs are not all 1
  path = written.bundle.with_name("changed.kqf")
  path.write_bytes(pack_members({8: members[8]}))
  with pytest.raises(ValueError, match="changed.kqf: its file of 8 bits is not the one that was verified"):
    Bundle(path).tflite(8)


def test_paper_mode_and_other_results_make_no_family(tmp_path):
  with pytest.raises(ValueError, match="mode 'paper' do not follow"):
    kq.export_family(any_network((2, 8), mode="paper"), tmp_path)
  with pytest.raises(TypeError, match="AnyPrecisionModel.*got str"):
    kq.export_family("model", tmp_path)


@pytest.mark.parametrize("widths", [(), (32,), (8, 7)])
def test_widths_that_there_are_not(anymodel, widths, tmp_path):
  with pytest.raises(ValueError, match=r"A family has widths of 8, 5, 4, 3, 2, 1 bits here, got"):
    kq.export_family(anymodel, tmp_path / "none", widths=widths)
  assert not (tmp_path / "none").exists()


# --- damage ----------------------------------------------------------------------------------------


def opened(path, contents):
  """Reads every width of a damaged bundle; returns the message of the error."""
  path.write_bytes(contents)
  with pytest.raises(ValueError) as error:
    bundle = Bundle(path)
    for bits in bundle.widths:
      bundle.tflite(bits)
  message = str(error.value)
  assert message.startswith(f"{path}: ") and "\n" not in message
  return message


def test_every_cut_and_every_changed_byte_is_an_error_of_one_line(written, tmp_path):
  contents, rng = written.bundle.read_bytes(), np.random.default_rng(0)
  for length in (0, 3, 7, 40, *rng.integers(8, len(contents) - 8, 40)):
    opened(tmp_path / "cut.kqf", contents[:length])
  used = np.concatenate([np.arange(40), rng.integers(0, len(contents), 100)])
  padding = _padding(contents)
  for place in used[~padding[used]]:
    changed = bytearray(contents)
    changed[place] ^= 1 << int(rng.integers(8))
    opened(tmp_path / "changed.kqf", bytes(changed))


def _padding(contents):
  """Returns which bytes of a bundle lie between its sections."""
  free = np.ones(len(contents), bool)
  count = struct.unpack_from("<H", contents, 6)[0]
  free[:12 + 24 * count] = False
  for index in range(count):
    place, length = struct.unpack_from("<QQ", contents, 8 + 24 * index + 8)
    free[place:place + length] = False
  return free


def rewritten(contents, **changed):
  """A bundle with sections replaced, its checksums right."""
  return container.pack({**{tag: bytes(part) for tag, part in container.unpack(contents).items()}, **changed})


def test_sections_that_do_not_fit_are_an_error_of_one_line(written, tmp_path):
  contents = written.bundle.read_bytes()
  sections = {tag: bytes(part) for tag, part in container.unpack(contents).items()}
  meta = container.expand(sections["META"])
  bomb = container.compress(b" " * (container.MOST_UNPACKED + 1))
  cases = {
      "KERN": [sections["KERN"][:-1], sections["KERN"][16:], b"\xff" * len(sections["KERN"]),
               bytes(len(sections["KERN"]))],
      "CODE": [sections["CODE"][:-1], bytes(len(sections["CODE"]))],
      "W004": [sections["W004"][:-4], b"\x09" + sections["W004"][1:], sections["W004"][:4] + b"\xff" * 4000,
               sections["W004"][:1] + b"\x03" + sections["W004"][2:], b""],
      "BIAS": [bomb, b"", *(container.compress(bytes(length)) for length in (0, 7, 800))],
      "CONS": [bomb, sections["CONS"][:-9], container.compress(b"")],
      "META": [bomb, b"", container.compress(b"[]"), container.compress(b"{}"),
               container.compress(b"[" * 9999),
               container.compress(meta.replace(b'"items"', b'"other"')),
               container.compress(meta.replace(b'"bias"', b'"kernel"')),
               container.compress(meta.replace(b"CONV_2D", b"NO_SUCH")),
               container.compress(meta.replace(b'"shape": [6', b'"shape": [-6')),
               container.compress(meta.replace(b'"shape": [6', b'"shape": [60000000000')),
               container.compress(meta.replace(b'"sha256": "', b'"sha256": "0'))]}
  for tag, parts in cases.items():
    for part in parts:
      opened(tmp_path / "other.kqf", rewritten(contents, **{tag: part}))


def test_other_files_and_versions(written, tmp_path):
  contents = bytearray(written.bundle.read_bytes())
  assert "expected a kquant bundle" in opened(tmp_path / "m.kqf", b"TFL3" + bytes(100))
  contents[4] = 9
  assert "version 2, got 9" in opened(tmp_path / "m.kqf", bytes(contents))
  with pytest.raises(FileNotFoundError):
    Bundle(tmp_path / "none.kqf")
  with pytest.raises(ValueError, match="has no width of 7 bits, only 8, 5"):
    Bundle(written.bundle).program(7)


def test_checksums_are_crc32_by_hand():
  contents = container.pack({"CODE": b"123456789"})
  tag, checksum, place, length = struct.unpack_from("<4sIQQ", contents, 8)
  assert (tag, checksum, place, length) == (b"CODE", 0xCBF43926, 40, 9)
  assert contents[place:place + length] == b"123456789" and len(contents) == 56
  assert struct.unpack_from("<I", contents, 32)[0] == zlib.crc32(contents[:32])
