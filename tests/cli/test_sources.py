"""What --calibration and --eval name: folders of images of any kind, and array files."""

import warnings

import numpy as np
import PIL.Image
import pytest

from kquant.cli.sources import open_source
from kquant.core.input_spec import InputSpec

IMAGE = [InputSpec("image", (6, 8, 3))]
PAIR = [InputSpec("image", (2, 2, 1)), InputSpec("vector", (3,))]


def pixels(height=6, width=8, channels=3, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def write(path, array, mode=None, **options):
  PIL.Image.fromarray(array).convert(mode).save(path, **options)


@pytest.fixture
def folder(tmp_path):
  """Three images of the right size, a label for each, and files that are no images."""
  for index, name in enumerate(["b.png", "a.PNG", "c.bmp"]):
    write(tmp_path / name, pixels(seed=index))
  (tmp_path / "labels.csv").write_text("file,label\na.PNG,1\nb.png,0\nc.bmp,7\nelsewhere.png,3\n")
  (tmp_path / "notes.txt").write_text("no image")
  (tmp_path / "._b.png").write_bytes(b"what some systems leave beside a file")
  return tmp_path


# --- folders ---------------------------------------------------------------------------------------


def test_a_folder_of_images_is_sorted_by_name(folder):
  source = open_source(str(folder), IMAGE)
  assert len(source) == 3
  (x,) = source.load([0, 2])
  assert x.dtype == np.float32
  np.testing.assert_array_equal(x, [pixels(seed=1), pixels(seed=2)])
  np.testing.assert_array_equal(source.labels(), [1, 0, 7])


def test_labels_of_images_that_are_not_there_are_told(folder, caplog):
  source = open_source(str(folder), IMAGE)
  source.labels(), source.labels()
  assert caplog.text.count("labels.csv labels 1 images that are not there, such as 'elsewhere.png'") == 1


def test_images_are_preprocessed(folder):
  (x,) = open_source(str(folder), IMAGE, preprocess="tf").load([1])
  np.testing.assert_allclose(x[0], pixels(seed=0) / 127.5 - 1, atol=1e-6)


def test_a_folder_without_labels(folder):
  (folder / "labels.csv").unlink()
  assert open_source(str(folder), IMAGE).labels() is None


def test_an_image_without_a_label_is_named(folder):
  write(folder / "d.png", pixels())
  with pytest.raises(ValueError, match=r"labels.csv has no label for 'd.png' \(1 images.*add a line"):
    open_source(str(folder), IMAGE).labels()


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300), (7, 9), (60, 80)])
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_sizes_fill_the_input(tmp_path, size, channels):
  write(tmp_path / "a.png", np.full((*size, 3), 77, np.uint8))
  (x,) = open_source(str(tmp_path), [InputSpec("image", (6, 8, channels))]).load([0])
  assert x.shape == (1, 6, 8, channels) and (x == 77).all()


@pytest.mark.parametrize("mode, name", [("L", "a.png"), ("LA", "a.png"), ("RGBA", "a.png"), ("1", "a.png"),
                                        ("CMYK", "a.jpg"), ("P", "a.gif"), ("P", "a.png")])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_modes_become_what_the_model_takes(tmp_path, mode, name, channels):
  write(tmp_path / name, pixels(), mode)
  (x,) = open_source(str(tmp_path), [InputSpec("image", (6, 8, channels))]).load([0])
  with PIL.Image.open(tmp_path / name) as file:
    expected = np.asarray(file.convert("RGB" if channels == 3 else "L")).reshape(6, 8, channels)
  np.testing.assert_array_equal(x[0], expected)


def test_a_palette_with_transparency_says_nothing(tmp_path):
  write(tmp_path / "a.png", pixels(), "P", transparency=bytes(range(16)))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert open_source(str(tmp_path), IMAGE).load([0])[0].shape == (1, 6, 8, 3)


def test_sixteen_bits_a_pixel_keep_their_upper_eight(tmp_path):
  grey = pixels(channels=1)[..., 0]
  PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
  (x,) = open_source(str(tmp_path), IMAGE).load([0])
  np.testing.assert_array_equal(x[0], np.repeat(grey[..., None], 3, axis=-1))


def test_pixels_of_unknown_range_are_refused(tmp_path):
  PIL.Image.fromarray(np.zeros((6, 8), np.float32)).save(tmp_path / "a.tif")
  with pytest.raises(ValueError, match="a.tif.*unknown range"):
    open_source(str(tmp_path), IMAGE).load([0])


