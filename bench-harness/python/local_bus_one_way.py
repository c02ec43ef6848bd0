"""One message at a time over the local bus, from one Python process to another.

Prints one latency in ns a line: from just before the producer's publish() until the consumer has
the bytes. The two processes are pinned to two CPUs. With --asleep the consumer sleeps between two
messages, else it spins.
"""

import argparse
import mmap
import os
import struct
import sys
import time

import sandpipe

COLD = 100
STAMP = struct.Struct("<Q")


def pause(ns):
    """Stays awake for a while."""
    end = time.monotonic_ns() + ns
    while time.monotonic_ns() < end:
        pass


def produce(publisher, acked, turns, pause_ns):
    """Sends a message once the one before is acknowledged."""
    rest = bytes(1024 - STAMP.size)
    for turn in range(turns):
        deadline = time.monotonic() + 20
        while STAMP.unpack_from(acked)[0] != turn:
            if time.monotonic() > deadline:
                raise SystemExit("the consumer is silent")
        pause(pause_ns)
        stamp = time.monotonic_ns()
        publisher.publish(STAMP.pack(stamp) + rest)


def consume(subscriber, acked, turns, spin):
    """Receives every message; gives the latencies."""
    latencies = []
    for turn in range(turns):
        message = subscriber.receive(20, spin=spin)
        now = time.monotonic_ns()
        if message is None:
            raise SystemExit("no message for 20 s")
        latencies.append(now - STAMP.unpack_from(message)[0])
        STAMP.pack_into(acked, 0, turn + 1)
    return latencies


def main():
    """Makes the bus, then forks: the child produces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--cpus", required=True, help="producer's and consumer's: 0,1")
    parser.add_argument("--asleep", action="store_true")
    arguments = parser.parse_args()
    cpus = [int(cpu) for cpu in arguments.cpus.split(",")]
    turns = COLD + arguments.count
    publisher, subscriber = sandpipe.pair(max_bytes=1024)
    acked = mmap.mmap(-1, mmap.PAGESIZE)
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cpus[0]})
        produce(publisher, acked, turns, 150_000 if arguments.asleep else 2_000)
        os._exit(0)
    os.sched_setaffinity(0, {cpus[1]})
    latencies = consume(subscriber, acked, turns, not arguments.asleep)
    _, status = os.waitpid(child, 0)
    print("\n".join(map(str, latencies[COLD:])))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
