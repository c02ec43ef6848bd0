"""Grains in Python.

A grain is a function in a file that app.toml names:

    def handle(event, context):
        return {"said": event.text, "by": context.grain}

It returns bytes, a str (sent as UTF-8), a dict or list (sent as JSON) or None (no bytes), or one
of these for a grain of its choice: `Next("grain", data)`. An exception is the request's error.

Two more functions of the same module are called if they are there: `on_load()` once, after the
module was imported in the grain worker, and `on_fork()` in every instance that is forked from it.
"""

from _sandpipe import Context, Event, Full, Publisher, Subscriber, pair


class Next:
    """An output for one grain, chosen by the handler: for workflows with next = "by_output"."""

    __slots__ = ("grain", "data")

    def __init__(self, grain, data):
        self.grain = grain
        self.data = data

    def __repr__(self):
        return f"sandpipe.Next({self.grain!r}, {self.data!r})"


__all__ = ["Context", "Event", "Full", "Next", "Publisher", "Subscriber", "pair"]