def test_a_folder_without_images(tmp_path):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "notes.txt").write_text("no image")
  with pytest.raises(ValueError, match="one folder a class in it, found none"):
    open_source(str(tmp_path), IMAGE)


def test_folders_of_classes_are_the_labels(tmp_path):
  for seed, path in enumerate(["dog/a.png", "cat/b.png", "dog/A.png", ".git/x.png"]):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    write(tmp_path / path, pixels(seed=seed))
  (tmp_path / "bird").mkdir()
  source = open_source(str(tmp_path), IMAGE)
  assert len(source) == 3
  np.testing.assert_array_equal(source.labels(), [1, 2, 2])  # bird, cat, dog
  np.testing.assert_array_equal(source.load([0, 1, 2])[0], [pixels(seed=1), pixels(seed=2), pixels(seed=0)])


def test_images_beside_folders_are_the_data(tmp_path):
  (tmp_path / "cat").mkdir()
  write(tmp_path / "cat" / "a.png", pixels())
  write(tmp_path / "b.png", pixels(seed=1))
  source = open_source(str(tmp_path), IMAGE)
  assert len(source) == 1 and source.labels() is None


# --- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, labels", [
    ("1,2,3\n4,5,6\n", None), ("a,b,c\n1,2,3\n4,5,6\n", None),
    ("label,a,b,c\n7,1,2,3\n0, 4,5 ,6\n", [7, 0]), ("\ufeffa,b,y,c\n1,2,3,3\n\n4,5,1,6", [3, 1])])
def test_a_table_is_a_row_a_sample(text, labels, tmp_path):
  (tmp_path / "a.csv").write_text(text)
  for shape in ((3,), (3, 1)):
    source = open_source(str(tmp_path / "a.csv"), [InputSpec("v", shape)])
    expected = np.float32([[4, 5, 6], [1, 2, 3]]).reshape(2, *shape)
    np.testing.assert_array_equal(source.load([1, 0])[0], expected)
    np.testing.assert_array_equal(source.labels(), labels)


@pytest.mark.parametrize("text, words", [
    ("", "expected a row of numbers"), ("a,b,c\n", "expected a row of numbers"),
    ("1,2,3\n4,5\n", "line 2: expected 3 numbers, got '4,5'"),
    ("1,2,3\nx,5,6\n", "line 2: expected 3 numbers"),
    ("1,2,nan\n", "expected a row"), ("1,2\n", "has 2 columns of numbers, the model takes")])
def test_other_tables_are_refused(text, words, tmp_path):
  (tmp_path / "a.csv").write_text(text)
  with pytest.raises(ValueError, match=words):
    open_source(str(tmp_path / "a.csv"), [InputSpec("v", (3,))])


def test_a_table_of_fractions_as_labels_and_of_images(tmp_path):
  (tmp_path / "a.csv").write_text("y,a\n0.5,1\n")
  with pytest.raises(ValueError, match="expected class numbers from 0"):
    open_source(str(tmp_path / "a.csv"), [InputSpec("v", (1,))]).labels()
  with pytest.raises(ValueError, match="--preprocess=tf is for images"):
    open_source(str(tmp_path / "a.csv"), [InputSpec("v", (1,))], preprocess="tf")


@pytest.mark.parametrize("inputs", [PAIR, [InputSpec("vector", (3,))]])
def test_images_for_a_model_that_takes_others(folder, inputs):
  with pytest.raises(ValueError, match=r"the model takes .*'vector' of shape \(3,\).*\.npz"):
    open_source(str(folder), inputs)


# --- array files -----------------------------------------------------------------------------------


def npz(tmp_path, **arrays) -> str:
  np.savez(tmp_path / "a.npz", **arrays)
  return str(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.float32, np.float16, bool])
@pytest.mark.parametrize("key", ["x", "image"])
def test_arrays_of_any_number_become_float32(tmp_path, dtype, key):
  x = (pixels()[None] > 99).astype(dtype)
  source = open_source(npz(tmp_path, **{key: x}), IMAGE)
  assert len(source) == 1 and source.labels() is None
  assert source.load([0])[0].dtype == np.float32
  np.testing.assert_array_equal(source.load([0])[0], x)


def test_an_npy_file_and_its_order(tmp_path):
  x = np.stack([pixels(seed=i) for i in range(5)])
  np.save(tmp_path / "a.npy", x)
  source = open_source(str(tmp_path / "a.npy"), IMAGE)
  np.testing.assert_array_equal(source.load([4, 1])[0], x[[4, 1]])
  assert source.labels() is None


