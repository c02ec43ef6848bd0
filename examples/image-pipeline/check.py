"""Second grain: refuses what the next ones should not touch, and adds what follows from the size.

A few kilobytes of JPEG can ask for gigabytes of pixels; so this comes before any decoding.
"""

import photo

MEGAPIXELS_MAX = 50
SIDE_MIN = 16


def handle(event, context):
    about, jpeg = photo.unpack(event.data)
    width, height = about["width"], about["height"]
    if min(width, height) < SIDE_MIN:
        raise ValueError(f"{width} x {height} pixels: each side needs {SIDE_MIN} at least")
    megapixels = width * height / 1e6
    if megapixels > MEGAPIXELS_MAX:
        raise ValueError(f"{megapixels:.1f} megapixels; at most {MEGAPIXELS_MAX} are accepted")
    about["megapixels"] = round(megapixels, 3)
    about["orientation"] = orientation(width, height)
    return photo.pack(about, jpeg)


def orientation(width, height):
    if width == height:
        return "square"
    return "portrait" if height > width else "landscape"
