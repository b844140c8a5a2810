"""kq.diagnose on real models: are planted faults found and mended, and what where int8 is not enough?

    python benchmarks/doctor.py [--shared=../shared] [--models=resnet8,v1] [--seeds=3] [--write]
    python benchmarks/doctor.py [--shared=../shared] --v3 [--write]

Each model runs in a process of its own (Linux). A fault is planted in a layer that the seed chooses. The loss
is the noise that it adds at the output (QNSR on images that nothing was fitted to); what the mended network
has no more of it is recovered. Up to 8 tensors get 16 bits, whatever the SQNR.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from planted_faults import FAULTS, Planted, plant
from ptq import MODELS, ROOT, describe, images_of, judge, latency, scores_of, write_section

NAMES = {**MODELS, "v3": "mobilenet_v3_small_224"}
JUDGED = 500
CALIBRATED = 96
"""Images; 32 more are held back for the doctor."""


def answers(model, images: np.ndarray) -> np.ndarray:
  """Returns what a float or quantized model answers before its softmax."""
  import kquant as kq
  from kquant.analysis.layer_errors import with_quantizers
  from kquant.qmodel.outputs import network_outputs
  model = model if with_quantizers(model) is not None else kq.rewrite(model, [kq.standardize])
  return network_outputs(model, [images])[0].astype(np.float64)


def noise(quantized: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
  """Returns (QNSR, agreement)."""
  power = np.square(reference - reference.mean(0)).sum()
  return (float(np.square(quantized - reference).sum() / power),
          float((quantized.argmax(-1) == reference.argmax(-1)).mean()))


def of_sound(planted: Planted, calibration: np.ndarray, x: np.ndarray) -> dict:
  """Returns what the sound model is, quantized: the same for all faults of a model with one config."""
  import kquant as kq
  result = kq.quantize(planted.sound, calibration[:CALIBRATED], config=planted.config, effort="fast")
  level, agreement = noise(answers(result.qmodel, x), answers(planted.sound, x))
  return {"sound": level, "sound_agreement": agreement}


def measured(planted: Planted, calibration: np.ndarray, x: np.ndarray) -> dict:
  """Quantizes the faulty model and lets the doctor mend it."""
  import kquant as kq

  def prepared(images: np.ndarray) -> np.ndarray:
    return planted.shift * (1 + images) if planted.shift else images

  train, held_back = calibration[:CALIBRATED], calibration[CALIBRATED:CALIBRATED + 32]
  faulty_train = prepared(train.mean() + planted.contrast * (train - train.mean()))
  reference, found = answers(planted.model, prepared(x)), {}
  result = kq.quantize(planted.model, faulty_train, config=planted.faulty_config, effort="fast")
  found["faulty"], found["faulty_agreement"] = noise(answers(result.qmodel, prepared(x)), reference)
  start = time.process_time()
  diagnosis = kq.diagnose(planted.model, prepared(held_back), calibration=faulty_train, effort="fast",
                          config=planted.faulty_config, settings=kq.DiagnosisSettings(tolerance=np.inf))
  found["seconds"] = time.process_time() - start
  found["mended"], found["mended_agreement"] = noise(answers(diagnosis.result.qmodel, prepared(x)), reference)
  rows = [row.name for row in diagnosis.analysis.rows]
  findings = {said for finding in diagnosis.findings
              for said in (finding.kind, f"{finding.kind} in {finding.where}")}
  found["rank"] = (0 if findings & set(planted.found) else
                   next((place + 1 for place, name in enumerate(rows) if name in planted.found), None))
  found["remedies"] = [str(row) for row in diagnosis.rows if row.remedy]
  found["left_out"] = [str(row) for row in diagnosis.rows if row.left_out]
  return found


def clipping(original, calibration: np.ndarray, x: np.ndarray, seed: int) -> dict:
  """Clips one kernel with an outlier, and all kernels; SQNR in dB of each."""
  import kquant as kq
  planted = plant(FAULTS[0], original, seed)
  name = planted.found[0]
  clipped = kq.TensorSpec(per_channel=False, range="mse")
  configs = {"no": planted.config, "this kernel": kq.QuantConfig(rules=[
      kq.Rule(match=f"^{name}$", weights=clipped), *planted.config.rules]),
             "all kernels": kq.QuantConfig(rules=[kq.Rule(weights=clipped)])}
  reference = answers(planted.model, x)
  made = {what: kq.quantize(planted.model, calibration[:CALIBRATED], config=config, effort="fast")
          for what, config in configs.items()}
  levels = {what: noise(answers(result.qmodel, x), reference)[0] for what, result in made.items()}
  return {what: -10 * np.log10(level) for what, level in levels.items()}


def faults_of(name: str, data: pathlib.Path, seeds: int) -> dict:
  """Returns what was found of every fault, and of clipping, in a model."""
  import kquant as kq
  original = kq.load_model(data / "models" / f"{NAMES[name]}.h5")
  calibration, x, _ = images_of(name, data)
  x, found, sound = x[:JUDGED], {}, {}
  for fault in FAULTS:
    for seed in range(seeds):
      planted = plant(fault, original, seed)
      if planted is None:
        continue
      config = json.dumps(planted.config.to_json())
      if config not in sound:
        sound[config] = of_sound(planted, calibration, x)
      found.setdefault(fault, []).append({**sound[config], **measured(planted, calibration, x)})
      print(f"{name}, {fault}, {seed}: {found[fault][-1]}", file=sys.stderr, flush=True)
  return {"faults": found, "clipping": [clipping(original, calibration, x, seed) for seed in range(seeds)]}


V3_CASES = {"fast": ("fast", None), "fast, doctor without 16 bits": ("fast", 0), "auto": ("auto", None),
            "auto, doctor without 16 bits": ("auto", 0), "auto, doctor with up to 8 of 16 bits": ("auto", 8)}


def v3(data: pathlib.Path) -> list[dict]:
  """Returns what MobileNetV3-Small is without and with the doctor, as files that LiteRT runs."""
  import kquant as kq
  from kquant.doctor.files import contents
  model = kq.load_model(data / "models" / f"{NAMES['v3']}.h5")
  calibration, x, labels = images_of("v3", data)
  reference = scores_of(model, x)
  rows, first = [], None
  for case, (effort, most_wide) in V3_CASES.items():
    start, wide = time.process_time(), 0
    if most_wide is None:
      result = kq.quantize(model, calibration, effort=effort)
    else:
      settings = kq.DiagnosisSettings(most_wide=most_wide, tolerance=np.inf, coverage=0.95)
      diagnosis = kq.diagnose(model, calibration, effort=effort, settings=settings)
      result, wide = diagnosis.result, sum(row.remedy == "16 bits" for row in diagnosis.rows)
    seconds = time.process_time() - start
    file = contents(result)
    first = first or file
    found = judge(file, x, labels, reference)
    rows.append({"case": case, "wide": wide, "seconds": seconds, "ms": latency(first, file)[1],
                 **{key: found[key] for key in ("top1", "agreement", "sqnr", "bytes")}})
    print(rows[-1], file=sys.stderr, flush=True)
  return rows


def faults_table(name: str, found: dict) -> str:
  """Returns the faults of a model as Markdown."""
  lines = [f"| fault in {NAMES[name]} | first | agreement: sound, faulty, mended "
           "| SQNR dB: sound, faulty, mended | recovered | first remedies (seed 0) | kept, left out "
           "| CPU seconds |",
           "|---|---|---|---|---|---|---|---|"]
  for fault, runs in found["faults"].items():
    first = ", ".join("finding" if run["rank"] == 0 else str(run["rank"] or "-") for run in runs)
    agreements = ", ".join(f"{np.mean([run[key + 'agreement'] for run in runs]):.3f}"
                           for key in ("sound_", "faulty_", "mended_"))
    levels = ", ".join(f"{-10 * np.log10(np.mean([run[key] for run in runs])):.1f}"
                       for key in ("sound", "faulty", "mended"))
    recovered = ", ".join(map(recovered_of, runs))
    remedies = "; ".join(runs[0]["remedies"][:2]) or "none"
    counts = "; ".join(f"{len(run['remedies'])}, {len(run['left_out'])}" for run in runs)
    lines.append(f"| {fault} | {first} | {agreements} | {levels} | {recovered} | {remedies} | {counts} | "
                 f"{np.mean([run['seconds'] for run in runs]):.0f} |")
  return "\n".join(lines)


def recovered_of(run: dict) -> str:
  """Returns the part of the added noise that is gone; - where the fault adds none."""
  lost = run["faulty"] - run["sound"]
  return "-" if lost < 0.1 * run["sound"] else f"{100 * (run['faulty'] - run['mended']) / lost:.0f} %"


def clipping_table(found: dict[str, dict]) -> str:
  """Returns SQNR where one kernel with an outlier, and where all are clipped."""
  lines = ["| one weight x30, one scale a kernel | SQNR dB: not clipped | this kernel clipped | all |",
           "|---|---|---|---|"]
  for name, of_model in found.items():
    runs = of_model["clipping"]
    cells = [", ".join(f"{run[what]:.1f}" for run in runs) for what in runs[0]]
    lines.append(f"| {NAMES[name]}, by seed | {' | '.join(cells)} |")
  return "\n".join(lines)


def v3_table(rows: list[dict]) -> str:
  """Returns what MobileNetV3-Small is."""
  lines = ["| mobilenet_v3_small_224 | tensors of 16 bits | top-1 | agreement | SQNR dB | bytes | latency ms "
           "| CPU seconds |", "|---|---|---|---|---|---|---|---|"]
  lines += [f"| {row['case']} | {row['wide']} | {row['top1']:.4f} | {row['agreement']:.4f} "
            f"| {row['sqnr']:.1f} | {row['bytes']:,} | {row['ms']:.2f} | {row['seconds']:.0f} |"
            for row in rows]
  return "\n".join(lines)


def in_fresh_process(name: str, data: pathlib.Path, seeds: int):
  """Runs `worker` in a process of its own; what it reports on the way is shown."""
  command = [sys.executable, __file__, f"--worker={name}", f"--data={data}", f"--seeds={seeds}"]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    sys.exit(f"{name} failed.")
  return json.loads(done.stdout.strip().splitlines()[-1])


def of_faults(names: list[str], data: pathlib.Path, seeds: int) -> tuple[str, str]:
  """Returns the section on planted faults."""
  found = {name: in_fresh_process(name, data, seeds) for name in names}
  head = describe(f"python benchmarks/doctor.py --models={','.join(names)} --seeds={seeds}")
  note = (f"int8, effort fast, calibrated on {CALIBRATED} images, remedies judged by 32, all figures on "
          f"others (up to {JUDGED}). `first`: the place of the planted tensor among all, by seed; of what "
          "grids do not mend: whether it is a finding. `recovered`: the part of the noise that the fault "
          "adds which is gone, by seed; - where it adds less than a tenth of what there is without it. Up to "
          "8 tensors get 16 bits, whatever the SQNR: above 100 % it is better than without the fault. "
          "`kept, left out`: remedies, by seed.")
  tables = [*(faults_table(name, of_model) for name, of_model in found.items()), clipping_table(found)]
  return f"The doctor: planted faults in {', '.join(names)}", "\n\n".join([head, note, *tables])


def of_v3(data: pathlib.Path) -> tuple[str, str]:
  """Returns the section on MobileNetV3-Small."""
  head = describe("python benchmarks/doctor.py --v3")
  note = ("Calibrated on the first 128 images in label order, a quarter of which the doctor holds back; "
          "judged on the other 372 by LiteRT at the input of the softmax; latency: XNNPACK, one thread. The "
          "doctor looks at the tensors that make 95 % of the noise.")
  table = v3_table(in_fresh_process("v3", data, 1))
  return "The doctor: MobileNetV3-Small", "\n\n".join([head, note, table])


def main() -> None:
  """Measures what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shared", default=ROOT.parent / "shared")
  parser.add_argument("--data", default=None, help=argparse.SUPPRESS)
  parser.add_argument("--models", default="resnet8,v1")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--v3", action="store_true")
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  data = pathlib.Path(flags.data or pathlib.Path(flags.shared) / "data").resolve()
  if flags.worker:
    print(json.dumps(v3(data) if flags.worker == "v3" else faults_of(flags.worker, data, flags.seeds)))
    return
  if not data.is_dir():
    sys.exit(f"No shared data at {data}; name it with --shared.")
  title, body = of_v3(data) if flags.v3 else of_faults(flags.models.split(","), data, flags.seeds)
  print(body)
  if flags.write:
    write_section(title, body)


if __name__ == "__main__":
  main()
