"""Docstrings of public objects name every argument, what is returned, and what is raised."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

from tests.public import public_classes, public_functions

FUNCTIONS, CLASSES = public_functions(), public_classes()


def section(text, title):
  """Returns the lines of a section of a docstring, dedented; None where it has none."""
  found = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", f"{text}\n", re.MULTILINE)
  return found and textwrap.dedent(found[1])


def entries(text, title):
  """Returns the names that a section lists: "a, b: what they are" has two."""
  heads = re.findall(r"^(\w[\w, ]*):", section(text, title) or "", re.MULTILINE)
  return [name for head in heads for name in head.split(", ")]


def parameters(function):
  """Returns the names of what a caller gives."""
  return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "kwargs")]


def constructor_parameters(cls):
  """Returns the names that the constructors of a class and of those it extends take."""
  makers = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
  return {name for maker in makers if inspect.isfunction(maker) for name in parameters(maker)}


def returns(function):
  """Whether a function is annotated to return something."""
  return inspect.signature(function).return_annotation not in (None, inspect.Signature.empty)


def raises(function):
  """Whether a function raises an error of its own."""
  tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
  return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def raising_makers(cls):
  """Returns the functions of a class that make an object and raise an error of their own."""
  makers = [] if dataclasses.is_dataclass(cls) else [vars(cls).get("__init__")]
  return [maker for maker in (*makers, vars(cls).get("__post_init__")) if maker and raises(maker)]


def is_complete_function(function):
  """Whether a docstring names the parameters, what is returned, and what is raised."""
  text = inspect.getdoc(function)
  return bool(entries(text, "Args") == parameters(function)
              and (section(text, "Returns") or not returns(function))
              and (section(text, "Raises") or not raises(function)))


def is_complete_class(cls):
  """Whether a docstring names what the class holds or takes, and what its constructor raises."""
  text = inspect.getdoc(cls)
  return bool((entries(text, "Args") or entries(text, "Attributes") or issubclass(cls, Exception))
              and (section(text, "Raises") or not raising_makers(cls)))


def test_docstrings_are_complete():
  found = {name for name, function in FUNCTIONS.items() if not is_complete_function(function)}
  found |= {name for name, cls in CLASSES.items() if not is_complete_class(cls)}
  assert not found


def test_an_incomplete_docstring_is_found():
  def takes(a) -> int:
    """Does.

    Returns:
      One.
    """

  def fails() -> None:
    """Does."""
    raise ValueError

  assert not is_complete_function(takes)
  assert not is_complete_function(fails)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_name_the_arguments_of_their_constructor(name):
  assert set(entries(inspect.getdoc(CLASSES[name]), "Args")) <= constructor_parameters(CLASSES[name])


def test_sections_are_read():
  text = 'Does.\n\nArgs:\n  a, b: two.\n    more: of it\n  c: one.\n\nReturns:\n  That.'
  assert entries(text, "Args") == ["a", "b", "c"]
  assert section(text, "Returns") and section(text, "Raises") is None
