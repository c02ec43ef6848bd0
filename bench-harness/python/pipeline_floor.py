"""The least that fresh Python processes for the image pipeline can cost.

One worker a grain, which has loaded its module. For each photograph the first worker forks, its
child runs the handler, then the second forks, and so on: the forks find the processor's caches and
the machine's pace as the pipeline's do. Counted is only the time from the call of each fork until
its child's first line. Prints the sum over the grains in ns, one line a photograph.
"""

import argparse
import gc
import mmap
import os
import time
import types

from fork_floor import die_with_parent, load

COLD = 3
ANSWER_MAX = 16 << 20


class Stage:
    """A grain's worker, and the memory in which its children leave their answers."""

    def __init__(self, path):
        self.stamps = mmap.mmap(-1, mmap.PAGESIZE)
        self.answer = mmap.mmap(-1, ANSWER_MAX)
        order, self._order = os.pipe()
        self._done, done = os.pipe()
        if os.fork() == 0:
            die_with_parent()
            handle = load(path).handle
            gc.collect()
            gc.freeze()
            os.write(done, b"1")
            while os.read(order, 1):
                length = int.from_bytes(self.stamps[:8], "little")
                payload = self.answer[:length]
                self._fork(handle, payload)
                os.write(done, b"1")
            os._exit(0)
        os.read(self._done, 1)

    def _fork(self, handle, payload):
        start = time.monotonic_ns()
        child = os.fork()
        if child == 0:
            ran = time.monotonic_ns()
            answer = handle(types.SimpleNamespace(data=payload), None)
            self.answer[: len(answer)] = answer
            words = (len(answer), ran - start)
            self.stamps[:16] = b"".join(word.to_bytes(8, "little") for word in words)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            raise SystemExit("a handler failed")

    def take(self, payload):
        """Returns (ns from fork to first line, answer)."""
        self.answer[: len(payload)] = payload
        self.stamps[:8] = len(payload).to_bytes(8, "little")
        os.write(self._order, b"1")
        if not os.read(self._done, 1):
            raise SystemExit("a worker ended")
        length, ns = (int.from_bytes(self.stamps[at : at + 8], "little") for at in (0, 8))
        return ns, self.answer[:length]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, required=True)
    parser.add_argument("modules", nargs="+", help="the grains' Python files, in order")
    arguments = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    stages = [Stage(module) for module in arguments.modules]
    with open(arguments.photo, "rb") as file:
        photo = file.read()
    for turn in range(COLD + arguments.count):
        time.sleep(arguments.pause_ms / 1000)
        payload, total = photo, 0
        for stage in stages:
            ns, payload = stage.take(payload)
            total += ns
        if turn >= COLD:
            print(total)


if __name__ == "__main__":
    main()
