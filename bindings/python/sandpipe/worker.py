"""What a grain worker does in Python: load a handler, fork cleanly, call it, encode its answer.

The loop around it (queue, instances, time limits, restarts) is compiled: `_sandpipe.run_worker`.
"""

import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import traceback

import _sandpipe
from sandpipe import Context, Event, Next
from sandpipe.loading import load

# An instance handles one event: threads of numpy's would cost more than they bring, and threads
# do not survive a fork. Read when numpy is imported; app.toml's env may say otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main():
    """Serves the grain that the environment names; returns the exit code."""
    faulthandler.enable()  # a crash in compiled code says where
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    return _sandpipe.run_worker(Grain)


class Grain:
    """One loaded handler. No method raises: what user code raises becomes text."""

    def __init__(self, handler, name):
        self.handler = handler
        self.name = name
        self.function = None
        self.on_fork = None
        self.frozen = False

    def load(self):
        """In the worker, once. Returns None, or the traceback of what failed."""
        try:
            module, self.function = load(self.handler)
            self.on_fork = getattr(module, "on_fork", None)
            on_load = getattr(module, "on_load", None)
            if on_load is not None:
                on_load()
        except BaseException as error:
            return _explain(error)
        return None

    def before_fork(self):
        """In the worker, before each fork."""
        if not self.frozen:
            self.frozen = True
            self._warn_of_threads()
            # A collection in an instance would otherwise write into every object's header and
            # so copy the page it lies in.
            gc.collect()
            gc.freeze()
        _flush()  # else each child would print it again

    def after_fork(self):
        """In the child. Python has reseeded `random` already; OpenSSL reseeds itself."""
        numpy_random = sys.modules.get("numpy.random")
        try:
            if numpy_random is not None:
                numpy_random.seed()
            if self.on_fork is not None:
                self.on_fork()
        except BaseException as error:
            # An instance without its on_fork must not take an event; the worker tries again.
            print(f"sandpipe: grain {self.name}: on_fork: {_explain(error)}", file=sys.stderr)
            _flush()
            os._exit(1)

    def warm(self):
        """In a child that waits: touches what a call will touch. Never calls the handler."""
        event = Event(b"{}")
        context = Context()
        event.json()
        _call(lambda event, context: {"id": event.id, "of": context.grain}, event, context)

    def handle(self, event, context):
        """Returns (data, next grain or None, failure or None)."""
        return _call(self.function, event, context)

    def before_exit(self):
        """In an instance, after its last event."""
        _flush()

    def _warn_of_threads(self):
        names = _other_threads()
        if names:
            print(
                f"sandpipe: grain {self.name}: warning: the worker has threads "
                f"({', '.join(names)}) that no instance will have",
                file=sys.stderr,
            )


def _call(function, event, context):
    try:
        data = function(event, context)
        if type(data) is Next:
            return _encode(data.data), data.grain, None
        return _encode(data), None, None
    except BaseException as error:  # sys.exit() in a handler is its error, too
        return b"", None, _explain(error)


def _encode(data):
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


def _explain(error):
    """The traceback as text, without the frames of this package."""
    here = os.path.dirname(__file__)
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename, here):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _is_ours(filename, here):
    return filename.startswith((here, "<frozen importlib")) or filename.endswith(
        os.path.join("importlib", "__init__.py")
    )


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed or replaced by the handler: its business


def _other_threads():
    """Names of Python's threads besides the main one, then of those that Python did not make."""
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    # Its own number, as this /proc sees it: getpid() may be that of an inner namespace.
    known = {thread.native_id for thread in threads} | {int(os.readlink("/proc/self"))}
    names = [thread.name for thread in threads]
    for task in sorted(os.listdir("/proc/self/task"), key=int):
        if int(task) not in known:
            try:
                with open(f"/proc/self/task/{task}/comm") as file:
                    names.append(file.read().strip())
            except OSError:
                pass  # it has just ended
    return names
