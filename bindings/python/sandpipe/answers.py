"""What a handler's answer becomes on the bus."""

import json
import os

from sandpipe import Next


def encode(answer):
    """Returns (bytes, next grain or None)."""
    if type(answer) is Next:
        return _to_bytes(answer.data), answer.grain
    return _to_bytes(answer), None


def _to_bytes(data):
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (dict, list)):
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    if data is None:
        return b""
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(
        f"the handler returned a {type(data).__name__}; "
        "return bytes, str, dict, list, None or sandpipe.Next(grain, one of these)"
    )


def explain(error):
    """The traceback as text, without the frames between this package and the user's code."""
    import traceback  # only failures pay for it

    here = os.path.dirname(__file__)
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename, here):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _is_ours(filename, here):
    return filename.startswith((here, "<frozen importlib")) or filename.endswith(
        os.path.join("importlib", "__init__.py")
    )
