"""One message at a time over Kafka, from one Python process to another.

Prints one latency in ns a line: from just before the producer's produce() until the consumer has
the message. The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

import argparse
import os
import struct
import sys
import time

from confluent_kafka import Consumer, Producer, TopicPartition

COLD = 50
HEAD = struct.Struct("<QQQ")  # stamp, run, index


def client(arguments):
    return {
        "bootstrap.servers": arguments.bootstrap,
        "broker.address.family": "v4",
        "socket.nagle.disable": True,
    }


def consume(arguments, run, ready):
    """Receives until every message of the run is there, then prints their latencies."""
    consumer = Consumer(
        client(arguments)
        | {"group.id": "sandpipe-bench", "enable.auto.commit": False, "fetch.min.bytes": 1}
    )
    partition = TopicPartition(arguments.topic, 0)
    _, end = consumer.get_watermark_offsets(partition, timeout=20)
    consumer.assign([TopicPartition(arguments.topic, 0, end)])
    os.write(ready, b"r")
    latencies = []
    while len(latencies) < arguments.count:
        message = consumer.poll(20)
        now = time.monotonic_ns()
        if message is None:
            raise SystemExit("no message for 20 s")
        if message.error():
            raise SystemExit(str(message.error()))
        stamp, of_run, index = HEAD.unpack_from(message.value())
        if of_run == run and index >= COLD:
            latencies.append(now - stamp)
    consumer.close()
    print("\n".join(map(str, latencies)))


def produce(arguments, run):
    """Sends one message every two milliseconds."""
    producer = Producer(client(arguments) | {"acks": "all", "linger.ms": 0})
    rest = bytes(1024 - HEAD.size)
    for index in range(COLD + arguments.count):
        time.sleep(0.002)
        producer.poll(0)
        stamp = time.monotonic_ns()
        producer.produce(arguments.topic, HEAD.pack(stamp, run, index) + rest, partition=0)
    if producer.flush(20):
        raise SystemExit("messages were not delivered within 20 s")


def main():
    """Forks before either client starts its threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    run = time.monotonic_ns()
    ready, say_ready = os.pipe()
    child = os.fork()
    if child == 0:
        produce_after = os.read(ready, 1)
        if produce_after:
            produce(arguments, run)
        os._exit(0)
    os.close(ready)
    consume(arguments, run, say_ready)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
