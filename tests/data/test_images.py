# SPDX-License-Identifier: Apache-2.0
"""Every hard input is made in memory; real photographs where they are there."""

import concurrent.futures
import io
import pathlib
import resource
import struct
import time
import zlib

import numpy as np
from PIL import Image, ImageCms
import pytest

from cc_jax.data import images

CLOTHING = pathlib.Path(__file__).parents[3] / "shared/data/clothing"


def scene(height=48, width=64):
  """Smooth colours, no two corners alike: [H W 3] uint8."""
  y, x = np.mgrid[:height, :width]
  red = 40 + 170 * y / height
  green = 40 + 170 * x / width
  blue = 120 + 60 * np.sin(x / 9) * np.cos(y / 7)
  return np.stack([red, green, blue], -1).round().astype(np.uint8)


def saved(image, kind, **options):
  """A picture (array or PIL) as the bytes of a file."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def frames(count=3):
  return [Image.fromarray(np.roll(scene(), 7 * i, 1)) for i in range(count)]


def chunk(name, data):
  crc = struct.pack(">I", zlib.crc32(name + data))
  return struct.pack(">I", len(data)) + name + data + crc


def png(width, height, depth=8, colour=2, rows=b"", before=b""):
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + before
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def distance(a, b):
  assert a.shape == b.shape
  return np.abs(a.astype(float) - b.astype(float)).mean()


def refused(data, **options):
  with pytest.raises(images.ImageError) as caught:
    images.decode(data, **options)
  assert caught.value.reason in images.REASONS
  return caught.value.reason


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
  ],
)
def test_a_lossless_file_comes_back_exactly(kind, options):
  image = images.decode(saved(scene(), kind, **options))
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, scene())


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_comes_back_closely(options):
  data = saved(scene(), "JPEG", quality=95, **options)
  assert distance(images.decode(data), scene()) < 1.5


def test_a_still_gif_is_decoded():
  data = saved(Image.fromarray(scene()).quantize(64), "GIF")
  assert distance(images.decode(data), scene()) < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_probe_says_what_decode_gives(kind):
  probe = images.probe(saved(scene(), kind))
  assert (probe.height, probe.width) == (48, 64)
  assert probe.format.upper() == kind


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
    saved(scene(), "ICO"),
    saved(scene(), "JPEG2000"),
    saved(scene(), "PPM"),
    saved(Image.fromarray(scene().astype(np.float32)[..., 0]), "TIFF"),
    saved(Image.fromarray(scene().astype(np.int32)[..., 0]), "TIFF"),
  ],
)
def test_other_formats_are_refused(data):
  assert refused(data) == "format"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind):
  """A cut may take only what follows the pixels; never part of them."""
  data = saved(scene(), kind)
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
  data = saved(scene(), kind)
  assert refused(data[: len(data) // 2 + 200]) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_corrupt_bytes_never_crash_or_warn(kind):
  data = saved(scene(), kind)
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


def test_a_wrong_extension_does_not_matter():
  """Decoding sees bytes only, and these start as what they are."""
  assert images.probe(saved(scene(), "PNG")).format == "PNG"
  assert images.probe(saved(scene(), "WEBP")).format == "WebP"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_more_than_one_frame_is_refused(kind):
  first, *rest = frames()
  data = saved(first, kind, save_all=True, append_images=rest)
  assert refused(data) == "animated"
  with pytest.raises(images.ImageError, match="animated"):
    images.probe(data)


def test_a_phones_jpeg_of_two_pictures_gives_the_first():
  first, second = frames(2)
  data = saved(first, "MPO", save_all=True, append_images=[second])
  assert distance(images.decode(data), scene()) < 3
  assert images.probe(data) == (48, 64, "JPEG")


def test_an_apng_with_a_broken_control_chunk_gives_its_picture():
  data = saved(scene(), "PNG")
  control = chunk(b"acTL", struct.pack(">II", 0, 0))
  data = data[:33] + control + data[33:]
  np.testing.assert_array_equal(images.decode(data), scene())


def test_cmyk_jpegs_are_converted():
  cmyk = Image.fromarray(scene()).convert("CMYK")
  image = images.decode(saved(cmyk, "JPEG", quality=95))
  assert distance(image, scene()) < 3


def test_ycck_jpegs_are_converted():
  """The same samples called YCCK: Adobe's marker with transform 2."""
  cmyk = np.asarray(Image.fromarray(scene()).convert("CMYK"))
  # What a YCCK file stores: three inks as YCbCr, and black inverted.
  ycc = Image.fromarray(cmyk[..., :3]).convert("YCbCr")
  stored = np.dstack([np.asarray(ycc), 255 - cmyk[..., 3]])
  # Pillow stores CMYK inverted, so hand it the complement.
  data = saved(
    Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=95, subsampling=0
  )
  marker = data.index(b"Adobe") + 11
  assert data[marker] == 0
  data = data[:marker] + b"\x02" + data[marker + 1 :]
  assert distance(images.decode(data), scene()) < 4


