"""First grain: what the file says about itself. Reads the header, decodes nothing."""

import hashlib

import photo

# Start of frame: baseline, progressive and their rarer relatives; C4, C8, CC are other segments.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def handle(event, context):
    # Whatever an earlier pipeline wrote about the photo is not to be believed.
    _, jpeg = photo.unpack(event.data)
    width, height, channels = frame(jpeg)
    about = {
        "format": "jpeg",
        "bytes": len(jpeg),
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "width": width,
        "height": height,
        "channels": channels,
    }
    return photo.pack(about, jpeg)


def frame(jpeg):
    """(width, height, channels) from the frame header, found by hopping over the segments."""
    at = 2
    while at + 10 <= len(jpeg) and jpeg[at] == 0xFF:
        kind = jpeg[at + 1]
        if kind == 0xFF:  # padding
            at += 1
        elif kind in _FRAMES:
            height = int.from_bytes(jpeg[at + 5 : at + 7], "big")
            width = int.from_bytes(jpeg[at + 7 : at + 9], "big")
            return width, height, jpeg[at + 9]
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise ValueError(f"a damaged JPEG of {len(jpeg)} bytes: no frame header")
