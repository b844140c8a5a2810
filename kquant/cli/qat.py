"""python -m kquant.cli.qat: quantization-aware training of a classifier, labelled images in, .tflite out."""

from absl import flags

from kquant.cli import flags as shared
from kquant.cli import tiling
from kquant.core.tensor_spec import GRADIENT_QUANTIZERS

shared.define_model_flags()
shared.define_calibration_flags()
shared.define_preprocess()
shared.define_preset()
tiling.define()
shared.define_path("train", "labelled images to train on: a folder (labels.csv: file,label, or a folder a "
                   "class), .npz (x, y) or .csv (a column label)")
shared.define_path("eval", "images to judge by, as for --train")
flags.DEFINE_enum("quantizer", "lsq", shared.TRAINED_QUANTIZERS, "how grids are trained; in_hindsight and "
                  "current_minmax are of activations, weights then have moving_average")
flags.DEFINE_integer("gradients", None, "bits of the gradients that flow back into layers with weights; left "
                     "out they are float", lower_bound=2, upper_bound=8)
flags.DEFINE_enum("gradient_range", None, GRADIENT_QUANTIZERS, "how the ranges of gradients are found: known "
                  "before the gradient (in_hindsight, where it is left out) or from it")
flags.DEFINE_enum("batch_norm", "fold", ["fold", "train", "absorb"],
                  "folded before the training, learning within the kernels, or behind them")
flags.DEFINE_bool("distill", False, "also learn the float model's features and answers, beside the labels")
flags.DEFINE_bool("freeze_oscillations", False, "freeze weights of at most 4 bits that flip back and forth")
flags.DEFINE_integer("epochs", 20, "passes over --train", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "images of a step", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "of Adam at the start; it falls to 0 along a half cosine",
                   lower_bound=0.0)
shared.define_path("log_dir", "folder for loss, accuracy and oscillations of each epoch, for TensorBoard")
shared.define_path("checkpoint", "folder for the state of the training, written after each epoch")
flags.DEFINE_bool("resume", False, "go on with the training in --checkpoint")
shared.define_path("save_model", ".keras file for the finalised model, which kquant.cli.export reads",
                   endings=(".keras",))
shared.define_path("save_qmodel", ".keras file for the trained model with its quantizers",
                   endings=(".keras",))
shared.define_path("encodings", "JSON file for every grid (the integers in the .npz beside it)",
                   endings=(".json",))
shared.define_report()
flags.DEFINE_list("any_precision", None, "train these widths at once, as 1,2,4,8, with 32 for float: one set "
                  "of kernels, in place of --preset, --quantizer, --batch_norm, --distill, "
                  "--tile_squeeze_excite and --output")
shared.define_path("bundle", "with --any_precision: the file that holds every width, which kquant.cli.family "
                   "reads", endings=(".kqf",))


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import qat  # imports TensorFlow, which --help and a wrong flag do without
  qat.run()


if __name__ == "__main__":
  shared.run(main, reads=("model", "weights", "import", "train", "calibration", "eval"),
             requires=("train",))
