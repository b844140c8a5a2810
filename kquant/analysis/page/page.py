"""report(): one HTML file that a person reads from top to bottom."""

import importlib.resources
import os
import pathlib
from typing import Any

import jinja2
import markupsafe
import tf_keras as keras

from kquant.analysis.layer_errors import with_quantizers
from kquant.analysis.page import sections, verdicts
from kquant.analysis.page.parts import Section
from kquant.analysis.results import Analysis
from kquant.core import data
from kquant.core.files import written_whole
from kquant.graph import keras_calls

_TEMPLATE = "page.html.jinja"


def report(path: str | os.PathLike, result: Any, *, analysis: Analysis | None = None, diagnosis: Any = None,
           export: Any = None, images: Any = None, judged: dict[str, Any] | None = None) -> pathlib.Path:
  """Writes an HTML page about a quantization: one file that needs no network, for screen and paper.

  Sections for which nothing is given are left out.

  Args:
    path: of the file to write.
    result: what `quantize` returned, or a calibrated or trained model with quantizers.
    analysis: what `analyze` returned: the noise of each tensor, and the ranges of the worst kernels.
    diagnosis: what `diagnose` returned, `result` and `analysis` being its own: the tensors at fault, what was
      changed, what no change of grids mends.
    export: what `export` returned: bytes, operators, what was verified and certified.
    images: inputs, as `analyze` takes them: with an analysis, the distributions of the worst activations.
    judged: how a file answered: {"images", "float": {"top1"}, "quantized": {"top1"}, "agreement", "sqnr_db"};
      fractions are 0..1, what is not known is None or left out.

  Returns:
    The path.

  Raises:
    TypeError: another kind of result.
    ValueError: images that do not fit the model.
    OSError: the path cannot be written.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(model, images)
    >>> path = kq.report("report.html", result, analysis=kq.analyze(result, images), images=images)
    >>> "Where the noise comes from" in path.read_text()
    True
  """
  qmodel = _qmodel_of(result)
  if images is not None:
    images = data.gather(images, keras_calls.input_specs(qmodel), where="report")
  records = getattr(result, "report", None)
  page = _template().render(
      title=qmodel.name,
      verdicts=[verdicts.accuracy(judged, getattr(records, "closeness", None), analysis) if diagnosis is None
                else verdicts.accuracy_of_mended(judged, diagnosis), verdicts.exactness(export)],
      sections=_sections(result, analysis, diagnosis, export, images), svg=markupsafe.Markup)
  with written_whole(path) as (temporary,):
    temporary.write_text(page, encoding="utf-8")
  return pathlib.Path(path)


def _qmodel_of(result: Any) -> keras.Model:
  model = getattr(result, "qmodel", result)
  qmodel = with_quantizers(model) if isinstance(model, keras.Model) else None
  if isinstance(result, (str, os.PathLike)):
    raise TypeError(f"report: expected a path and then the result, got the path {os.fspath(result)!r} "
                    "second; call kquant.report(path, result).")
  if qmodel is None:
    raise TypeError("report: expected what kquant.quantize returned or a model with quantizers, got "
                    f"{type(result).__name__}; quantize the model first.")
  return qmodel


def _sections(result: Any, analysis: Analysis | None, diagnosis: Any, export: Any,
              images: Any) -> list[Section]:
  """The sections that have something to show, in the order of reading."""
  qmodel, records = _qmodel_of(result), getattr(result, "report", None)
  floats = getattr(result, "float_params", None)
  found = [sections.file(export, getattr(result, "model", None)), sections.remedies(diagnosis),
           sections.damage(analysis, mended=diagnosis is not None),
           sections.activations(analysis, qmodel, floats, images),
           sections.kernels(analysis, qmodel, floats), sections.steps(records), sections.widths(qmodel),
           sections.left_alone(records), sections.proof(export), sections.seconds(records, export)]
  return [section for section in found if section is not None]


def _template() -> jinja2.Template:
  """The page, which escapes all that it is given: layers have the names that their users chose."""
  text = importlib.resources.files("kquant.analysis.page").joinpath(_TEMPLATE).read_text("utf-8")
  return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                            lstrip_blocks=True).from_string(text)
