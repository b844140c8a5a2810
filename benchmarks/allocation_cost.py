"""What kq.allocate_bits takes, and how near its latencies are to those of files.

    python benchmarks/allocation_cost.py [--shared=../shared] [--models=v2] [--write]
    python benchmarks/allocation_cost.py --latency [--models=resnet8,v1] [--write]

The first runs it once for three quarters of the bytes of int8 and shows the seconds of its stages and the
most memory of the process. The second times each operator by itself and compares the sum with
the whole file, run by LiteRT on one thread: files of one width, and the plan of a latency between them.
"""

import resource
import time

from ptq import MODELS, arguments, data_of, describe, images_of, load, write_section

TITLE, LATENCY_TITLE = "Mixed precision: time and memory", "Mixed precision: latency"
PRESETS = ("int8", "w4a8", "int16x8")
PART = 0.75


def time_table(names: list[str], data) -> str:
  """Returns the seconds of the stages of an allocation, and the memory, as Markdown."""
  import kquant as kq
  lines = ["| model | images | wall seconds | CPU seconds | GB | stages |", "|---|---|---|---|---|---|"]
  for name in names:
    model, calibration = load(name, data), images_of(name, data, drawn=True)[0]
    wall, processor = time.perf_counter(), time.process_time()
    allocation = kq.allocate_bits(model, calibration, budget=PART)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in allocation.seconds.items())
    lines.append(f"| {MODELS[name]} | {len(calibration)} | {wall:.1f} | {processor:.1f} | {memory:.1f} | "
                 f"{stages} |")
  return "\n".join(lines)


def latency_table(names: list[str], data) -> str:
  """Returns predicted and measured milliseconds of files as Markdown."""
  import kquant as kq
  from kquant.allocation.latency import FileLatency
  from kquant.doctor.files import contents, milliseconds
  lines = ["| model | file | predicted ms | measured ms | predicted / measured |", "|---|---|---|---|---|"]
  for name in names:
    model, calibration = load(name, data), images_of(name, data, drawn=True)[0]
    files = {preset: contents(kq.quantize(model, calibration, config=preset, effort="fast"))
             for preset in PRESETS}
    table = kq.measure_latency(list(files.values()))
    predicted = {label: FileLatency(file, table).total for label, file in files.items()}
    budget = kq.Budget(latency_ms=(predicted["int8"] + predicted["int16x8"]) / 2, latencies=table)
    allocation = kq.allocate_bits(model, calibration, budget=budget)
    label = f"allocate_bits, {budget.latency_ms:.2f} ms"
    files[label] = contents(kq.quantize(model, calibration, config=allocation.config))
    predicted[label] = allocation.latency_ms
    for label, measured in zip(files, milliseconds(list(files.values()))):
      lines.append(f"| {MODELS[name]} | {label} | {predicted[label]:.3f} | {measured:.3f} | "
                   f"{predicted[label] / measured:.2f} |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--models", default=None)
  parser.add_argument("--latency", action="store_true")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  models = flags.models or ("resnet8,v1" if flags.latency else "v2")
  body = (latency_table if flags.latency else time_table)(models.split(","), data)
  print(body)
  if flags.write:
    command = " ".join(["python benchmarks/allocation_cost.py", *["--latency"] * flags.latency,
                        f"--models={models}"])
    write_section(LATENCY_TITLE if flags.latency else TITLE, f"{describe(command)}\n\n{body}")


if __name__ == "__main__":
  main()
