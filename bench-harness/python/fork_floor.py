"""The least that a fresh Python process for a message can cost.

A worker that has loaded a grain's module sleeps on a futex; a waker stamps the clock and wakes it;
the worker forks at once and the child stamps its first line. Prints one latency in ns a line.

The worker prepares itself as Sandpipe's does: the module loaded once, its on_load called, garbage
collected and frozen.
"""

import argparse
import ctypes
import gc
import importlib.util
import mmap
import os
import signal
import sys
import time

COLD = 3
FUTEX = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
FUTEX_WAIT, FUTEX_WAKE = 0, 1
PR_SET_PDEATHSIG = 1


class Shared:
    """Words that waker, worker and children share."""

    def __init__(self):
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.bell = ctypes.c_uint32.from_buffer(self.page, 0)
        self.acked = ctypes.c_uint32.from_buffer(self.page, 128)
        self.stamp = ctypes.c_uint64.from_buffer(self.page, 256)
        self.ran = ctypes.c_uint64.from_buffer(self.page, 384)
        self.libc = ctypes.CDLL(None, use_errno=True)

    def wait(self, seen):
        self.libc.syscall(FUTEX, ctypes.byref(self.bell), FUTEX_WAIT, seen, None, None, 0)

    def wake(self):
        self.libc.syscall(FUTEX, ctypes.byref(self.bell), FUTEX_WAKE, 1, None, None, 0)


def load(path):
    """Imports a grain's file as its worker does."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    on_load = getattr(module, "on_load", None)
    if on_load is not None:
        on_load()
    return module


def die_with_parent():
    """Nothing of this outlives a killed harness."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def worker(shared, turns):
    """Forks once for each ring of the bell."""
    die_with_parent()
    gc.collect()
    gc.freeze()
    for turn in range(1, turns + 1):
        while shared.bell.value != turn:
            shared.wait(turn - 1)
        child = os.fork()
        if child == 0:
            shared.ran.value = time.monotonic_ns()
            os._exit(0)
        os.waitpid(child, 0)
        shared.acked.value = turn
    os._exit(0)


def main():
    """Forks the worker after the module is loaded, then rings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", required=True, help="the grain's Python file")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, default=5.0)
    arguments = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    load(arguments.module)
    shared = Shared()
    turns = COLD + arguments.count
    process = os.fork()
    if process == 0:
        worker(shared, turns)
    latencies = []
    for turn in range(1, turns + 1):
        time.sleep(arguments.pause_ms / 1000)
        shared.stamp.value = time.monotonic_ns()
        shared.bell.value = turn
        shared.wake()
        # A publisher goes on working after a wake (AT_WORK of the compiled probes).
        at_work = time.monotonic_ns() + 10_000
        while time.monotonic_ns() < at_work:
            pass
        deadline = time.monotonic() + 20
        while shared.acked.value != turn:
            if time.monotonic() > deadline:
                raise SystemExit("the worker is silent")
            time.sleep(0.0005)
        latencies.append(shared.ran.value - shared.stamp.value)
    os.waitpid(process, 0)
    print("\n".join(map(str, latencies[COLD:])))


if __name__ == "__main__":
    main()
