"""Third grain: finds faces in profile with a Haar cascade of opencv-python-headless."""

import cv2

import photo

# Loaded once in the worker; every instance is forked with it.
_faces = None


def on_load():
    global _faces
    # OpenCV's own threads would not survive the fork.
    cv2.setNumThreads(1)
    _faces = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_profileface.xml")
    if _faces.empty():
        raise RuntimeError(f"no face cascade in {cv2.data.haarcascades}")


def handle(event, context):
    about, jpeg = photo.unpack(event.data)
    grey = cv2.cvtColor(photo.decode(jpeg), cv2.COLOR_BGR2GRAY)
    boxes = _faces.detectMultiScale(grey, scaleFactor=1.05, minNeighbors=5, minSize=(60, 60))
    about["objects"] = [
        {"what": "face", "left": int(x), "top": int(y), "width": int(w), "height": int(h)}
        for x, y, w, h in boxes
    ]
    return photo.pack(about, jpeg)
