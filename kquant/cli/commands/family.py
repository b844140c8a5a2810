"""What kquant.cli.family does: a bundle in, the certified .tflite files of its widths out."""

from typing import Any

import numpy as np
from absl import flags

from kquant.cli import file_flags
from kquant.cli import flags as shared
from kquant.cli.native_messages import import_tensorflow_quietly
from kquant.core.files import written_together
from kquant.core.text import text_table
from tflite_export.family.bundle import Bundle
from tflite_export.file.reader import from_bytes
from tflite_export.program.program import IntTensor
from tflite_export.proof.errors import VerificationError

FLAGS = flags.FLAGS


def run() -> None:
  """Runs what the flags say."""
  shared.require("bundle", "output")
  file_flags.check_outputs("output", "certificate", reads=("bundle",))
  bundle = Bundle(FLAGS.bundle)
  widths = _widths(bundle)
  names = {flag: _names(flag, widths) for flag in ("output", "certificate") if FLAGS[flag].value}
  rows = []
  with written_together() as staged:
    for index, bits in enumerate(widths):
      contents, proof = bundle.tflite(bits), "equal to the file that was verified"
      staged(names["output"][index]).write_bytes(contents)
      if FLAGS.certificate:
        certificate, proof = _certified(contents, names["output"][index])
        certificate["codes"] = bundle.compared_codes(bits, from_bytes(contents))
        shared.write_json(staged(names["certificate"][index]), certificate)
      rows.append((bits, names["output"][index], f"{len(contents):,}", proof))
  print(text_table(("bits", "file", "bytes", ""), rows))


def _widths(bundle: Bundle) -> list[int]:
  """Returns the widths of --bits."""
  if FLAGS.bits is None:
    return list(bundle.widths)
  if not FLAGS.bits or not all(bits.isdecimal() and int(bits) in bundle.widths for bits in FLAGS.bits):
    raise ValueError(f"--bits={','.join(FLAGS.bits)}: {FLAGS.bundle} has the widths "
                     f"{','.join(map(str, bundle.widths))}; choose from these.")
  return list(dict.fromkeys(map(int, FLAGS.bits)))


def _names(flag: str, widths: list[int]) -> list[str]:
  """Returns the file of each width that a flag names."""
  path = FLAGS[flag].value
  if widths[1:] and "{bits}" not in path:
    ending = "json" if flag == "certificate" else "tflite"
    raise ValueError(f"--{flag}={path}: {len(widths)} widths need as many names; write {{bits}} where they "
                     f"differ, as in m{{bits}}.{ending}, or choose one width with --bits.")
  return [path.replace("{bits}", str(bits)) for bits in widths]


def _certified(contents: bytes, path: str) -> tuple[dict[str, Any], str]:
  """Returns (the certificate of a file on random inputs, what it says); this alone imports TensorFlow."""
  import_tensorflow_quietly()
  from kquant.cli.running import RANDOM_INPUTS, exactness
  from tflite_export.proof.certificate import certify, inexact_operators
  program, rng = from_bytes(contents), np.random.default_rng(FLAGS.seed)
  inputs = [_random_inputs(program.tensors[name], RANDOM_INPUTS, rng) for name in program.inputs]
  certificate = certify(contents, inputs, seed=FLAGS.seed)
  problems = inexact_operators(certificate)
  if problems:
    raise VerificationError(f"{path}: not written, {problems[0]}")
  return certificate, exactness(certificate, "certified")


def _random_inputs(tensor: IntTensor, count: int, rng: np.random.Generator) -> np.ndarray:
  """Returns random numbers for an input; of indices the first one, which every table has."""
  shape = (count, *tensor.shape[1:])
  if tensor.dtype in ("float32", "int32"):
    return (rng.normal(size=shape) if tensor.dtype == "float32" else np.zeros(shape)).astype(tensor.dtype)
  limits = np.iinfo(tensor.dtype)
  return rng.integers(limits.min, limits.max, shape, dtype=tensor.dtype, endpoint=True)
