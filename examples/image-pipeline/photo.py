"""What travels between the grains: a JPEG whose first comment holds what is known about it.

Every hop is thus an ordinary JPEG that any program shows, and the answer needs no unpacking:

    FF D8 | FF FE | length (2 bytes, big endian) | "sandpipe " + JSON | rest of the photograph

Run as a program, it prints that JSON: python photo.py thumbnail.jpg
"""

import json
import sys

_START = b"\xff\xd8"
_COMMENT = b"\xff\xfe"
_MARK = b"sandpipe "
# The length field counts itself.
_TEXT_BYTES_MAX = 0xFFFF - 2 - len(_MARK)


def pack(about, jpeg):
    """Puts the dict `about` in front of a JPEG, as its first comment."""
    text = json.dumps(about, separators=(",", ":")).encode()
    if len(text) > _TEXT_BYTES_MAX:
        raise ValueError(f"{len(text)} bytes about one photo; {_TEXT_BYTES_MAX} fit")
    length = (2 + len(_MARK) + len(text)).to_bytes(2, "big")
    return b"".join((_START, _COMMENT, length, _MARK, text, bytes(jpeg[2:])))


def unpack(data):
    """Gives back (about, jpeg); `about` is empty for a photo that comes from outside."""
    if data[:2] != _START:
        raise ValueError(f"not a JPEG: it begins with {bytes(data[:8]).hex(' ') or 'nothing'}")
    if data[2:4] != _COMMENT or data[6 : 6 + len(_MARK)] != _MARK:
        return {}, data
    end = 4 + int.from_bytes(data[4:6], "big")
    return json.loads(data[6 + len(_MARK) : end]), _START + data[end:]


def decode(jpeg):
    """The pixels of a JPEG as OpenCV's array (rows, columns, blue green red)."""
    import cv2
    import numpy

    pixels = cv2.imdecode(numpy.frombuffer(jpeg, numpy.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"a damaged JPEG of {len(jpeg)} bytes: OpenCV cannot decode it")
    return pixels


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            print(json.dumps(unpack(file.read())[0], indent=2))
