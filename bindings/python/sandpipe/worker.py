"""What a grain worker does in Python: load a handler, fork cleanly.

The loop around it (queue, instances, time limits, restarts) is compiled: `_sandpipe.run_worker`.

A forked instance pays about 2 us for each page that it is the first to write to, and every object
that it touches has its reference count written. So the path from fork to handler is short, and
what is only needed for failures is imported then (threading alone resets its state at each fork).
"""

import faulthandler
import gc
import os
import signal
import sys

import _sandpipe
from sandpipe import Context, Event, marks
from sandpipe.answers import encode, explain
from sandpipe.loading import load
from sandpipe.touch import touch

# An instance handles one event: threads of numpy's would cost more than they bring, and threads
# do not survive a fork. Read when numpy is imported; app.toml's env may say otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main():
    """Serves the grain that the environment names; returns the exit code."""
    faulthandler.enable()  # a crash in compiled code says where
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    marks.install()
    return _sandpipe.run_worker(Grain)


class Grain:
    """One loaded handler. What user code raises in these methods becomes text.

    The compiled side calls `function` itself and hands what it returns to `encode`, what it raises
    to `explain`.
    """

    encode = staticmethod(encode)
    explain = staticmethod(explain)

    def __init__(self, handler, name):
        self.handler = handler
        self.name = name
        self.named = None  # what app.toml names
        self.function = None
        self.on_fork = None
        self.frozen = False

    def load(self):
        """In the worker, once. Returns None, or the traceback of what failed."""
        try:
            module, self.named = load(self.handler)
            self.function = marks.marking(self.named)
            self.on_fork = getattr(module, "on_fork", None)
            on_load = getattr(module, "on_load", None)
            if on_load is not None:
                on_load()
        except BaseException as error:
            return explain(error)
        return None

    @property
    def has_work_after_fork(self):
        return self.on_fork is not None or "numpy.random" in sys.modules

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
            print(f"sandpipe: grain {self.name}: on_fork: {explain(error)}", file=sys.stderr)
            _flush()
            os._exit(1)

    def warm(self):
        """In a child that waits: touches what a call will touch. Never calls the handler."""
        event, context = Event(b"{}"), Context()
        event.json()
        encode({"id": event.id, "of": context.grain})
        touch(self.named)

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


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed or replaced by the handler: its business


def _other_threads():
    """Names of Python's threads besides the main one, then of those that Python did not make."""
    threading = sys.modules.get("threading")
    threads = threading.enumerate() if threading else []
    threads = [thread for thread in threads if thread is not threading.main_thread()]
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
