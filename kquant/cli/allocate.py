"""python -m kquant.cli.allocate: bits for each layer within a budget, and what other budgets would bring.

kquant.cli.ptq with the same flags writes the .tflite file.
"""

from kquant.cli import budgets
from kquant.cli import flags as shared

shared.define_model()
shared.define_path("output", "JSON file to write")
shared.define_path("plot", "PNG file for the curve", endings=(".png",))
shared.define_path("report", "HTML page of the curve, the bits and the noise, one file without network "
                   "access", endings=(".html",))
shared.define_calibration_flags()
shared.define_preprocess()
shared.define_preset()
shared.define_seed()
budgets.define_flags()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import allocate  # imports TensorFlow, which --help and a wrong flag do without
  allocate.run()


if __name__ == "__main__":
  shared.run(main, reads=("model", "weights", "import", "calibration"), requires=("calibration", "output"))
