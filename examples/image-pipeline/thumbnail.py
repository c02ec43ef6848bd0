"""Fourth grain: shrinks the photo and draws a box around each object."""

import cv2

import photo

SIDE_MAX = 256
_GREEN = (80, 220, 80)


def on_load():
    cv2.setNumThreads(1)


def handle(event, context):
    about, jpeg = photo.unpack(event.data)
    pixels = photo.decode(jpeg)
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE_MAX / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for found in about["objects"]:
        left, top = round(found["left"] * scale), round(found["top"] * scale)
        right = round((found["left"] + found["width"]) * scale)
        bottom = round((found["top"] + found["height"]) * scale)
        cv2.rectangle(small, (left, top), (right, bottom), _GREEN, 2)
    about["thumbnail"] = {"width": size[0], "height": size[1]}
    written, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not written:
        raise RuntimeError(f"OpenCV cannot encode {size[0]} x {size[1]} pixels")
    return photo.pack(about, data.tobytes())
