# SPDX-License-Identifier: Apache-2.0
"""Pictures made in memory; real photographs where they are there."""

import pathlib
import struct

import numpy as np
import pictures
from PIL import Image, ImageCms
import pytest
import transformers

from cc_jax.data import images, squares

CLOTHING = pathlib.Path(__file__).parents[3] / "shared/data/clothing"


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
  image = images.decode(pictures.saved(pictures.scene(), kind, **options))
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, pictures.scene())


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_comes_back_closely(options):
  data = pictures.saved(pictures.scene(), "JPEG", quality=95, **options)
  assert pictures.distance(images.decode(data), pictures.scene()) < 1.5


def test_a_still_gif_is_decoded():
  data = pictures.saved(Image.fromarray(pictures.scene()).quantize(64), "GIF")
  assert pictures.distance(images.decode(data), pictures.scene()) < 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_probe_says_what_decode_gives(kind):
  probe = images.probe(pictures.saved(pictures.scene(), kind))
  assert (probe.height, probe.width) == (48, 64)
  assert probe.format.upper() == kind


def test_a_wrong_extension_does_not_matter():
  """Decoding sees bytes only, and these start as what they are."""
  assert images.probe(pictures.saved(pictures.scene(), "PNG")).format == "PNG"
  assert images.probe(pictures.saved(pictures.scene(), "WEBP")).format == "WebP"


def test_cmyk_jpegs_are_converted():
  cmyk = Image.fromarray(pictures.scene()).convert("CMYK")
  image = images.decode(pictures.saved(cmyk, "JPEG", quality=95))
  assert pictures.distance(image, pictures.scene()) < 3


def test_ycck_jpegs_are_converted():
  """The same samples called YCCK: Adobe's marker with transform 2."""
  cmyk = np.asarray(Image.fromarray(pictures.scene()).convert("CMYK"))
  # What a YCCK file stores: three inks as YCbCr, and black inverted.
  ycc = Image.fromarray(cmyk[..., :3]).convert("YCbCr")
  stored = np.dstack([np.asarray(ycc), 255 - cmyk[..., 3]])
  # Pillow stores CMYK inverted, so hand it the complement.
  data = pictures.saved(
    Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=95, subsampling=0
  )
  marker = data.index(b"Adobe") + 11
  assert data[marker] == 0
  data = data[:marker] + b"\x02" + data[marker + 1 :]
  assert pictures.distance(images.decode(data), pictures.scene()) < 4


def test_16_bit_grey_is_scaled_not_clipped():
  ramp = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
  expected = np.round(ramp / 257).astype(np.uint8)
  for kind in "PNG", "TIFF":
    image = images.decode(pictures.saved(Image.fromarray(ramp), kind))
    for channel in range(3):
      np.testing.assert_array_equal(image[..., channel], expected)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png_with_more_channels_is_scaled(colour, channels):
  """RGB, grey with alpha and RGBA; Pillow writes none, so by hand."""
  wide = np.full((8, 8, channels), 65535, ">u2")
  wide[..., 0] = np.linspace(0, 65535, 64).reshape(8, 8)
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  image = images.decode(pictures.png(8, 8, 16, colour, rows))
  assert np.abs(image[..., 0] - np.round(wide[..., 0] / 257)).max() <= 1
  assert image[0, 0, 0] == 0
  assert image[-1, -1, 0] == 255


def test_16_bit_grey_with_a_transparent_level_shows_white_there():
  wide = np.full((4, 4), 1000, ">u2")
  wide[0, 0] = 30000
  rows = b"".join(b"\0" + row.tobytes() for row in wide)
  level = pictures.chunk(b"tRNS", struct.pack(">H", 1000))
  image = images.decode(pictures.png(4, 4, 16, 0, rows, before=level))
  assert image[0, 0, 0] == 117
  assert (image[1:] == 255).all()


def test_1_bit_becomes_black_and_white():
  bits = Image.fromarray(pictures.scene()[..., 0] > 120)
  for kind in "PNG", "TIFF", "BMP":
    image = images.decode(pictures.saved(bits, kind))
    assert set(np.unique(image)) == {0, 255}
    np.testing.assert_array_equal(
      image[..., 0] > 0, pictures.scene()[..., 0] > 120
    )


def test_palettes_are_looked_up():
  picture = Image.fromarray(pictures.scene()).quantize(200)
  expected = np.asarray(picture.convert("RGB"))
  for kind in "PNG", "GIF", "TIFF", "BMP":
    np.testing.assert_array_equal(
      images.decode(pictures.saved(picture, kind)), expected
    )


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_transparent_palettes_lie_on_white(transparency):
  picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
  picture.putpalette([0, 0, 0, 100, 0, 0, 0, 100, 0])
  data = pictures.saved(picture, "PNG", transparency=transparency)
  image = images.decode(data)
  half = [177, 127, 127] if isinstance(transparency, bytes) else [100, 0, 0]
  assert np.abs(image[0].astype(int) - [[255] * 3, half, [0, 100, 0]]).max() < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode):
  picture = Image.fromarray(pictures.scene()).convert(mode)
  picture.putalpha(
    Image.fromarray(np.tile(np.uint8([0, 51, 255, 255]), 768).reshape(48, 64))
  )
  opaque = np.asarray(
    Image.fromarray(pictures.scene()).convert(mode[:-1]).convert("RGB")
  ).astype(float)
  alpha = np.asarray(picture)[..., -1:] / 255
  expected = opaque * alpha + 255 * (1 - alpha)
  for kind, options in ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}):
    image = images.decode(pictures.saved(picture, kind, **options))
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
  data = pictures.saved(
    pictures.scene(), kind, icc_profile=swapped_profile(), **options
  )
  image = images.decode(data)
  tolerance = 5 if kind == "JPEG" else 1.5
  assert pictures.distance(image, pictures.scene()[..., [1, 0, 2]]) < tolerance


