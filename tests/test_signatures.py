"""No public function takes more than 7 parameters, and no other more than 5."""

import ast
import pathlib

import kquant
import tflite_export

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC, INSIDE = 7, 5


def functions():
  for folder in ("kquant", "tflite_export"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      for owner in [node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "body")]:
        for node in owner.body if isinstance(owner.body, list) else ():
          if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield path, getattr(owner, "name", ""), node


def test_functions_have_few_parameters():
  public = {*kquant.__all__, *tflite_export.__all__}
  too_many = {}
  for path, owner, node in functions():
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = len(arguments) - (bool(arguments) and arguments[0].arg in ("self", "cls"))
    is_public = not node.name.startswith("_") and (node.name in public or owner in public) or (
        node.name == "__init__" and owner in public)
    if count > (PUBLIC if is_public else INSIDE):
      too_many[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = count
  assert not too_many
