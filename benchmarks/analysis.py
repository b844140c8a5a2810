"""kq.analyze on real models: do the noises of tensors add up, are planted faults found, what does it cost?

    python benchmarks/analysis.py [--shared=../shared] [--models=resnet8,v2,v3] [--images=64] [--write]

Each model and each fault runs in a process of its own (Linux). Calibrated on 128 images, analyzed on others.
The faults are planted in ResNet-8, none of whose tensors is at fault by itself but the average before its
classifier: a fault is found where its layer is the first. `cpu` is what all threads of the process took.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from ptq import MODELS, ROOT, describe, images_of, write_section

NAMES = {**MODELS, "v3": "mobilenet_v3_small_224"}
LAYER = "conv2d_3"
FAULTS = ("none", "outlier weight x30", "outlier weight x30, one scale a kernel",
          "outlier activation channel x30", "one layer at 2 bits",
          "ranges from images of a tenth of the contrast")


def planted(fault: str, model, calibration: np.ndarray):
  """Returns (model, config, calibration images) with a fault in or behind LAYER of ResNet-8."""
  import kquant as kq
  model = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  config, layer = kq.QuantConfig.preset("int8"), model.get_layer(LAYER)
  if fault.startswith("outlier weight"):
    kernel = layer.kernel.numpy()
    kernel[1, 1, 5, 7] = 30 * np.abs(kernel).max()
    layer.kernel.assign(kernel)
  if "one scale" in fault:
    config = kq.QuantConfig(rules=[kq.Rule(weights=kq.TensorSpec(per_channel=False))])
  if fault.startswith("outlier activation"):
    scale = np.where(np.arange(layer.kernel.shape[-1]) == 4, 30.0, 1.0).astype(np.float32)
    layer.kernel.assign(layer.kernel * scale)
    layer.bias.assign(layer.bias * scale)
    following = model.get_layer("conv2d_4")
    following.kernel.assign(following.kernel / scale[:, None])
  if "2 bits" in fault:
    config = kq.QuantConfig(rules=[kq.Rule(match=f"^{LAYER}$", weights=kq.TensorSpec(bits=2)), kq.Rule()])
  if "contrast" in fault:
    calibration = calibration.mean() + 0.1 * (calibration - calibration.mean())
  return model, config, calibration


def worker(case: str, data: pathlib.Path, count: int) -> None:
  """Analyzes one model, or one fault, in this process; prints what was found as JSON."""
  import resource

  import kquant as kq
  name = case if case in NAMES else "resnet8"
  model = kq.load_model(data / "models" / f"{NAMES[name]}.h5")
  calibration, images, labels = images_of(name, data, drawn=name != "resnet8")
  calibration, config = calibration[:128], "int8"
  if case not in NAMES:
    model, config, calibration = planted(case, model, calibration)
  result = kq.quantize(model, calibration, config=config, effort=None)
  chosen = np.random.default_rng(0).choice(len(images), count, replace=False)
  start, cpu = time.perf_counter(), time.process_time()
  found = kq.analyze(result, images[chosen], labels[chosen])
  used = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu,
          "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
  print(json.dumps({**found.to_json(), **used}))


def in_fresh_process(case: str, data: pathlib.Path, count: int) -> dict:
  """Runs `worker` in a process of its own."""
  command = [sys.executable, __file__, f"--worker={case}", f"--data={data}", f"--images={count}"]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f"{case} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def named(row: dict) -> str:
  """Returns a row in words: tensor, part and share."""
  return f"{row['loudest']} {row['part']} {100 * row['share']:.0f} %"


def models_table(names: list[str], data: pathlib.Path, count: int) -> str:
  """Returns additivity, the loudest tensors and the cost of each model."""
  lines = ["| model | tensors, layers | QNSR | sum alone / whole | loudest tensors | seconds | CPU seconds "
           "| peak GB |", "|---|---|---|---|---|---|---|---|"]
  for name in names:
    found = in_fresh_process(name, data, count)
    loudest = "; ".join(map(named, found["rows"][:3]))
    lines.append(f"| {NAMES[name]} | {len(found['rows'])}, {len(found['layers'])} | {found['whole']:.2e} | "
                 f"{found['additivity']:.2f} | {loudest} | {found['seconds']:.0f} | {found['cpu']:.0f} | "
                 f"{found['gb']:.1f} |")
  return "\n".join(lines)


def faults_table(data: pathlib.Path, count: int) -> str:
  """Returns what is first where faults are planted."""
  lines = ["| fault in ResNet-8 | QNSR | first tensor | first layer | widest channel of the tensor "
           "| saturated |", "|---|---|---|---|---|---|"]
  for fault in FAULTS:
    found = in_fresh_process(fault, data, count)
    first, layer = found["rows"][0], found["layers"][0]
    channel, ratio = first["wide_channels"][0]
    lines.append(f"| {fault} | {found['whole']:.2e} | {named(first)} | {named(layer)} "
                 f"| {channel} (x{ratio:.3g}) | {100 * first['saturated']:.1f} % |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shared", default=ROOT.parent / "shared")
  parser.add_argument("--data", default=None, help=argparse.SUPPRESS)
  parser.add_argument("--models", default="resnet8,v2,v3")
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  data = pathlib.Path(flags.data or pathlib.Path(flags.shared) / "data").resolve()
  if flags.worker:
    worker(flags.worker, data, flags.images)
    return
  if not data.is_dir():
    sys.exit(f"No shared data at {data}; name it with --shared.")
  tables = [models_table(flags.models.split(","), data, flags.images), faults_table(data, flags.images)]
  head = describe(f"python benchmarks/analysis.py --models={flags.models} --images={flags.images}")
  note = (f"int8, calibrated on 128 images, analyzed on {flags.images} others. Seconds with imports done, of "
          "every tensor and layer, alone and left out; where other work runs, CPU seconds over the "
          "number of cores are nearer to what it takes. Of tensors that share a grid the loudest is named.")
  body = "\n\n".join([head, note, *tables])
  print(body)
  if flags.write:
    write_section("Layer-wise quantization analysis", body)


if __name__ == "__main__":
  main()