def test_array_images_are_preprocessed_as_those_of_a_folder_are(tmp_path):
  x = np.stack([pixels(seed=i) for i in range(3)])
  np.save(tmp_path / "a.npy", x)
  source = open_source(str(tmp_path / "a.npy"), IMAGE, preprocess="tf")
  np.testing.assert_allclose(source.load([2])[0], x[[2]] / 127.5 - 1, atol=1e-6)
  vector = [InputSpec("v", (5,))]
  with pytest.raises(ValueError, match="--preprocess=tf is for models of one image input"):
    open_source(str(tmp_path / "a.npy"), vector, preprocess="tf")


def test_several_inputs_by_name(tmp_path):
  image, vector = np.ones((4, 2, 2, 1)), np.arange(12).reshape(4, 3)
  source = open_source(npz(tmp_path, vector=vector, image=image, y=[0, 1, 2, 0]), PAIR)
  loaded = source.load([1, 3])
  np.testing.assert_array_equal(loaded[0], image[:2])
  np.testing.assert_array_equal(loaded[1], vector[[1, 3]])
  np.testing.assert_array_equal(source.labels(), [0, 1, 2, 0])


@pytest.mark.parametrize("y", [np.array([{}, []], object), np.array(["cat", "dog"])])
def test_labels_that_are_no_numbers(tmp_path, y):
  with pytest.raises(ValueError, match="a.npz.*(holds Python objects|got <U3)") as caught:
    open_source(npz(tmp_path, x=np.ones((2, 3)), y=y), [InputSpec("v", (3,))]).labels()
  assert "pickle" not in str(caught.value)


def test_a_file_of_one_array_has_no_labels_whatever_its_name(tmp_path):
  np.save(tmp_path / "a.npy", np.ones((2, 3)))
  (tmp_path / "a.npy").rename(tmp_path / "a.npz")
  source = open_source(str(tmp_path / "a.npz"), [InputSpec("v", (3,))])
  assert len(source) == 2 and source.labels() is None


def test_an_input_may_be_called_y(tmp_path):
  source = open_source(npz(tmp_path, y=np.ones((2, 3))), [InputSpec("y", (3,))])
  assert len(source) == 2 and source.labels() is None


@pytest.mark.parametrize("y", [[2, 0, 1], [[2], [0], [1]], np.eye(3)[[2, 0, 1]], np.float32([2, 0, 1]),
                               np.uint8([2, 0, 1]), [[.1, .1, .8], [.9, .05, .05], [0, 1, 0]]],
                         ids=["n", "n1", "one_hot", "float", "uint8", "soft"])
def test_forms_of_labels(tmp_path, y):
  labels = open_source(npz(tmp_path, x=np.ones((3, 6, 8, 3)), y=y), IMAGE).labels()
  assert labels.dtype == np.int64
  np.testing.assert_array_equal(labels, [2, 0, 1])


@pytest.mark.parametrize("y", [[0, 1], [0.5, 1, 2], [np.nan, 1, 2], list("abc"), [["a", "b"]] * 3,
                               np.zeros((3, 6, 8)), 1, np.array([{}] * 3, object)],
                         ids=["short", "fraction", "nan", "text", "texts", "maps", "scalar", "objects"])
def test_other_labels_are_refused(tmp_path, y):
  source = open_source(npz(tmp_path, x=np.ones((3, 6, 8, 3)), y=np.asarray(y)), IMAGE)
  with pytest.raises(ValueError, match="a.npz: .*y |^y .*a.npz"):
    source.labels()


@pytest.mark.parametrize("arrays, words", [
    ({"images": np.ones((2, 6, 8, 3))}, r"expected the arrays \['image'\] or x, got \['images'\]"),
    ({"x": np.ones((2, 8, 6, 3))}, r"expected samples of shape \(6, 8, 3\)"),
    ({"x": np.ones((0, 6, 8, 3))}, "at least one sample, got none"),
    ({"x": np.full((2, 6, 8, 3), np.nan)}, "expected finite numbers, got nan in sample 0"),
    ({"x": np.array(["a"])}, "expected numbers")])
def test_arrays_that_do_not_fit(tmp_path, arrays, words):
  with pytest.raises((ValueError, TypeError), match=rf"a\.npz.*{words}"):
    open_source(npz(tmp_path, **arrays), IMAGE)


def test_files_of_something_else(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file or folder .*none.npz"):
    open_source(str(tmp_path / "none.npz"), IMAGE)
  for name in ("a.npz", "a.npy", "a.jpg"):
    (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match=name):
      open_source(str(tmp_path / name), IMAGE)
