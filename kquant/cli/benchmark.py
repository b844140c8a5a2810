"""python -m kquant.cli.benchmark: how long a .tflite file takes, operator by operator, and what it needs.

Two files run by turns, so that the load of the machine is the same for both. LiteRT's Python interpreter
gives no time of an operator, so each is timed as a file of its own, all of them by turns in the order of the
network: run again and again alone, an operator finds its weights in the cache. The page says how near their
sum comes to the whole.
"""

from absl import flags

from kquant.cli import flags as shared

shared.define_path("tflite", "one .tflite file, or two with a comma between")
shared.define_path("summary", "JSON file for what was measured")
if not shared.is_defined("threads"):
  flags.DEFINE_integer("threads", 1, "CPU threads of a run", lower_bound=1)
  flags.DEFINE_integer("runs", 50, "runs of each file, and of each operator", lower_bound=1)


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import benchmark  # imports TensorFlow, which --help and a wrong flag do without
  benchmark.run()


if __name__ == "__main__":
  shared.run(main)
