# SPDX-License-Identifier: Apache-2.0
"""What must be refused, and what must be survived: all made in memory."""

import concurrent.futures
import resource
import struct
import time
import zlib

import numpy as np
import pictures
from PIL import Image
import pytest

from cc_jax.data import images


def refused(data, **options):
  with pytest.raises(images.ImageError) as caught:
    images.decode(data, **options)
  assert caught.value.reason in images.REASONS
  return caught.value.reason


def test_no_bytes_are_refused():
  assert refused(b"") == "empty"
  with pytest.raises(images.ImageError, match="empty"):
    images.probe(b"")


@pytest.mark.parametrize(
  "data",
  [
    b"<!DOCTYPE html><html>404</html>",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"P6 1 1 255 abc",
    b"%PDF-1.7",
    b"\x00",
    pictures.saved(pictures.scene(), "ICO"),
    pictures.saved(pictures.scene(), "JPEG2000"),
    pictures.saved(pictures.scene(), "PPM"),
    pictures.saved(
      Image.fromarray(pictures.scene().astype(np.float32)[..., 0]), "TIFF"
    ),
    pictures.saved(
      Image.fromarray(pictures.scene().astype(np.int32)[..., 0]), "TIFF"
    ),
  ],
)
def test_other_formats_are_refused(data):
  assert refused(data) == "format"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind):
  """A cut may take only what follows the pixels; never part of them."""
  data = pictures.saved(pictures.scene(), kind)
  whole = images.decode(data)
  reasons = set()
  for end in range(0, len(data), max(1, len(data) // 97)):
    try:
      image = images.decode(data[:end])
    except images.ImageError as error:
      reasons.add(error.reason)
    else:
      np.testing.assert_array_equal(image, whole)
  assert reasons <= {"empty", "format", "truncated", "corrupt"}
  assert reasons & {"truncated", "corrupt"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_half_a_file_is_called_truncated(kind):
  data = pictures.saved(pictures.scene(), kind)
  assert refused(data[: len(data) // 2 + 200]) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_corrupt_bytes_never_crash_or_warn(kind):
  data = pictures.saved(pictures.scene(), kind)
  rng = np.random.default_rng(0)
  outcomes = set()
  for _ in range(150):
    broken = np.frombuffer(data, np.uint8).copy()
    # Half of the damage falls on the header, where it is worst.
    reach = len(broken) if rng.random() < 0.5 else min(200, len(broken))
    places = rng.integers(0, reach, rng.integers(1, 9))
    broken[places] = rng.integers(0, 256, len(places))
    try:
      image = images.decode(broken.tobytes(), max_pixels=1_000_000)
      assert image.shape[2] == 3
      outcomes.add("kept")
    except images.ImageError as error:
      outcomes.add(error.reason)
  assert outcomes <= {"kept", *images.REASONS}
  assert len(outcomes) > 1


def frames(count=3):
  return [
    Image.fromarray(np.roll(pictures.scene(), 7 * i, 1)) for i in range(count)
  ]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_more_than_one_frame_is_refused(kind):
  first, *rest = frames()
  data = pictures.saved(first, kind, save_all=True, append_images=rest)
  assert refused(data) == "animated"
  with pytest.raises(images.ImageError, match="animated"):
    images.probe(data)


def test_a_phones_jpeg_of_two_pictures_gives_the_first():
  first, second = frames(2)
  data = pictures.saved(first, "MPO", save_all=True, append_images=[second])
  assert pictures.distance(images.decode(data), pictures.scene()) < 3
  assert images.probe(data) == (48, 64, "JPEG")


def test_an_apng_with_a_broken_control_chunk_gives_its_picture():
  data = pictures.saved(pictures.scene(), "PNG")
  control = pictures.chunk(b"acTL", struct.pack(">II", 0, 0))
  data = data[:33] + control + data[33:]
  np.testing.assert_array_equal(images.decode(data), pictures.scene())


@pytest.mark.parametrize(
  "exif",
  [
    b"Exif\0\0rubbish",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\x00\x02\x01\x12\x00\x02\x00\x00\x00\x99",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x2a\0\0\0\0\0\0\0",
  ],
)
def test_broken_exif_does_not_lose_the_picture(exif):
  data = pictures.saved(pictures.scene(), "JPEG", exif=exif)
  assert pictures.distance(images.decode(data), pictures.scene()) < 3
  assert images.probe(data)[:2] == (48, 64)


def test_a_tiff_with_a_lost_exif_block_is_decoded_silently():
  data = pictures.saved(pictures.scene(), "TIFF", tiffinfo={34665: 1_000_000})
  np.testing.assert_array_equal(images.decode(data), pictures.scene())


def bombs():
  tags = struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 50_000)
  tags += struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", 50_000)
  tags += struct.pack("<HHI", 258, 3, 1) + struct.pack("<I", 8)
  tags += struct.pack("<HHI", 262, 3, 1) + struct.pack("<I", 1)
  tags += struct.pack("<HHI", 273, 4, 1) + struct.pack("<I", 8)
  jpeg = bytearray(pictures.saved(pictures.scene(), "JPEG"))
  at = jpeg.index(b"\xff\xc0") + 5
  jpeg[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
  gif = bytearray(pictures.saved(pictures.scene(), "GIF"))
  gif[6:10] = struct.pack("<HH", 50_000, 50_000)
  webp = pictures.saved(
    pictures.scene().repeat(2, 0), "WEBP", lossless=True, exif=b"Exif\0\0II"
  )
  webp = bytearray(webp)
  webp[24:30] = (16_382).to_bytes(3, "little") * 2
  bmp = bytearray(pictures.saved(pictures.scene(), "BMP"))
  bmp[18:26] = struct.pack("<II", 50_000, 50_000)
  return {
    "PNG": pictures.png(50_000, 50_000, rows=bytes(150_001) * 100),
    "TIFF": b"II*\0\x08\0\0\0" + struct.pack("<H", 5) + tags + bytes(4),
    "JPEG": bytes(jpeg),
    "GIF": bytes(gif),
    "WEBP": bytes(webp),
    "BMP": bytes(bmp),
  }


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_bomb_is_refused_from_its_header(kind):
  data = bombs()[kind]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.process_time()
  reason = refused(data)
  seconds = time.process_time() - start
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  # A WebP whose frames do not fill its canvas is broken before it is large.
  assert reason == "too_large" or (kind == "WEBP" and reason == "corrupt")
  assert grown < 50_000  # KiB; decoded it would be 7,500,000
  assert seconds < 1


def test_the_largest_picture_is_an_option():
  data = pictures.saved(pictures.scene(), "PNG")
  assert refused(data, max_pixels=48 * 64 - 1) == "too_large"
  assert images.decode(data, max_pixels=48 * 64).shape == (48, 64, 3)


def test_a_picture_between_pillows_limits_and_ours_decodes_silently():
  """Pillow would warn from 89 million pixels on."""
  data = pictures.png(9_500, 9_500, 1, 0, rows=bytes(1 + 1188) * 9_500)
  assert images.probe(data)[:2] == (9_500, 9_500)


def test_huge_metadata_is_carried_or_refused():
  comment = b"x" * 60_000
  data = pictures.saved(pictures.scene(), "JPEG")
  segment = b"\xff\xe9" + struct.pack(">H", len(comment) + 2) + comment
  data = data[:2] + segment * 80 + data[2:]
  assert pictures.distance(images.decode(data), pictures.scene()) < 3
  text = pictures.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4_000_000)))
  data = pictures.saved(pictures.scene(), "PNG")
  assert refused(data[:33] + text + data[33:]) == "too_large"


def test_threads_decode_without_leaking_warnings():
  broken = pictures.saved(
    pictures.scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12"
  )
  files = [
    broken,
    pictures.saved(pictures.scene(), "PNG"),
    pictures.saved(pictures.scene(), "TIFF"),
  ] * 20
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    shapes = {image.shape for image in pool.map(images.decode, files)}
  assert shapes == {(48, 64, 3)}
