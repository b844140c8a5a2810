"""The head of a page: does the file answer as the float model does, and does it compute what was chosen?"""

from typing import Any

from kquant.analysis.page.parts import Verdict
from kquant.analysis.results import Analysis
from kquant.core.records import LEAST_SQNR_DB, SAME_IMAGES, Closeness, answers_alike
from kquant.core.text import percent

_NAMED = 3


def accuracy(judged: dict[str, Any] | None, closeness: Closeness | None,
             analysis: Analysis | None) -> Verdict:
  """Says how near the answers are to the float model's, and who is at fault where they are not."""
  words = [*_judged_words(judged or {}), *([] if closeness is None else [_closeness_words(closeness)])]
  if not words and analysis is not None:
    words = [f"Simulation against float: {analysis.summary()}."]
  good = None if not words else _is_near(judged or {}, closeness, analysis)
  if good is False and analysis is not None:
    worst = [f"the {row.part} of {row.name} ({percent(row.share, 0)})" for row in analysis.rows[:_NAMED]]
    words.append(f"Most of the noise comes from {', '.join(worst)}. kq.diagnose tries remedies for these "
                 "alone; else choose a larger effort.")
  answers = {None: "Not measured", True: "Near the float model", False: "NOT near the float model"}
  return Verdict("Does it answer as the float model does?", answers[good], tuple(
      words or ["Give labelled images, or an effort that watches its result."]), good)


def accuracy_of_mended(judged: dict[str, Any] | None, closeness: Closeness | None, diagnosis: Any) -> Verdict:
  """Says the same of a network that was mended; its analysis is of the network before."""
  if judged is None and closeness is None and diagnosis.sqnr_db is not None:
    judged = {"sqnr_db": diagnosis.sqnr_db[1]}
  return accuracy(judged, closeness, None)


def _is_near(judged: dict[str, Any], closeness: Closeness | None, analysis: Analysis | None) -> bool:
  """Whether nothing that was measured is below what is expected."""
  return (answers_alike(judged, closeness)
          and (bool(judged) or closeness is not None or analysis.whole <= 10**(-LEAST_SQNR_DB / 10)))


def _judged_words(judged: dict[str, Any]) -> list[str]:
  words = []
  right = (judged.get("float") or {}).get("top1"), (judged.get("quantized") or {}).get("top1")
  if None not in right:
    words.append(f"On {judged['images']:,} images the integers are right on {percent(right[1])}, the float "
                 f"model on {percent(right[0])}: {100 * (right[1] - right[0]):+.1f} points.")
  if judged.get("agreement") is not None:
    words.append(f"Both give the same answer on {percent(judged['agreement'])} of {judged['images']:,} "
                 "images.")
  if judged.get("sqnr_db") is not None:
    words.append(f"Output SQNR {judged['sqnr_db']:.1f} dB.")
  if judged.get("constant"):
    words.append(f"They are of images {SAME_IMAGES}.")
  return words


def _closeness_words(closeness: Closeness) -> str:
  return f"While quantizing: {closeness}."


def exactness(export: Any) -> Verdict:
  """Says whether a file holds the chosen integers, and computes with them as it should."""
  question = "Does the file compute exactly the chosen integers?"
  if export is None:
    return Verdict(question, "No file was checked", ("The page is about a simulation.",), None)
  verification, certificate = export.verification, export.certificate
  words = ["Every weight, bias, scale and zero point in the file equals the chosen one."]
  if verification.images:
    words.append(f"Run on {verification.images} images, each operator is within {verification.max_lsb} LSB "
                 "of its Keras layer.")
  if certificate is not None:
    words += certificate_words(certificate)
  words.append("This says nothing of accuracy: integers can be exact and badly chosen.")
  answer = "Exact" if certificate is not None and certificate["exact"] else "Holds the chosen integers"
  return Verdict(question, answer, tuple(words), True)


def certificate_words(certificate: dict[str, Any]) -> list[str]:
  """Returns what a certificate found, in sentences."""
  rows = [row for result in certificate["kernel_sets"].values() for row in result["operators"].values()]
  elements, differ = (sum(row[key] for row in rows) for key in ("elements", "mismatching"))
  words = [f"{elements:,} elements were computed by kquant's own arithmetic and by LiteRT's "
           f"{' and '.join(certificate['kernel_sets'])} kernels: {differ:,} differ."]
  if certificate["accumulators"]["proved"]:
    words.append("No input can overflow an accumulator.")
  return words
