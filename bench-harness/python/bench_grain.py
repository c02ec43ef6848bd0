"""The harness's Python grain: appends its start and its end to the payload.

Both are ns of CLOCK_MONOTONIC, little-endian. Loaded with the same imports by fork_floor.py.
"""

import struct
import time

_WORD = struct.Struct("<Q")


def handle(event, context):
    """Stamps first, then whatever else a handler must do, then stamps again."""
    start = time.monotonic_ns()
    # What a fresh process pays for its first packing is the handler's, so it comes in between.
    payload = event.data + _WORD.pack(start)
    return payload + _WORD.pack(time.monotonic_ns())
