"""A folder of images, preprocessing and labels."""

import numpy as np
import PIL.Image
import pytest
from tf_keras.applications import imagenet_utils

from kquant.core.images import ImageFormat, image_names, load_images, normalization, preprocess, read_labels


def write(folder, name, pixels):
  PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)


def noise(height, width, channels=3, seed=0):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_images_of_the_right_size_keep_their_pixels_sorted_by_name(tmp_path):
  for i in (3, 1, 2):
    write(tmp_path, f"{i}.png", noise(8, 6, seed=i))
  (tmp_path / "labels.csv").write_text("file,label\n")
  images = load_images(tmp_path, ImageFormat(8, 6))
  assert images.dtype == np.float32 and images.shape == (3, 8, 6, 3)
  np.testing.assert_array_equal(images, [noise(8, 6, seed=i) for i in (1, 2, 3)])
  assert image_names(tmp_path) == ["1.png", "2.png", "3.png"]


def test_names_choose_images_and_their_order(tmp_path):
  for i in range(20):
    write(tmp_path, f"{i}.bmp", np.full((2, 2, 3), i))
  names = [f"{i}.bmp" for i in (7, 2, 19, 2)]
  images = load_images(str(tmp_path), ImageFormat(2, 2), names=names)
  np.testing.assert_array_equal(images[:, 0, 0, 0], [7, 2, 19, 2])


def test_a_wide_image_is_cut_to_its_centre(tmp_path):
  # 8 x 4 to 4 x 4: the height fits already, so that the middle columns 2..5 stay as they are.
  pixels = noise(4, 8)
  write(tmp_path, "wide.png", pixels)
  np.testing.assert_array_equal(load_images(tmp_path, ImageFormat(4, 4))[0], pixels[:, 2:6])


def test_the_smallest_size_that_covers_the_target(tmp_path):
  pixels = noise(30, 50)
  write(tmp_path, "x.png", pixels)
  resized = PIL.Image.fromarray(pixels).resize((33, 20), PIL.Image.Resampling.BILINEAR)
  expected = np.asarray(resized)[:, 6:26]  # 50 x 30 to 33 x 20, then the middle 20 columns
  np.testing.assert_array_equal(load_images(tmp_path, ImageFormat(20, 20))[0], expected)


@pytest.mark.parametrize("height, width", [(7, 5), (64, 64), (3, 40), (1, 1)])
def test_any_target_is_covered(tmp_path, height, width):
  write(tmp_path, "x.png", np.full((31, 17, 3), 200))
  np.testing.assert_array_equal(load_images(tmp_path, ImageFormat(height, width)),
                                np.full((1, height, width, 3), 200, np.float32))


def test_modes_of_images(tmp_path):
  grey = noise(4, 4, channels=1)
  write(tmp_path, "grey.png", grey)
  write(tmp_path, "with_alpha.png", np.dstack([noise(4, 4), np.full((4, 4), 255, np.uint8)]))
  PIL.Image.fromarray(grey).convert("P").save(tmp_path / "palette.gif")
  images = load_images(tmp_path, ImageFormat(4, 4))
  np.testing.assert_array_equal(images[0], np.repeat(grey[..., None], 3, axis=-1))
  np.testing.assert_array_equal(images[2], noise(4, 4))
  luminance = load_images(tmp_path, ImageFormat(4, 4, channels=1), names=["grey.png"])
  np.testing.assert_array_equal(luminance[0, ..., 0], grey)


def test_load_images_preprocesses(tmp_path):
  write(tmp_path, "x.png", noise(4, 4))
  np.testing.assert_array_equal(load_images(tmp_path, ImageFormat(4, 4, preprocess="caffe"))[0],
                                preprocess(noise(4, 4), "caffe"))


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_preprocess_is_that_of_keras(mode):
  images = np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 3)).astype(np.float32)
  before = images.copy()
  expected = imagenet_utils.preprocess_input(images.copy(), data_format="channels_last", mode=mode)
  np.testing.assert_array_equal(preprocess(images, mode), expected)
  np.testing.assert_array_equal(images, before)


def test_a_pair_of_numbers_is_a_mode():
  pixels = np.uint8([[0, 127, 255]])
  np.testing.assert_array_equal(preprocess(pixels, "mean:127,std:128"), (np.float32(pixels) - 127) / 128)
  np.testing.assert_array_equal(preprocess(pixels, "mean:0,127,5.5,std:1,2,1e2"), np.float32([[0, 0, 2.495]]))
  mean, deviation, order = normalization("mean:1,2,3,std:4", 3)
  assert (mean.tolist(), deviation.tolist(), order) == ([1, 2, 3], [4, 4, 4], "RGB")
  for name in ("unit", "tf", "torch"):
    mean, deviation, _ = normalization(name, 3)
    written = f"mean:{','.join(map(str, mean))},std:{','.join(map(str, deviation))}"
    np.testing.assert_allclose(preprocess(pixels, name), preprocess(pixels, written), atol=1e-6)