def test_16_bit_grey_is_scaled_not_clipped():
  ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
  expected = np.round(ramp / 257).astype(np.uint8)
  for kind in "PNG", "TIFF":
    image = images.decode(saved(Image.fromarray(ramp), kind))
    for channel in range(3):
      np.testing.assert_array_equal(image[..., channel], expected)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png_with_more_channels_is_scaled(colour, channels):
  """RGB, grey with alpha and RGBA; Pillow writes none, so by hand."""
  wide = np.full((8, 8, channels), 65535, ">u2")
  wide[..., 0] = np.linspace(0, 65535, 64).reshape(8, 8)
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  image = images.decode(png(8, 8, 16, colour, rows))
  assert np.abs(image[..., 0] - np.round(wide[..., 0] / 257)).max() <= 1
  assert image[0, 0, 0] == 0
  assert image[-1, -1, 0] == 255


def test_16_bit_grey_with_a_transparent_level_shows_white_there():
  wide = np.full((4, 4), 1000, ">u2")
  wide[0, 0] = 30000
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  level = chunk(b"tRNS", struct.pack(">H", 1000))
  image = images.decode(png(4, 4, 16, 0, rows, before=level))
  assert image[0, 0, 0] == 117
  assert (image[1:] == 255).all()


def test_1_bit_becomes_black_and_white():
  bits = Image.fromarray(scene()[..., 0] > 120)
  for kind in "PNG", "TIFF", "BMP":
    image = images.decode(saved(bits, kind))
    assert set(np.unique(image)) == {0, 255}
    np.testing.assert_array_equal(image[..., 0] > 0, scene()[..., 0] > 120)


def test_palettes_are_looked_up():
  picture = Image.fromarray(scene()).quantize(200)
  expected = np.asarray(picture.convert("RGB"))
  for kind in "PNG", "GIF", "TIFF", "BMP":
    np.testing.assert_array_equal(images.decode(saved(picture, kind)), expected)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_transparent_palettes_lie_on_white(transparency):
  picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
  picture.putpalette([0, 0, 0, 100, 0, 0, 0, 100, 0])
  data = saved(picture, "PNG", transparency=transparency)
  image = images.decode(data)
  half = [177, 127, 127] if isinstance(transparency, bytes) else [100, 0, 0]
  assert np.abs(image[0].astype(int) - [[255] * 3, half, [0, 100, 0]]).max() < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode):
  picture = Image.fromarray(scene()).convert(mode)
  picture.putalpha(
    Image.fromarray(np.tile(np.uint8([0, 51, 255, 255]), 768).reshape(48, 64))
  )
  opaque = np.asarray(
    Image.fromarray(scene()).convert(mode[:-1]).convert("RGB")
  ).astype(float)
  alpha = np.asarray(picture)[..., -1:] / 255
  expected = opaque * alpha + 255 * (1 - alpha)
  for kind, options in ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}):
    image = images.decode(saved(picture, kind, **options))
    if kind == "WEBP":  # stores no colour where nothing is seen
      np.testing.assert_array_equal(image[:, ::4], 255)
    assert np.abs(image - expected).max() <= 1.01


