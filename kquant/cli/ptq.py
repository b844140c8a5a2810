"""python -m kquant.cli.ptq: float Keras model in, verified full-integer .tflite out.

Without flags it trains a small network on scikit-learn's digits and quantizes that.
"""

from absl import flags

from kquant.cli import budgets, tiling
from kquant.cli import flags as shared
from kquant.core.quant_config import RECURRENT_FORMS

shared.define_model_flags()
shared.define_data_flags()
shared.define_file_flags()
shared.define_method_flags()
budgets.define_flags()
tiling.define()
flags.DEFINE_bool("split_outputs", False, "tensors that a Concatenate joins at the end of the model become "
                  "outputs of their own, each with its own scale")
flags.DEFINE_enum("recurrent", "unrolled", RECURRENT_FORMS, "recurrent layers in the file: operators for "
                  "each step, or an LSTM as one operator, smaller and slower; auto: where that is possible")
shared.define_path("save_model", ".keras file for the finalised model, which kquant.cli.export reads",
                   endings=(".keras",))
shared.define_path("save_qmodel", ".keras file for the calibrated model with its quantizers",
                   endings=(".keras",))
shared.define_report()
shared.define_node_data()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import ptq  # imports TensorFlow, which --help and a wrong flag do without
  ptq.run()


if __name__ == "__main__":
  shared.run(main, reads=("model", "weights", "import", "calibration", "eval"))