def test_an_srgb_profile_changes_nothing():
  data = pictures.saved(pictures.scene(), "PNG", icc_profile=srgb_profile())
  np.testing.assert_array_equal(images.decode(data), pictures.scene())


@pytest.mark.parametrize(
  "profile", [b"no profile", swapped_profile()[:300], b"\0" * 4000]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_broken_profile_does_not_lose_the_picture(kind, profile):
  data = pictures.saved(pictures.scene(), kind, icc_profile=profile)
  assert pictures.distance(images.decode(data), pictures.scene()) < 3


def test_a_profile_of_another_colour_space_is_ignored():
  grey = Image.fromarray(pictures.scene()).convert("L")
  data = pictures.saved(grey, "PNG", icc_profile=swapped_profile())
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
  stored = np.ascontiguousarray(undo(pictures.scene()))
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
  data = pictures.saved(stored, kind, exif=exif, **options.get(kind, {}))
  assert pictures.distance(images.decode(data), pictures.scene()) < 2
  assert images.probe(data)[:2] == (48, 64)


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
  data = pictures.saved(large, "JPEG", quality=92, exif=exif)
  small = images.decode(data, at_least=frame)
  full = images.decode(data)
  assert 2 * frame[0] <= small.shape[0] < full.shape[0]
  assert 2 * frame[1] <= small.shape[1] < full.shape[1]
  quick = images.decode_cover(data, *frame)
  slow = images.resize_cover(full, *frame)
  assert pictures.distance(quick.image, slow.image) < 1
  np.testing.assert_array_equal(quick.size, slow.size)
  np.testing.assert_array_equal(quick.crop, slow.crop)


@pytest.mark.parametrize(
  ("kind", "decodes"), [("JPEG", 2), ("PNG", 1), ("WebP", 1)]
)
def test_covers_of_one_file_share_what_is_decoded(kind, decodes, monkeypatch):
  large = Image.fromarray(pictures.scene()).resize((800, 600))
  data = pictures.saved(large, kind)
  frames = [(256, 256), (280, 160), (64, 64), (60, 70), (64, 64)]
  alone = [images.decode_cover(data, *frame) for frame in frames]
  calls, rgb = [], images._rgb
  monkeypatch.setattr(images, "_rgb", lambda x: calls.append(x) or rgb(x))
  decoded = {}
  for frame, expected in zip(frames, alone, strict=True):
    found = images.decode_cover(data, *frame, decoded=decoded)
    for mine, theirs in zip(found, expected, strict=True):
      np.testing.assert_array_equal(mine, theirs)
  # A JPEG in full and at a quarter of its size, the others in full.
  assert len(calls) == len(decoded) == decodes


def test_a_picture_smaller_than_asked_for_is_decoded_in_full():
  data = pictures.saved(pictures.scene(), "JPEG")
  assert images.decode(data, at_least=(512, 512)).shape == (48, 64, 3)


def test_cover_keeps_the_aspect_and_says_where_it_cut():
  cover = images.resize_cover(pictures.scene(100, 300), 50, 50)
  assert cover.image.shape == (50, 50, 3)
  assert cover.size.tolist() == [100, 300]
  assert cover.crop.tolist() == [0, 50]
  assert (cover.size.dtype, cover.crop.dtype) == (np.int32, np.int32)
  tall = images.resize_cover(
    pictures.scene(300, 100), 50, 50, position=(1.0, 0.5)
  )
  assert tall.crop.tolist() == [100, 0]
  # Red grows downwards, by 170 over the height: the crop is the last third.
  assert tall.image[0, :, 0].mean() > 40 + 170 * 0.66


def test_cover_equals_resizing_and_then_cropping():
  image = pictures.scene(90, 131)
  cover = images.resize_cover(image, 40, 40, position=(0.5, 0.3))
  scaled = Image.fromarray(image).resize((58, 40), Image.Resampling.LANCZOS)
  left = cover.crop[1]
  expected = np.asarray(scaled)[:, left : left + 40]
  assert np.abs(cover.image.astype(int) - expected).max() <= 1


def test_cover_of_the_same_size_is_the_picture():
  np.testing.assert_array_equal(
    images.resize_cover(pictures.scene(), 48, 64).image, pictures.scene()
  )
  np.testing.assert_array_equal(
    images.resize_cover(pictures.scene(), 48, 48).image,
    pictures.scene()[:, 8:56],
  )


def test_cover_refuses_an_empty_frame_and_a_position_outside():
  with pytest.raises(ValueError, match="0 x 5"):
    images.resize_cover(pictures.scene(), 0, 5)
  with pytest.raises(ValueError, match="position"):
    images.resize_cover(pictures.scene(), 5, 5, position=(0.5, 1.5))


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (53, 79), (32, 32)])
def test_the_middle_is_what_clips_preprocessing_gives(shape):
  picture = pictures.scene(*shape)
  found = squares.square(picture, 20, squares.CROP)
  processor = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 20},
    crop_size={"height": 20, "width": 20},
    do_normalize=False,
    do_rescale=False,
  )
  (expected,) = processor([picture], return_tensors="np")["pixel_values"]
  np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


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
    assert pictures.distance(quick.image, slow.image) < 1
    assert 5 < quick.image.mean() < 250
