"""A file as C source: the bytes come back, by parsing and by a compiler."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from tflite_export.file.c_array import to_c_source

DATA = np.random.default_rng(0).integers(0, 256, 1003).astype(np.uint8).tobytes()

PROGRAM = """
#include <stdint.h>
#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif
extern const unsigned char m_tflite[];
extern const unsigned int m_tflite_len;
#ifdef __cplusplus
}
#endif
int main(void) {
  if ((uintptr_t)m_tflite % 16) return 3;
  fwrite(m_tflite, 1, m_tflite_len, stdout);
  return 0;
}
"""


@pytest.mark.parametrize("data", [DATA, DATA[:16], DATA[:1]], ids=len)
def test_the_array_holds_the_bytes(data):
  source = to_c_source(data, "m")
  (body,) = re.findall(r"alignas\(16\) const unsigned char m_tflite\[\] = \{(.*?)\};", source, re.S)
  assert bytes(int(number, 16) for number in re.findall(r"0x[0-9a-f]{2}\b", body)) == data
  assert f"const unsigned int m_tflite_len = {len(data)};" in source


@pytest.mark.parametrize("name, identifier", [
    ("model", "model_tflite"), ("v2-1.0 (x)", "v2_1_0__x__tflite"), ("8bit", "_8bit_tflite"),
    ("new", "new_tflite"), ("größe", "gr__e_tflite")])
def test_names_are_identifiers(name, identifier):
  assert f" {identifier}[] = " in to_c_source(b"x", name)


@pytest.mark.parametrize("compiler, ending", [("gcc", "c"), ("g++", "cc")])
def test_a_compiler_gives_the_bytes_back(compiler, ending, tmp_path):
  if shutil.which(compiler) is None:
    pytest.skip(f"no {compiler} on this machine")
  (tmp_path / f"m.{ending}").write_text(to_c_source(DATA, "m"))
  (tmp_path / f"main.{ending}").write_text(PROGRAM)
  standard = "-std=c11" if ending == "c" else "-std=c++11"
  subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", standard, f"m.{ending}",
                  f"main.{ending}", "-o", "main"], cwd=tmp_path, check=True, capture_output=True)
  done = subprocess.run([tmp_path / "main"], capture_output=True)
  assert done.returncode == 0 and done.stdout == DATA


def test_the_comment_says_what_the_images_went_through():
  assert "Its images" not in to_c_source(b"x", "m")
  assert "(pixel - mean) / std of pixels 0..255: mean 127; std 128. */" in to_c_source(
      b"x", "m", preprocess="mean:127,std:128")
  assert "order BGR: mean 103.939, 116.779, 123.68; std 1." in to_c_source(b"x", "m", preprocess="caffe")