def srgb_profile():
  return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile():
  """An sRGB profile whose red and green primaries are exchanged."""
  profile = bytearray(srgb_profile())
  count = struct.unpack_from(">I", profile, 128)[0]
  offsets = {
    bytes(profile[132 + 12 * i :][:4]): 132 + 12 * i + 4 for i in range(count)
  }
  red, green = offsets[b"rXYZ"], offsets[b"gXYZ"]
  profile[red : red + 8], profile[green : green + 8] = (
    profile[green : green + 8],
    profile[red : red + 8],
  )
  return bytes(profile).replace("sRGB".encode("utf-16-be"), b"\0s\0w\0a\0p")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_applied(kind):
  options = {"lossless": True} if kind == "WEBP" else {}
  data = saved(scene(), kind, icc_profile=swapped_profile(), **options)
  image = images.decode(data)
  tolerance = 5 if kind == "JPEG" else 1.5
  assert distance(image, scene()[..., [1, 0, 2]]) < tolerance


def test_an_srgb_profile_changes_nothing():
  data = saved(scene(), "PNG", icc_profile=srgb_profile())
  np.testing.assert_array_equal(images.decode(data), scene())


@pytest.mark.parametrize(
  "profile", [b"no profile", swapped_profile()[:300], b"\0" * 4000]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_broken_profile_does_not_lose_the_picture(kind, profile):
  data = saved(scene(), kind, icc_profile=profile)
  assert distance(images.decode(data), scene()) < 3


def test_a_profile_of_another_colour_space_is_ignored():
  grey = Image.fromarray(scene()).convert("L")
  data = saved(grey, "PNG", icc_profile=swapped_profile())
  np.testing.assert_array_equal(images.decode(data)[..., 0], np.asarray(grey))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
  """The stored picture is the upright one, turned the way the tag undoes."""
  undo = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],  # shown turned clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
  }[orientation]
  stored = np.ascontiguousarray(undo(scene()))
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
  data = saved(stored, kind, exif=exif, **options.get(kind, {}))
  assert distance(images.decode(data), scene()) < 2
  assert images.probe(data)[:2] == (48, 64)


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
  data = saved(scene(), "JPEG", exif=exif)
  assert distance(images.decode(data), scene()) < 3
  assert images.probe(data)[:2] == (48, 64)


def test_a_tiff_with_a_lost_exif_block_is_decoded_silently():
  data = saved(scene(), "TIFF", tiffinfo={34665: 1_000_000})
  np.testing.assert_array_equal(images.decode(data), scene())


def bombs():
  tags = struct.pack("<HHI", 256, 4, 1) + struct.pack("<I", 50_000)
  tags += struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", 50_000)
  tags += struct.pack("<HHI", 258, 3, 1) + struct.pack("<I", 8)
  tags += struct.pack("<HHI", 262, 3, 1) + struct.pack("<I", 1)
  tags += struct.pack("<HHI", 273, 4, 1) + struct.pack("<I", 8)
  jpeg = bytearray(saved(scene(), "JPEG"))
  at = jpeg.index(b"\xff\xc0") + 5
  jpeg[at : at + 4] = struct.pack(">HH", 50_000, 50_000)
  gif = bytearray(saved(scene(), "GIF"))
  gif[6:10] = struct.pack("<HH", 50_000, 50_000)
  webp = saved(scene().repeat(2, 0), "WEBP", lossless=True, exif=b"Exif\0\0II")
  webp = bytearray(webp)
  webp[24:30] = (16_382).to_bytes(3, "little") * 2
  bmp = bytearray(saved(scene(), "BMP"))
  bmp[18:26] = struct.pack("<II", 50_000, 50_000)
  return {
    "PNG": png(50_000, 50_000, rows=bytes(150_001) * 100),
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
  start = time.perf_counter()
  reason = refused(data)
  seconds = time.perf_counter() - start
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  # A WebP whose frames do not fill its canvas is broken before it is large.
  assert reason == "too_large" or (kind == "WEBP" and reason == "corrupt")
  assert grown < 50_000  # KiB; decoded it would be 7,500,000
  assert seconds < 1


def test_the_largest_picture_is_an_option():
  data = saved(scene(), "PNG")
  assert refused(data, max_pixels=48 * 64 - 1) == "too_large"
  assert images.decode(data, max_pixels=48 * 64).shape == (48, 64, 3)


def test_a_picture_between_pillows_limits_and_ours_decodes_silently():
  """Pillow would warn from 89 million pixels on."""
  data = png(9_500, 9_500, 1, 0, rows=bytes(1 + 1188) * 9_500)
  assert images.probe(data)[:2] == (9_500, 9_500)


def test_huge_metadata_is_carried_or_refused():
  comment = b"x" * 60_000
  data = saved(scene(), "JPEG")
  segment = b"\xff\xe9" + struct.pack(">H", len(comment) + 2) + comment
  data = data[:2] + segment * 80 + data[2:]
  assert distance(images.decode(data), scene()) < 3
  text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4_000_000)))
  data = saved(scene(), "PNG")
  assert refused(data[:33] + text + data[33:]) == "too_large"


