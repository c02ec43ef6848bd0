"""The harness's Python grain: appends its start and its end to the payload.

Both are ns of CLOCK_MONOTONIC, little-endian. Loaded with the same imports by fork_floor.py.
"""

import struct
import time

_STAMPS = struct.Struct("<QQ")


def handle(event, context):
    """Stamps first, then whatever else a handler must do, then stamps again."""
    start = time.monotonic_ns()
    payload = event.data
    return payload + _STAMPS.pack(start, time.monotonic_ns())
