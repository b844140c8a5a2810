"""kquant against tf.lite.TFLiteConverter: full-integer PTQ of real models on the same images.

    python benchmarks/ptq.py [--shared=../shared] [--runs=3] [--models=v2,v1,resnet8] [--write]

For each model both tools quantize in fresh processes, in turn; the files are then judged by LiteRT on
the same held-back images, at the input of the final softmax, and timed in interleaved runs.
`--write` puts the tables into benchmarks/results.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.md"
MODELS = {"v2": "mobilenet_v2_1.0_224", "v1": "mobilenet_v1_0.25_224", "resnet8": "resnet8_cifar10"}


def images_of(name: str, data: pathlib.Path, *, drawn: bool = False):
  """Returns (calibration images, images to judge by, their labels) of a model of the shared data.

  Args:
    drawn: the MobileNets are calibrated on 128 images drawn from all 500, in place of the first in label
      order: those are animals, and most of the others are not.
  """
  if name == "resnet8":
    with np.load(data / "cifar10.npz") as stored:
      return (stored["x_train"][:256].astype(np.float32), stored["x_test"].astype(np.float32),
              stored["y_test"].reshape(-1))
  from kquant.core import images
  labels = images.read_labels(data / "imagenet")
  names = sorted(labels, key=labels.get)
  if drawn:
    chosen = np.random.default_rng(0).permutation(len(names))
    names = [names[i] for i in [*sorted(chosen[:128]), *sorted(chosen[128:])]]
  x = images.load_images(data / "imagenet", images.ImageFormat(224, 224, preprocess="tf"), names=names)
  return x[:128], x[128:], np.array([labels[n] for n in names[128:]])


def load(name: str, data: pathlib.Path):
  """Returns the float model."""
  from kquant.graph.model_files import load_model
  return load_model(data / "models" / f"{MODELS[name]}.h5")


def run_kquant(model, calibration, path: str) -> dict:
  """Quantizes, exports and verifies; returns seconds a stage."""
  import kquant
  import tflite_export
  result = kquant.quantize(model, calibration)
  written = tflite_export.export(result, path, verify=calibration[:2])
  return {**result.report.seconds, **written.seconds, "max_lsb": written.verification.max_lsb}


def run_converter(model, calibration, path: str) -> dict:
  """tf.lite.TFLiteConverter, int8 everywhere, the same images one at a time."""
  import tensorflow as tf
  converter = tf.lite.TFLiteConverter.from_keras_model(model)
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  converter.representative_dataset = lambda: ([image[None]] for image in calibration)
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
  converter.inference_input_type = converter.inference_output_type = tf.int8
  pathlib.Path(path).write_bytes(converter.convert())
  return {}


TOOLS = {"kquant": run_kquant, "converter": run_converter}


def worker(tool: str, name: str, data: pathlib.Path, path: str) -> None:
  """One tool, one model, this process; prints its seconds as JSON."""
  model, (calibration, _, _) = load(name, data), images_of(name, data)
  if tool == "kquant":  # imports are not part of the measured time
    import kquant.api  # noqa: F401
    import tflite_export  # noqa: F401
  start = time.perf_counter()
  stages = TOOLS[tool](model, calibration, path)
  print(json.dumps({"total": time.perf_counter() - start, **stages}))


def in_fresh_process(tool: str, name: str, data: pathlib.Path, path: str) -> dict:
  """Runs `worker` in a process of its own."""
  command = [sys.executable, __file__, f"--worker={tool}", f"--models={name}", f"--data={data}", path]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f"{tool} failed on {name}:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def with_output(contents: bytes, name: str) -> bytes:
  """Returns the file, either tool's, with that tensor as its one output."""
  import flatbuffers
  from ai_edge_litert import schema_py_generated as schema
  model = schema.ModelT.InitFromPackedBuf(contents, 0)
  graph = model.subgraphs[0]
  (graph.outputs,) = [[i] for i, tensor in enumerate(graph.tensors) if tensor.name.decode() == name]
  model.signatureDefs = None
  builder = flatbuffers.Builder(len(contents))
  builder.Finish(model.Pack(builder), b"TFL3")
  return bytes(builder.Output())


def scores_of(model, x: np.ndarray) -> np.ndarray:
  """Returns what a float model answers before its softmax, [images, scores]."""
  from kquant.cli.evaluation import before_softmax
  return before_softmax(model).predict(x, batch_size=32, verbose=0).reshape(len(x), -1)


