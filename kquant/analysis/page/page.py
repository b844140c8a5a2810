"""report(): one HTML file that a person reads from top to bottom."""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
import tf_keras as keras

from kquant.analysis.layer_errors import with_quantizers
from kquant.analysis.page import sections, verdicts
from kquant.analysis.page.parts import PageParts, Section, Verdict
from kquant.analysis.results import Analysis
from kquant.core import data
from kquant.core.files import written_whole
from kquant.graph import keras_calls

_TEMPLATE = "page.html.jinja"


@dataclasses.dataclass(frozen=True)
class _Given:
  """What is shown beside a network, as `report` takes it."""

  analysis: Analysis | None
  diagnosis: Any
  export: Any
  images: Any
  judged: dict[str, Any] | None


def report(path: str | os.PathLike, *results: Any, analysis: Analysis | None = None, diagnosis: Any = None,
           export: Any = None, images: Any = None, judged: dict[str, Any] | None = None) -> pathlib.Path:
  """Writes an HTML page about a quantization: one file that needs no network, for screen and paper.

  Sections for which nothing is given are left out.

  Args:
    path: of the file to write.
    results: what `quantize` returned, or a calibrated or trained model with quantizers; what `allocate_bits`
      returned; or both.
    analysis: what `analyze` returned: the noise of each tensor, and the ranges of the worst kernels.
    diagnosis: what `diagnose` returned, the network and `analysis` being its own: the tensors at fault, what
      was changed, what no change of grids mends.
    export: what `export` returned: bytes, operators, what was verified and certified.
    images: inputs, as `analyze` takes them: with an analysis, the distributions of the worst activations.
    judged: how a file answered: {"images", "float": {"top1"}, "quantized": {"top1"}, "agreement", "sqnr_db"};
      fractions are 0..1, what is not known is None or left out.

  Returns:
    The path.

  Raises:
    TypeError: another kind of result, two of a kind, or an analysis and the like without a network.
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
  given = _Given(analysis, diagnosis, export, images, judged)
  network, parts = _told_apart(results, given)
  if network is None:
    page = _page(parts.title, parts.verdicts, parts.sections)
  else:
    page = _page_of(network, given, () if parts is None else parts.sections)
  with written_whole(path) as (temporary,):
    temporary.write_text(page, encoding="utf-8")
  return pathlib.Path(path)


def _told_apart(results: tuple[Any, ...], given: _Given) -> tuple[Any, PageParts | None]:
  """Returns (the network, what an allocation shows), of which one may be None."""
  allocations = [result for result in results if hasattr(result, "page_parts")]
  networks = [result for result in results if not hasattr(result, "page_parts")]
  if len(networks) > 1 or len(allocations) > 1 or not results:
    raise TypeError("report: expected what kquant.quantize returned, what kquant.allocate_bits returned, or "
                    f"both, got {len(networks)} and {len(allocations)} of them; write a page for each.")
  if not networks and any(value is not None for value in vars(given).values()):
    raise TypeError("report: expected a network, of which the analysis, file or images are, got an "
                    "allocation alone; give what kquant.quantize returned, too.")
  return (networks[0] if networks else None), (allocations[0].page_parts() if allocations else None)


def _page(title: str, found: Sequence[Verdict], shown: Sequence[Section]) -> str:
  return _template().render(title=title, verdicts=found, sections=shown, svg=markupsafe.Markup)


def _page_of(result: Any, given: _Given, further: Sequence[Section]) -> str:
  """The page about a network, with sections about its allocation behind that about the file."""
  qmodel, records = _qmodel_of(result), getattr(result, "report", None)
  closeness = getattr(records, "closeness", None)
  accuracy = (verdicts.accuracy(given.judged, closeness, given.analysis) if given.diagnosis is None
              else verdicts.accuracy_of_mended(given.judged, closeness, given.diagnosis))
  file = sections.file(given.export, getattr(result, "model", None))
  shown = (file, *further, *_sections(qmodel, result, given))
  return _page(qmodel.name, (accuracy, verdicts.exactness(given.export)),
               [section for section in shown if section is not None])


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


def _sections(qmodel: keras.Model, result: Any, given: _Given) -> list[Section | None]:
  """The sections about a network in the order of reading; None: one that has nothing to show."""
  records, floats = getattr(result, "report", None), getattr(result, "float_params", None)
  images = given.images
  if images is not None:
    images = data.gather(images, keras_calls.input_specs(qmodel), where="report")
  return [sections.remedies(given.diagnosis),
          sections.damage(given.analysis, mended=given.diagnosis is not None),
          sections.activations(given.analysis, qmodel, floats, images),
          sections.kernels(given.analysis, qmodel, floats), sections.steps(records), sections.widths(qmodel),
          sections.left_alone(records), sections.proof(given.export),
          sections.seconds(records, given.export)]


def _template() -> jinja2.Template:
  """The page, which escapes all that it is given: layers have the names that their users chose."""
  text = importlib.resources.files("kquant.analysis.page").joinpath(_TEMPLATE).read_text("utf-8")
  return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                            lstrip_blocks=True).from_string(text)