@pytest.mark.parametrize("mode, words", [
    ("mean:1", "mean:NUMBERS"), ("mean:1,std:", "mean:NUMBERS"), ("mean:a,std:1", "mean:NUMBERS"),
    ("mean:1,std:0", "above 0"), ("mean:1,std:-2", "above 0"), ("mean:1,2,std:1", "one number or 3")])
def test_other_pairs_are_refused(mode, words):
  with pytest.raises(ValueError, match=words):
    preprocess(np.zeros((1, 3)), mode)


def test_preprocess_by_hand():
  pixels = np.uint8([[0, 51, 255]])
  np.testing.assert_array_equal(preprocess(pixels, "none"), [[0, 51, 255]])
  np.testing.assert_array_equal(preprocess(pixels, "unit"), np.float32([[0, 0.2, 1]]))
  np.testing.assert_array_equal(preprocess(np.uint8([[0], [255]]), "tf"), [[-1], [1]])
  for mode in ("none", "unit", "tf", "torch", "caffe"):
    assert preprocess(np.zeros((1, 3), np.uint8), mode).dtype == np.float32


def test_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no folder .*none"):
    load_images(tmp_path / "none", ImageFormat(4, 4))
  with pytest.raises(ValueError, match="expected images .*.jpg.* in the folder .*found none"):
    load_images(tmp_path, ImageFormat(4, 4))
  write(tmp_path, "good.png", noise(4, 4))
  with pytest.raises(FileNotFoundError, match="there is no image .*other.png; check its name"):
    load_images(tmp_path, ImageFormat(4, 4), names=["good.png", "other.png"])
  with pytest.raises(ValueError, match="expected 1 or 3 channels, got 4"):
    load_images(tmp_path, ImageFormat(4, 4, channels=4))
  with pytest.raises(ValueError, match="expected a mode of .*'unit', 'tf'.*got 'keras'"):
    load_images(tmp_path, ImageFormat(4, 4, preprocess="keras"))
  with pytest.raises(ValueError, match="3 channels for mode 'torch', got 1"):
    preprocess(np.zeros((4, 4, 1)), "torch")


@pytest.mark.parametrize("content", ["text", "empty", "truncated"])
def test_an_image_that_cannot_be_read(tmp_path, content):
  write(tmp_path, "a.png", noise(64, 64))
  whole = (tmp_path / "a.png").read_bytes()
  (tmp_path / "b.png").write_bytes(
      {"text": b"not an image", "empty": b"", "truncated": whole[:len(whole) // 2]}[content])
  with pytest.raises(ValueError, match="b.png cannot be read as an image .*repair or remove"):
    load_images(tmp_path, ImageFormat(4, 4))


def test_read_labels(tmp_path):
  (tmp_path / "labels.csv").write_text("file,label\nb.jpg,3\n\na.jpg, 12\n\"c,d.jpg\",0\n")
  assert read_labels(tmp_path) == {"b.jpg": 3, "a.jpg": 12, "c,d.jpg": 0}
  (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile,label\r\na.jpg,1\r\n")
  assert read_labels(str(tmp_path)) == {"a.jpg": 1}


@pytest.mark.parametrize("text, message", [
    ("", "line 1: expected the header file,label, got ''"),
    ("a.jpg,1\n", "line 1: expected the header file,label, got 'a.jpg,1'"),
    ("file,label\n", "expected a line an image below the header, got none"),
    ("file,label\na.jpg,1\nb.jpg,cat\n", "line 3: expected a file name .*, got 'b.jpg,cat'"),
    ("file,label\na.jpg,-1\n", "line 2: expected a file name"),
    ("file,label\na.jpg,1,2\n", "line 2: expected a file name"),
    ("file,label\n,1\n", "line 2: expected a file name"),
    ("file,label\na.jpg,1\na.jpg,2\n", "line 3: expected each file once, got 'a.jpg' again")])
def test_read_labels_errors(tmp_path, text, message):
  (tmp_path / "labels.csv").write_text(text)
  with pytest.raises(ValueError, match=f"labels.csv.*{message}"):
    read_labels(tmp_path)


def test_read_labels_without_a_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no file .*labels.csv"):
    read_labels(tmp_path)