def judge(contents: bytes, x: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> dict:
  """Top-1, agreement and SQNR of a file at the input of its softmax, and its float operators."""
  from kquant.cli.evaluation import scores_tensor
  from kquant.core import metrics
  from tflite_export.file.reader import float_operators, from_bytes
  from tflite_export.proof.runtime import Runtime
  program = from_bytes(contents)
  name = scores_tensor(program)
  grid, out = (program.tensors[n] for n in (program.inputs[0], name))
  q = np.rint(x * (np.float32(1) / grid.scale[0])) + grid.zero_point[0]  # as the runtime's QUANTIZE does
  q = np.clip(q, -128, 127).astype(np.int8)
  scores = Runtime(with_output(contents, name), threads=2).run_many([q])[0]
  values = (scores.reshape(len(x), -1) - out.zero_point[0].astype(np.float32)) * out.scale[0]
  return {"top1": metrics.top1(values, labels), "agreement": metrics.agreement(values, reference),
          "sqnr": metrics.sqnr_db(values, reference), "bytes": len(contents),
          "float": len(float_operators(program)), "ops": program.operator_counts()}


def latency(first: bytes, second: bytes, runs: int = 300) -> tuple[float, float]:
  """Median milliseconds of one image on one thread, the two files in turn."""
  from tflite_export.proof.runtime import Runtime
  runtimes = [Runtime(contents) for contents in (first, second)]
  inputs = [[np.zeros(r.inputs[0]["shape"], np.int8)] for r in runtimes]
  times = [[], []]
  for index in range(2 * runs + 20):
    which = index % 2
    start = time.perf_counter()
    runtimes[which].run(inputs[which])
    if index >= 20:
      times[which].append(1e3 * (time.perf_counter() - start))
  return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, data: pathlib.Path, runs: int) -> dict:
  """Everything about one model."""
  from kquant.core import metrics
  with tempfile.TemporaryDirectory() as folder:
    paths = {tool: f"{folder}/{tool}.tflite" for tool in TOOLS}
    seconds = {tool: [] for tool in TOOLS}
    for _ in range(runs):
      for tool in TOOLS:
        seconds[tool].append(in_fresh_process(tool, name, data, paths[tool]))
    contents = {tool: pathlib.Path(path).read_bytes() for tool, path in paths.items()}
  _, x, labels = images_of(name, data)
  reference = scores_of(load(name, data), x)
  judged = {tool: judge(contents[tool], x, labels, reference) for tool in TOOLS}
  for tool, milliseconds in zip(TOOLS, latency(contents["kquant"], contents["converter"])):
    judged[tool]["ms"] = milliseconds
    judged[tool]["seconds"] = statistics.median(run["total"] for run in seconds[tool])
  stages = {k: statistics.median(run[k] for run in seconds["kquant"]) for k in seconds["kquant"][0]}
  return {"model": MODELS[name], "images": len(x), "float": metrics.top1(reference, labels),
          "stages": stages, **judged}


def tables(rows: list[dict]) -> str:
  """The results as Markdown."""
  lines = ["| model | float top-1 | tool | top-1 | agreement | SQNR dB | float ops | bytes | latency ms "
           "| seconds |", "|---|---|---|---|---|---|---|---|---|---|"]
  for row in rows:
    for tool in TOOLS:
      r = row[tool]
      lines.append(f"| {row['model']} | {row['float']:.4f} | {tool} | {r['top1']:.4f} | "
                   f"{r['agreement']:.4f} | {r['sqnr']:.1f} | {r['float']} | {r['bytes']:,} | "
                   f"{r['ms']:.2f} | {r['seconds']:.1f} |")
  lines += ["", "| model | latency ratio | bytes ratio | seconds ratio | kquant's stages, seconds | "
            "max LSB a layer |", "|---|---|---|---|---|---|"]
  for row in rows:
    mine, theirs, stages = row["kquant"], row["converter"], dict(row["stages"])
    lsb, _ = stages.pop("max_lsb"), stages.pop("total")
    lines.append(f"| {row['model']} | {mine['ms'] / theirs['ms']:.3f} | "
                 f"{mine['bytes'] / theirs['bytes']:.3f} | {mine['seconds'] / theirs['seconds']:.2f} | "
                 + ", ".join(f"{k} {v:.2f}" for k, v in stages.items()) + f" | {lsb} |")
  return "\n".join(lines)


