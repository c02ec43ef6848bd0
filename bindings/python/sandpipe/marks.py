"""Lines of a grain's output that say which event they belong to.

Instances share one standard error. Where the sandbox asks for it (SANDPIPE_LOG_MARKS), each line of
sys.stdout and sys.stderr begins with a record separator, the event's id and a space, which the
sandbox takes off again. Who prints nothing pays for one attribute.
"""

import os
import sys

VARIABLE = "SANDPIPE_LOG_MARKS"
MARK = "\x1e"


class Marked:
    """A text stream whose lines begin with a mark while an event is handled."""

    event = None  # of this process: an instance handles one event at a time

    def __init__(self, stream):
        self._stream = stream
        self._at_start = True

    def write(self, text):
        if Marked.event is None or not text:
            return self._stream.write(text)
        mark = f"{MARK}{Marked.event} "
        lines = text.splitlines(keepends=True)
        first = mark + lines[0] if self._at_start else lines[0]
        self._at_start = text.endswith("\n")
        self._stream.write(first + "".join(mark + line for line in lines[1:]))
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def install():
    """Marks the lines of this process, if the sandbox asks for it."""
    if os.environ.get(VARIABLE):
        sys.stdout, sys.stderr = Marked(sys.stdout), Marked(sys.stderr)


def marking(function):
    """The handler, which says first which event it handles; itself where nobody asks."""
    if not isinstance(sys.stdout, Marked):
        return function

    def handle(event, context):
        Marked.event = event.id
        return function(event, context)

    return handle
