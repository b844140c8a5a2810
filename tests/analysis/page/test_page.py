"""The HTML page: it is one whole file, it escapes what it is given, and it shows what it is given."""

import dataclasses
import html.parser
import re
import shutil
import subprocess
import types
from xml.etree import ElementTree

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

import kquant as kq
from kquant.analysis.page import figures, page
from kquant.core.records import Report

_NAME = "conv<script>alert('$x_1$')&"
"""No live layer has such a name, since TensorFlow refuses "<"; what else is printed may have it."""
_VOID = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def result(images):
  keras.utils.set_random_seed(0)
  layers = keras.layers
  model = keras.Sequential([
      layers.Conv2D(6, 3, activation="relu", name="conv", input_shape=(8, 8, 3)), layers.Flatten(),
      layers.Dense(4, name="classes")], name="small")
  return kq.quantize(model, images)


@pytest.fixture(scope="module")
def analysis(result, images):
  return kq.analyze(result, images)


@pytest.fixture(scope="module")
def whole(result, analysis, images, tmp_path_factory):
  """A page with everything."""
  folder = tmp_path_factory.mktemp("page")
  exported = kq.export(result, folder / "small.tflite", verify=images[:2], certify=True)
  judged = {"images": 24, "float": {"top1": 0.5}, "quantized": {"top1": 0.25}, "agreement": 0.75,
            "sqnr_db": 8.0}
  row = types.SimpleNamespace(name=_NAME, part="weights", share=0.5, noise=0.1, outcome="channel split",
                              noise_after=0.01, gain_db=6.1, costs=("+0.3 %", "+2.0 %"))
  diagnosis = types.SimpleNamespace(rows=(row,), findings=("Two channels are dead.",), notes=(),
                                    summary=lambda: "together: 8.0 -> 14.1 dB")
  return kq.report(folder / "report.html", result, analysis=analysis, diagnosis=diagnosis, export=exported,
                   images=images, judged=judged)


class Reader(html.parser.HTMLParser):
  """Checks that elements are closed in order; gathers titles, tags, links and ids."""

  def __init__(self, text):
    super().__init__()
    self.open, self.titles, self.tags, self.links = [], [], set(), []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)
    self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href", "action")]
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in _VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    if self.open and self.open[-1] == "h2":
      self.titles.append(text)


def test_page_is_one_file(whole):
  text = whole.read_text()
  reader = Reader(text)
  assert not reader.open
  assert "svg" in reader.tags and not reader.tags & {"script", "link", "img", "iframe"}
  assert all(link.startswith("#") for link in reader.links)
  assert "http" not in text and "@import" not in text
  assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))


def test_names_are_escaped(whole, analysis):
  text = whole.read_text()
  assert "<script" not in text and "conv&lt;script&gt;alert(&#39;$x_1$&#39;)&amp;</td>" in text
  drawing = figures.damage_bars([dataclasses.replace(analysis.rows[0], name=_NAME)]).svg
  labels = [element.text for element in ElementTree.fromstring(drawing).iter("text")]
  assert f"1. {_NAME}" in labels  # not read as a formula, either


def test_sections_follow_the_data(result, analysis, images, whole, tmp_path):
  few = Reader(kq.report(tmp_path / "few.html", result).read_text()).titles[2:]
  assert few == ["Bits", "Seconds"]
  some = Reader(kq.report(tmp_path / "some.html", result, analysis=analysis).read_text()).titles[2:]
  assert some == ["Where the noise comes from", "Kernels with the most noise", "Bits", "Seconds"]
  assert Reader(whole.read_text()).titles[2:] == [
      "The file", "Remedies", "Where the noise comes from", "Activations with the most noise",
      "Kernels with the most noise", "Bits", "Certificate", "Seconds"]


def test_remedies_are_told(whole):
  text = whole.read_text()
  for words in ("Two channels are dead.", "together: 8.0 -&gt; 14.1 dB.", "channel split", ">+6.1 dB<",
                ">50.0 %<"):
    assert words in text


def test_a_mended_network_is_judged_by_what_it_became(result, analysis, tmp_path):
  diagnosis = types.SimpleNamespace(rows=(), findings=(), notes=(), summary=lambda: "together", trial=None,
                                    sqnr_db=(3.0, 24.0))
  rows = [dataclasses.replace(row, name=f"{row.name}_split", loudest=f"{row.name}_split")
          for row in analysis.rows]
  lost = dataclasses.replace(analysis, whole=0.5, rows=tuple(rows))
  mended = dataclasses.replace(result, report=Report())
  text = kq.report(tmp_path / "r.html", mended, analysis=lost, diagnosis=diagnosis).read_text()
  assert "Near the float model" in text and "Output SQNR 24.0 dB" in text and "NOT near" not in text
  assert "before the remedies" in text


def test_model_with_quantizers_has_a_page(result, tmp_path):
  titles = Reader(kq.report(tmp_path / "qat.html", result.qmodel).read_text()).titles
  assert titles[2:] == ["Bits"]


def test_colours_are_those_of_the_page(whole):
  drawings = re.findall(r"<svg.*?</svg>", whole.read_text(), re.S)
  assert len(drawings) > 6
  for drawing in drawings:
    assert "var(--ink)" in drawing and not re.search(r"#[0-9a-fA-F]{6}\b", drawing)


def test_other_results_are_refused(tmp_path):
  with pytest.raises(TypeError, match="expected what kquant.quantize returned or a model with quantizers, "
                                      "got int"):
    kq.report(tmp_path / "report.html", 3)
  with pytest.raises(TypeError, match=r"got the path 'report.html' second; call kquant.report\(path"):
    kq.report(3, "report.html")
  assert not list(tmp_path.iterdir())


def test_nothing_is_half_written(result, analysis, tmp_path, monkeypatch):
  path = tmp_path / "report.html"
  path.write_text("older")

  def fails(*_):
    raise ValueError("no figure")

  monkeypatch.setattr(figures, "damage_bars", fails)
  with pytest.raises(ValueError, match="no figure"):
    kq.report(path, result, analysis=analysis)
  monkeypatch.undo()

  def breaks_off(path, text, **_):
    path.write_bytes(text[:100].encode())
    raise OSError("disk full")

  monkeypatch.setattr(page.pathlib.Path, "write_text", breaks_off)
  with pytest.raises(OSError, match="disk full"):
    kq.report(path, result)
  assert path.read_bytes() == b"older" and [file.name for file in tmp_path.iterdir()] == ["report.html"]
  with pytest.raises(FileNotFoundError, match="make the folder"):
    kq.report(tmp_path / "nowhere" / "report.html", result)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_browser_shows_it(whole, tmp_path):
  picture = tmp_path / "page.png"
  subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}",
                  "--window-size=900,3000", f"file://{whole}"], cwd=tmp_path, check=True, timeout=120,
                 capture_output=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
  colours = Image.open(picture).convert("RGB").getcolors(2**24)
  shown = {colour for count, colour in colours if count > 500}
  assert {(0x25, 0x63, 0xA8), (0xC2, 0x66, 0x0C)} <= shown  # bars of weights and of activations