def describe(command: str) -> str:
  """Command, date and versions, for the head of a table."""
  from importlib.metadata import version
  versions = ", ".join(f"{p} {version(p)}" for p in ("tensorflow", "tf-keras", "ai-edge-litert", "numpy"))
  return (f"`{command}`, {datetime.date.today()}, Python {platform.python_version()}, {versions}, "
          f"{os.cpu_count()} cores, {platform.machine()}")


def short_table(rows: list[dict]) -> str:
  """The README's table."""
  lines = ["| model (float top-1) | | top-1 | agreement with float | bytes | seconds to a file |",
           "|---|---|---|---|---|---|"]
  for row in rows:
    for tool in TOOLS:
      r, label = row[tool], f"{row['model']} ({100 * row['float']:.1f} %)" if tool == "kquant" else ""
      lines.append(f"| {label} | {tool} | {100 * r['top1']:.1f} % | {100 * r['agreement']:.1f} % | "
                   f"{r['bytes']:,} | {r['seconds']:.1f} |")
  return "\n".join(lines)


def write_marked(path: pathlib.Path, mark: str, table: str) -> None:
  """Puts a table between the marks of a document."""
  marked = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.S)
  path.write_text(marked.sub(lambda found: f"{found[1]}{table}\n{found[2]}", path.read_text()))


def section_pattern(title: str) -> re.Pattern[str]:
  """Returns what matches a section of benchmarks/results.md."""
  return re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.S)


def written_rows(title: str, *, settings: str = "") -> list[str]:
  """Returns the lines of the table of a section that was written, those under its head.

  Args:
    settings: what the command of the section must end with; else there are none.
  """
  found = section_pattern(title).search(RESULTS.read_text()) if RESULTS.exists() else None
  return re.findall(r"^\| .+ \|$", found[0], re.M)[1:] if found and f"{settings}`" in found[0] else []


def arguments(doc: str) -> argparse.ArgumentParser:
  """Returns the flags that benchmarks on the shared data have in common; each adds its own."""
  parser = argparse.ArgumentParser(description=doc.splitlines()[0])
  parser.add_argument("--shared", default=os.environ.get("KQUANT_SHARED", ROOT.parent / "shared"))
  parser.add_argument("--write", action="store_true")
  return parser


def data_of(flags: argparse.Namespace) -> pathlib.Path:
  """Returns the folder of the shared data; ends the process with one line where it is not there."""
  data = pathlib.Path(flags.shared).resolve() / "data"
  if not data.is_dir():
    sys.exit(f"No shared data at {data}; name it with --shared.")
  return data


def write_section(title: str, body: str) -> None:
  """Replaces, or appends, one section of benchmarks/results.md."""
  text = RESULTS.read_text() if RESULTS.exists() else "# Measured results\n"
  section = f"## {title}\n\n{body}\n"
  pattern = section_pattern(title)
  text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
  RESULTS.write_text(text)


def main() -> None:
  """Measures what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shared", default=os.environ.get("KQUANT_SHARED", ROOT.parent / "shared"))
  parser.add_argument("--data", default=None, help=argparse.SUPPRESS)
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--runs", type=int, default=3)
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
  parser.add_argument("path", nargs="?", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  data = pathlib.Path(flags.data or pathlib.Path(flags.shared) / "data").resolve()
  if not data.is_dir():
    sys.exit(f"No shared data at {data}; name it with --shared.")
  if flags.worker:
    worker(flags.worker, flags.models, data, flags.path)
    return
  import kquant.cli  # noqa: F401  quiet start
  rows = [compare(name, data, flags.runs) for name in flags.models.split(",")]
  body = tables(rows)
  head = describe(f"python benchmarks/ptq.py --runs={flags.runs} --models={flags.models}")
  note = ("Calibrated on the first 128 images in label order, judged on the other 372 (resnet8: first 256 of "
          "x_train, all of x_test), by LiteRT at the input of the softmax. Seconds are medians of whole runs "
          "in fresh processes, in turn, from the loaded model to the written (kquant: and verified) file; "
          "latency is the median of interleaved runs, XNNPACK, one thread. No randomness: no seed.")
  body = f"{head}\n\n{note}\n\n{body}"
  print(body)
  if flags.write:
    write_section("int8 post-training quantization against the TFLite converter", body)
    write_marked(ROOT / "README.md", "results", short_table(rows))


if __name__ == "__main__":
  main()
