"""The four handlers in a row, without a bus."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
GRAINS = ("metadata", "check", "detect", "thumbnail")
PHOTO = (HERE / "photo.jpg").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def grains():
    sys.path.insert(0, str(HERE))
    modules = {name: importlib.import_module(name) for name in GRAINS}
    for module in modules.values():
        getattr(module, "on_load", lambda: None)()
    yield modules
    sys.path.remove(str(HERE))
    for name in (*GRAINS, "photo"):
        del sys.modules[name]


def run(grains, data, names=GRAINS):
    for name in names:
        data = grains[name].handle(SimpleNamespace(data=data), None)
    return data


def photo():
    return sys.modules["photo"]


def test_the_answer_is_a_thumbnail_that_says_what_was_found(grains):
    about, jpeg = photo().unpack(run(grains, PHOTO))
    assert about["bytes"] == len(PHOTO)
    assert (about["width"], about["height"], about["channels"]) == (512, 512, 3)
    assert about["orientation"] == "square"
    assert photo().decode(jpeg).shape == (256, 256, 3)


def test_the_face_is_found_and_marked(grains):
    about, jpeg = photo().unpack(run(grains, PHOTO))
    (face,) = about["objects"]
    # His cheek, in the photograph's pixels.
    assert face["left"] < 210 < face["left"] + face["width"]
    assert face["top"] < 140 < face["top"] + face["height"]
    # The box's left edge, at half the size, is green.
    blue, green, red = photo().decode(jpeg)[(face["top"] + 40) // 2, face["left"] // 2]
    assert green > 150 and green > blue + 40 and green > red + 40


def test_every_hop_is_a_jpeg_that_opencv_reads(grains):
    data = PHOTO
    for name in GRAINS:
        data = run(grains, data, [name])
        assert photo().decode(data) is not None, name


def test_a_thumbnail_goes_through_the_pipeline_again(grains):
    first = run(grains, PHOTO)
    about, _ = photo().unpack(run(grains, first))
    assert about["width"] == 256
    assert about["bytes"] == len(photo().unpack(first)[1])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a JPEG: it begins with nothing"),
        (b"hello", "not a JPEG"),
        (PHOTO[:100], "no frame header"),
        (b"\xff\xd8\xff\xfe\x00\x00" + PHOTO[2:40], "no frame header"),
    ],
)
def test_what_is_no_photo_is_refused_before_it_is_decoded(grains, data, says):
    with pytest.raises(ValueError, match=says):
        run(grains, data, ["metadata"])


def test_a_small_file_that_asks_for_many_pixels_is_refused(grains):
    at = PHOTO.index(b"\xff\xc0") + 5
    huge = PHOTO[:at] + b"\xff\xff\xff\xff" + PHOTO[at + 4 :]
    with pytest.raises(ValueError, match="4294.8 megapixels; at most 50"):
        run(grains, huge, ["metadata", "check"])


def test_a_torn_photo_is_refused_by_the_decoder(grains):
    start = PHOTO.index(b"\xff\xda")
    with pytest.raises(ValueError, match="damaged JPEG"):
        run(grains, PHOTO[:start])


def test_a_comment_that_is_not_ours_is_left_alone(grains):
    foreign = PHOTO[:2] + b"\xff\xfe\x00\x07hello" + PHOTO[2:]
    assert photo().unpack(foreign) == ({}, foreign)
    about, _ = photo().unpack(run(grains, foreign))
    assert len(about["objects"]) == 1


def test_too_much_about_a_photo_is_an_error_and_not_a_broken_file(grains):
    with pytest.raises(ValueError, match="fit"):
        photo().pack({"x": "y" * 70000}, PHOTO)
