"""python -m kquant.cli.analyze: what part each tensor and each layer has in the noise of a quantized model.

With --fix the tensors at fault are mended by local remedies, and the .tflite file is written.

The model is float, and is quantized as kquant.cli.ptq does it; or it has its quantizers, as --save_qmodel of
kquant.cli.ptq and kquant.cli.qat write it.
"""

from absl import flags

from kquant.cli import flags as shared

shared.define_model()
shared.define_path("output", "JSON file to write; with --fix the .tflite file")
shared.define_path("summary", "JSON file for what was measured")
shared.define_path("certificate", "JSON file: every tensor compared with our own integer arithmetic",
                   endings=(".json",))
shared.define_data_flags()
shared.define_method_flags()
shared.define_seed()
if not shared.is_defined("fix"):
  flags.DEFINE_bool("fix", False, "mend the tensors at fault of a float model by local remedies "
                    "(kq.diagnose), write the file, and say what was done")
  flags.DEFINE_integer("most_wide", 8, "with --fix: tensors that get 16 bits, at most", lower_bound=0)
  flags.DEFINE_bool("latency", False, "with --fix: measure the latency of the files before and after, and "
                    "what each remedy adds to bytes and latency")
if not shared.is_defined("images"):
  flags.DEFINE_integer("images", 64, "how many images to look at: of --eval; else of --calibration, those "
                       "that were not calibrated on, where there are any; with --fix the float model and "
                       "the file are judged by up to 512 with labels", lower_bound=2)
shared.define_report()
shared.define_node_data()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import analyze  # imports TensorFlow, which --help and a wrong flag do without
  analyze.run()


if __name__ == "__main__":
  shared.run(main, reads=("model", "weights", "import", "calibration", "eval"),
             requires=("calibration", "output"))
