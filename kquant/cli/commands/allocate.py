"""What kquant.cli.allocate does: bits for each layer within a budget, and the curve of other budgets."""

import tf_keras as keras
from absl import flags

from kquant.allocation.allocate import allocate_bits
from kquant.allocation.results import Allocation
from kquant.analysis.page.page import report as report_page
from kquant.cli import budgets, file_flags, models
from kquant.cli import flags as shared
from kquant.cli.sources import open_source
from kquant.core.data import choose
from kquant.core.files import written_together
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import Recipe
from kquant.core.records import Report
from tflite_export.exporter import Exported

FLAGS = flags.FLAGS


def run() -> None:
  """Runs what the flags say."""
  shared.require_model("calibration", "output")
  file_flags.check_outputs("output", "plot", "report", reads=("model", "weights", "calibration"))
  if not budgets.are_given():
    raise ValueError("--budget_bytes, --budget_bops or --budget_latency_ms is missing; give one, such as the "
                     "bytes of int8.")
  config, report = shared.preset(), Report()
  with report.stage("load"):
    model = models.load()
    source = open_source(FLAGS.calibration, models.fixed_inputs(model), preprocess=FLAGS.preprocess)
    images = source.load(choose(len(source), FLAGS.calibration_samples, seed=FLAGS.seed))
  allocation = allocated(model, images, config, Recipe())
  seconds = {**report.seconds, **allocation.seconds}
  with written_together() as staged:
    shared.write_json(staged(FLAGS.output), {**allocation.to_json(), "seconds": seconds})
    if FLAGS.plot:
      allocation.plot().savefig(staged(FLAGS.plot), format="png")
    if FLAGS.report:
      report_page(staged(FLAGS.report), allocation)
  print(f"{allocation}\n\n{allocation.curve_table()}\n")
  print(f"{FLAGS.output}; seconds: {', '.join(f'{name} {value:.1f}' for name, value in seconds.items())}")


def allocated(model: keras.Model, images: list, config: QuantConfig, recipe: Recipe) -> Allocation:
  """Returns the bits within the budget of the flags.

  Args:
    config, recipe: all but the bits; layers are rounded in closed form where the recipe does not say.
  """
  config = config.following(Recipe(rounding="closed_form")).following(recipe.without(Recipe(finetune="none")))
  with budgets.processes():
    return allocate_bits(model, images, budget=budgets.budget(), **budgets.widths(), config=config,
                         seed=FLAGS.seed)


def check_bytes(allocation: Allocation, written: Exported) -> None:
  """Raises ValueError for a file beyond the budget, to which flags added operators at its border."""
  limit = allocation.budget.bytes
  if limit is not None and allocation.budget.storage == "file" and written.bytes > limit:
    raise ValueError(f"--budget_bytes={limit:,.0f}: expected a file of as many bytes or fewer, got "
                     f"{written.bytes:,}, {written.bytes - allocation.bytes:,} of them of --io, --batch, "
                     "--preprocess or other images; raise the budget by these.")