def test_threads_decode_without_leaking_warnings():
  broken = saved(scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12")
  files = [broken, saved(scene(), "PNG"), saved(scene(), "TIFF")] * 20
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    shapes = {image.shape for image in pool.map(images.decode, files)}
  assert shapes == {(48, 64, 3)}


@pytest.mark.parametrize("frame", [(64, 64), (96, 64), (40, 90)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_a_jpeg_small_looks_like_decoding_it_in_full(
  frame, orientation
):
  rng = np.random.default_rng(0)
  large = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
  large = large.resize((800, 600), Image.Resampling.BICUBIC)
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = saved(large, "JPEG", quality=92, exif=exif)
  small = images.decode(data, at_least=frame)
  full = images.decode(data)
  assert 2 * frame[0] <= small.shape[0] < full.shape[0]
  assert 2 * frame[1] <= small.shape[1] < full.shape[1]
  quick = images.decode_cover(data, *frame)
  slow = images.resize_cover(full, *frame)
  assert distance(quick.image, slow.image) < 1
  np.testing.assert_array_equal(quick.size, slow.size)
  np.testing.assert_array_equal(quick.crop, slow.crop)


def test_a_picture_smaller_than_asked_for_is_decoded_in_full():
  data = saved(scene(), "JPEG")
  assert images.decode(data, at_least=(512, 512)).shape == (48, 64, 3)


def test_cover_keeps_the_aspect_and_says_where_it_cut():
  cover = images.resize_cover(scene(100, 300), 50, 50)
  assert cover.image.shape == (50, 50, 3)
  assert cover.size.tolist() == [100, 300]
  assert cover.crop.tolist() == [0, 50]
  assert (cover.size.dtype, cover.crop.dtype) == (np.int32, np.int32)
  tall = images.resize_cover(scene(300, 100), 50, 50, position=(1.0, 0.5))
  assert tall.crop.tolist() == [100, 0]
  # Red grows downwards, by 170 over the height: the crop is the last third.
  assert tall.image[0, :, 0].mean() > 40 + 170 * 0.66


def test_cover_equals_resizing_and_then_cropping():
  image = scene(90, 131)
  cover = images.resize_cover(image, 40, 40, position=(0.5, 0.3))
  scaled = Image.fromarray(image).resize((58, 40), Image.Resampling.LANCZOS)
  left = cover.crop[1]
  expected = np.asarray(scaled)[:, left : left + 40]
  assert np.abs(cover.image.astype(int) - expected).max() <= 1


def test_cover_of_the_same_size_is_the_picture():
  np.testing.assert_array_equal(
    images.resize_cover(scene(), 48, 64).image, scene()
  )
  np.testing.assert_array_equal(
    images.resize_cover(scene(), 48, 48).image, scene()[:, 8:56]
  )


def test_cover_refuses_an_empty_frame_and_a_position_outside():
  with pytest.raises(ValueError, match="0 x 5"):
    images.resize_cover(scene(), 0, 5)
  with pytest.raises(ValueError, match="position"):
    images.resize_cover(scene(), 5, 5, position=(0.5, 1.5))


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_pixarts_buckets_never_exceed_the_square(side):
  """recipes/pixart.md A.9: 40 frames, 14 token counts, 231 to 256 at 256."""
  table = images.buckets(side)
  assert len(set(table)) == 40
  patch = side // 16
  assert all(h % patch == w % patch == 0 for h, w in table)
  tokens = sorted({h * w // 256 for h, w in table})
  scale = (side // 256) ** 2
  assert tokens[0] == 231 * scale
  assert tokens[-1] == 256 * scale
  assert len(tokens) == 14
  ratios = [h / w for h, w in table]
  assert ratios == sorted(ratios)
  assert (ratios[0], ratios[-1]) == (0.25, 4.0)
  assert (side, side) in table


def test_pixarts_buckets_are_the_published_ones():
  keys = """0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6
    0.68 0.72 0.78 0.82 0.88 0.94 1.0 1.07 1.13 1.21 1.29 1.38 1.46 1.67 1.75
    2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0""".split()
  assert [str(round(h / w, 2)) for h, w in images.PIXART] == keys


@pytest.mark.parametrize(("side", "step"), [(256, 32), (512, 64), (1024, 64)])
def test_buckets_of_a_step_fill_the_square_as_far_as_they_can(side, step):
  table = images.buckets(side, step)
  assert (side, side) in table
  for h, w in table:
    assert h % step == w % step == 0
    assert h * w <= side * side < h * (w + step)
    assert max(h, w) <= 4 * min(h, w)


def test_buckets_refuse_a_side_that_does_not_divide():
  with pytest.raises(ValueError, match="side=500 is not a multiple of 128"):
    images.buckets(500)
  with pytest.raises(ValueError, match="side=500 is not a multiple of 64"):
    images.buckets(500, 64)


def test_the_nearest_bucket_has_the_nearest_shape():
  table = images.buckets(256)
  for i, (h, w) in enumerate(table):
    assert images.nearest_bucket(7 * h, 7 * w, table) == i
  assert table[images.nearest_bucket(3, 4, table)] == (224, 288)
  assert table[images.nearest_bucket(4, 3, table)] == (288, 224)
  assert table[images.nearest_bucket(1, 50, table)] == (128, 512)


def test_png_is_exact_and_deterministic():
  data = images.encode_png(scene())
  assert data == images.encode_png(scene().copy())
  np.testing.assert_array_equal(images.decode(data), scene())


def test_a_grid_shows_every_picture_crisply_with_room_for_labels():
  tiles = np.random.default_rng(0).integers(0, 200, (7, 8, 8, 3), np.uint8)
  plain = images.grid(tiles, 3)
  labelled = images.grid(tiles, 3, ["a handwritten seven"] * 7)
  assert plain.shape[1] == labelled.shape[1]
  assert plain.shape[0] < labelled.shape[0]
  for sheet in plain, labelled:
    assert (sheet[:10] == 255).all()
    assert (sheet[:, -10:] == 255).all()
  # The first picture, enlarged 14 times, pixel by pixel.
  tile = plain[24 : 24 + 112, 24 : 24 + 112]
  np.testing.assert_array_equal(tile[::14, ::14], tiles[0])
  np.testing.assert_array_equal(tile[13::14, 13::14], tiles[0])
  # Dark letters under the picture, and not beside it.
  below = labelled[24 + 114 : 24 + 114 + 38, 24 : 24 + 112]
  assert below.min() < 80
  np.testing.assert_array_equal(images.grid(tiles, 3), plain)


def test_a_grid_of_large_pictures_keeps_their_pixels():
  tiles = np.stack([scene(150, 200)] * 2)
  sheet = images.grid(tiles, 5, ["", "a word"])
  np.testing.assert_array_equal(sheet[24:174, 24:224], scene(150, 200))


def test_a_grid_refuses_nothing_to_show_and_a_label_too_few():
  tiles = np.zeros((2, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match="1 labels for 2 images"):
    images.grid(tiles, 2, ["one"])
  with pytest.raises(ValueError, match="0 images"):
    images.grid(tiles[:0], 2)
  with pytest.raises(ValueError, match="0 columns"):
    images.grid(tiles, 0)


def test_real_photographs_decode_alike_small_and_in_full():
  files = sorted(CLOTHING.glob("train/*/*.jpg"))[::150]
  if not files:
    pytest.skip("no ../shared/data/clothing")
  for file in files:
    data = file.read_bytes()
    full = images.decode(data)
    assert images.probe(data) == (*full.shape[:2], "JPEG")
    assert min(full.shape[:2]) >= 400
    quick = images.decode_cover(data, 64, 64)
    slow = images.resize_cover(full, 64, 64)
    assert distance(quick.image, slow.image) < 1
    assert 5 < quick.image.mean() < 250
