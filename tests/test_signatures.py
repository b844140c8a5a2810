"""No public function takes more than 7 parameters, no other more than 5; what still does is listed."""

import ast
import pathlib

import kquant
import tflite_export

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC, INSIDE = 7, 5
EXCEPTIONS = {
    "kquant.cli.commands.ptq:_run": 6,
    "kquant.cli.commands.qat:_finish": 7,
    "kquant.core.fake_quantization:fake_quantize": 6,
    "kquant.core.images:load_images": 6,
    "kquant.ptq.layerwise.adaround:adaround": 7,
    "kquant.ptq.layerwise.layer_rounding:round_layers": 6,
    "kquant.ptq.layerwise.layer_rounding:round_kernel": 6,
    "kquant.ptq.layerwise.rounding:descend": 6,
    "kquant.qmodel.layers:QuantizeActivation.__init__": 6,
    "kquant.quantizers.straight_through:onto_grid": 8,
    "kquant.quantizers.straight_through:_split": 6,
    "kquant.ranges.kl:divergences": 6,
    "kquant.ranges.lp:power_error": 6,
    "kquant.ranges.search:search_range": 6,
    "kquant.rewrites.scaling.equalization_rules:_wished_scales": 7,
    "kquant.rewrites.scaling.equalize:_spare_caps": 6,
    "kquant.rewrites.standardize.building:add_layer": 7,
    "kquant.rewrites.standardize.normalization:_reduce": 6,
    "tflite_export.kernels.elementwise:_delegated_sum": 6,
    "tflite_export.lowering.lowering:Lowering.add": 6,
    "tflite_export.lowering.shapes:_strided_slice": 7,
    "tflite_export.lowering.shapes:_cut_axis": 7,
    "tflite_export.proof.verifier:_compare_runs": 6,
    "tflite_export.proof.verifier:_compare_outputs": 6,
    "tflite_export.proof.verifier:_compare_layers": 6,
}
"""{function inside: its parameters} that are still too many; an entry goes when its function is mended."""


def functions():
  for folder in ("kquant", "tflite_export"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      for owner in [node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "body")]:
        for node in owner.body if isinstance(owner.body, list) else ():
          if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield path, getattr(owner, "name", ""), node


def test_functions_have_few_parameters():
  public = {*kquant.__all__, *tflite_export.__all__}
  found = {}
  for path, owner, node in functions():
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = len(arguments) - (bool(arguments) and arguments[0].arg in ("self", "cls"))
    is_public = not node.name.startswith("_") and (node.name in public or owner in public) or (
        node.name == "__init__" and owner in public)
    if count > (PUBLIC if is_public else INSIDE):
      name = f"{path.relative_to(ROOT).with_suffix('')}:{owner + '.' if owner else ''}{node.name}"
      found[name.replace("/", ".")] = count
  assert found == EXCEPTIONS
