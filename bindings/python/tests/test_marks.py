"""Lines that say which event they belong to."""

import io
import sys

from sandpipe import marks

EVENT = "ab" * 16


class Event:
    id = EVENT


def marked_streams(monkeypatch):
    """Makes standard streams as `install` leaves them where marks are asked for; what they get."""
    out = io.StringIO()
    monkeypatch.setenv(marks.VARIABLE, "1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(marks.Marked, "event", None)
    marks.install()
    return out


def test_each_line_of_a_handler_is_marked_with_its_event(monkeypatch):
    def handle(event, context):
        print("a", "b")
        print("c\nd", end="", file=sys.stderr)
        print("e", file=sys.stderr)

    # Not a fixture: pytest puts its own streams in place between the two.
    out = marked_streams(monkeypatch)
    print("before")
    marks.marking(handle)(Event(), None)
    mark = f"{marks.MARK}{EVENT} "
    assert out.getvalue() == f"before\n{mark}a b\n{mark}c\n{mark}de\n"


def test_where_nobody_asks_nothing_is_wrapped(monkeypatch):
    monkeypatch.delenv(marks.VARIABLE, raising=False)
    before = sys.stdout
    marks.install()
    assert sys.stdout is before
    assert marks.marking(len) is len
