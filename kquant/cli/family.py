"""python -m kquant.cli.family: a bundle in, the certified .tflite files of its widths out. No TensorFlow.

`kquant.export_family` and `kquant.cli.qat --any_precision` make bundles.
"""

from absl import flags

from kquant.cli import flags as shared

shared.define_path("bundle", "the bundle: family.kqf of kquant.export_family", endings=(".kqf",))
flags.DEFINE_list("bits", None, "which widths, 1 to 8, separated by commas; where left out, all")
shared.define_path("output", "the .tflite file to write; for several widths as m{bits}.tflite")
shared.define_path("certificate", "JSON file: every tensor compared with our own integer arithmetic; for "
                   "several widths as m{bits}.json", endings=(".json",))
shared.define_seed()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import family  # imports LiteRT, which --help and a wrong flag do without
  family.run()


if __name__ == "__main__":
  shared.run(main, reads=("bundle",), tensorflow=False)
