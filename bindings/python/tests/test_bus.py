"""The bare bus between two processes."""

import asyncio
import os
import signal
import threading
import time

import pytest

import sandpipe


def in_child(body):
    pid = os.fork()
    if pid == 0:
        code = 1
        # What it waits for may never come: the watchdog is a signal that ends it.
        signal.alarm(120)
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended_well(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("spin", [False, True], ids=["asleep", "awake"])
@pytest.mark.parametrize("size", [8, 64, 65, 1024, 1 << 20])
def test_every_message_arrives_whole_and_in_order(spin, size):
    publisher, subscriber = sandpipe.pair()
    count = 200

    def payload(number):
        return number.to_bytes(8, "little") * (size // 8) + b"z" * (size % 8)

    def publish():
        for number in range(count):
            while True:
                try:
                    publisher.publish(payload(number))
                    break
                except sandpipe.Full:
                    time.sleep(0.001)

    pid = in_child(publish)
    for number in range(count):
        assert subscriber.receive(30, spin=spin) == payload(number)
    assert ended_well(pid)
    assert subscriber.receive(0) is None


def test_a_full_lane_and_an_empty_pool_say_so_and_recover():
    publisher, subscriber = sandpipe.pair(max_bytes=4096, slots=64, chunks=4)
    big = b"b" * 4096
    for _ in range(4):
        publisher.publish(big)
    with pytest.raises(sandpipe.Full, match="chunks"):
        publisher.publish(big)
    while subscriber.receive(0) is not None:
        pass
    for _ in range(64):
        publisher.publish(b"s")
    for _ in range(10):  # more often than there are chunks: each loan comes back
        with pytest.raises(sandpipe.Full, match="lane"):
            publisher.publish(big)
    received = 0
    while subscriber.receive(0) is not None:
        received += 1
    assert received == 64
    publisher.publish(big)
    assert subscriber.receive(30) == big


def test_a_payload_that_can_never_fit_is_no_full_lane():
    publisher, _ = sandpipe.pair(max_bytes=4096)
    with pytest.raises(ValueError, match="4096"):
        publisher.publish(b"x" * 4097)


def test_other_threads_run_while_a_subscriber_waits():
    for spin in (False, True):
        publisher, subscriber = sandpipe.pair()
        threading.Timer(0.05, publisher.publish, [b"late"]).start()
        assert subscriber.receive(30, spin=spin) == b"late"


def test_a_wait_ends_in_time():
    _, subscriber = sandpipe.pair()
    for spin in (False, True):
        begin = time.monotonic()
        assert subscriber.receive(0.12, spin=spin) is None
        assert time.monotonic() - begin >= 0.12
    with pytest.raises(ValueError):
        subscriber.receive(-1)


@pytest.mark.parametrize("waiter", ["io_uring", "futex"])
def test_asyncio_waits_for_a_subscriber_beside_other_tasks(waiter, monkeypatch):
    monkeypatch.setenv("SANDPIPE_WAITER", waiter)
    publisher, subscriber = sandpipe.pair()
    count = 2000

    def publish():
        for number in range(count):
            while True:
                try:
                    publisher.publish(number.to_bytes(8, "little"))
                    break
                except sandpipe.Full:
                    time.sleep(0.001)
            if number % 7 == 0:
                time.sleep(0.0002)

    pid = in_child(publish)

    async def main():
        received, turns, in_vain = [], 0, 0
        done = asyncio.Event()

        def take():
            nonlocal in_vain
            before = len(received)
            while (data := subscriber.receive(0)) is not None:
                received.append(int.from_bytes(data, "little"))
            in_vain += len(received) == before
            if len(received) == count:
                done.set()

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        loop = asyncio.get_running_loop()
        loop.add_reader(subscriber.fileno(), take)
        task = asyncio.create_task(other())
        try:
            await asyncio.wait_for(done.wait(), 60)
        finally:
            loop.remove_reader(subscriber.fileno())
            task.cancel()
        return received, turns, in_vain

    begin = time.monotonic()
    received, turns, in_vain = asyncio.run(main())
    assert ended_well(pid)
    assert received == list(range(count))
    assert turns > 1
    # Readable while there is something, and for a rescan after 50 ms; else the loop would spin.
    rescans = (time.monotonic() - begin) / 0.05
    assert in_vain <= 5 + 2 * rescans, f"{in_vain} looks in vain"
