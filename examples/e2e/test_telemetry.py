"""Spans as a collector gets them: OTLP over HTTP, decoded with OpenTelemetry's own messages.

Needs a sandpipe with the feature otel: `scripts/test --suite telemetry`.
"""

import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families

PATIENCE_S = 60
# The second grain's instance is killed in its first attempt at an event that says so.
APP = """
name = "shop"
[workflow]
chain = ["check", "pack"]
[[grain]]
name = "check"
runtime = "exec"
handler = "/bin/cat"
[[grain]]
name = "pack"
runtime = "exec"
handler = "pack"
"""
PACK = """#!/bin/sh
read -r text
case "$text$SANDPIPE_ATTEMPT" in
  die1) kill -9 $PPID; exit 1 ;;
  refuse*) echo no >&2; exit 1 ;;
esac
echo "$text"
"""


class Receiver:
    """A collector: keeps what it gets. Each request is answered by its own thread."""

    def __init__(self):
        self.requests = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                message = ExportTraceServiceRequest.FromString(body)
                receiver.requests.append((self.path, self.headers["content-type"], message))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self):
        return [
            span
            for _, _, request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, count):
        until(lambda: len(self.spans()) >= count)
        return self.spans()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def shop(agent, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "pack").write_text(PACK)
    (tmp_path / "shop" / "pack").chmod(0o755)

    def start(settings="", **environment):
        return agent({"shop": APP}, settings, **environment)

    return start


def context(number, flags=1):
    """Trace id, span id of the caller, and its traceparent."""
    trace, span = f"{number + 1:032x}", f"{number + 1:016x}"
    return trace, span, f"00-{trace}-{span}-{flags:02x}"


def attributes(span):
    read = {"string_value": str, "int_value": int}
    values = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        values[pair.key.removeprefix("sandpipe.")] = read[kind](getattr(pair.value, kind))
    return values


def counts(serving):
    with urllib.request.urlopen(serving.ready["url"] + "/metrics", timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        named = {family.name: family for family in families}
    return [named[f"sandpipe_spans_{what}"].samples[0].value for what in ("exported", "dropped")]


def test_each_request_is_a_trace_of_its_grains_under_the_caller_s_span(shop, receiver):
    serving = shop(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SERVICE_NAME="my-shop")
    count, began_ns = 20, time.time_ns()
    for number in range(count):
        status, _, _ = serving.post(b"%d\n" % number, "/shop", traceparent=context(number)[2])
        assert status == 200
    # What the caller has not sampled makes no span.
    serving.post(b"none\n", "/shop", traceparent=context(999, flags=0)[2])
    spans = receiver.wait_for(3 * count)
    ended_ns = time.time_ns()
    until(lambda: counts(serving) == [3 * count, 0])
    assert len(spans) == 3 * count and len({span.span_id for span in spans}) == 3 * count
    traces = {}
    for span in spans:
        traces.setdefault(span.trace_id.hex(), {})[span.name] = span
    assert len(traces) == count
    for number in range(count):
        trace, caller, _ = context(number)
        one = traces[trace]
        assert sorted(one) == ["shop", "shop/check", "shop/pack"]
        request, check, pack = (one[name] for name in sorted(one))
        assert request.parent_span_id.hex() == caller
        assert check.parent_span_id == request.span_id
        assert pack.parent_span_id == check.span_id
        assert (request.kind, check.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
        # Within each other, in order, and by the clock on the wall.
        order = [began_ns, request.start_time_unix_nano, check.start_time_unix_nano]
        order += [check.end_time_unix_nano, pack.end_time_unix_nano]
        order += [request.end_time_unix_nano + 1_000_000, ended_ns + 1_000_000_000]
        assert order == sorted(order)
        assert pack.start_time_unix_nano < pack.end_time_unix_nano
        told = attributes(pack)
        assert len(told.pop("message_id")) == 32
        assert told == {"application": "shop", "grain": "pack", "attempt": 1, "outcome": "output"}
    path, media, message = receiver.requests[0]
    assert (path, media) == ("/v1/traces", "application/x-protobuf")
    resource = message.resource_spans[0].resource.attributes
    names = [pair.value.string_value for pair in resource if pair.key == "service.name"]
    assert names == ["my-shop"]


def test_deaths_failures_and_new_traces_are_told(shop, receiver):
    serving = shop(f'[telemetry]\notlp = "{receiver.url}"\n')
    assert serving.post(b"die\n", "/shop", traceparent=context(1)[2])[0] == 200
    assert serving.post(b"refuse\n", "/shop", traceparent=context(2)[2])[0] == 500
    assert serving.post(b"fine\n", "/shop")[0] == 200
    spans = receiver.wait_for(9)
    assert len(spans) == 9

    def of(trace):
        return {span.name: span for span in spans if span.trace_id.hex() == trace}

    died, refused = of(context(1)[0]), of(context(2)[0])
    assert [attributes(died[name])["attempt"] for name in ("shop/check", "shop/pack")] == [1, 2]
    assert attributes(died["shop"])["outcome"] == "output"
    for name in ("shop", "shop/pack"):
        assert attributes(refused[name])["outcome"] == "handler_error"
        assert refused[name].status.code == Status.STATUS_CODE_ERROR
    assert refused["shop/check"].status.code == Status.STATUS_CODE_UNSET
    # Nobody has called: a new trace, whose first span is the request's.
    [own] = [span for span in spans if span.name == "shop" and not span.parent_span_id]
    assert len(of(own.trace_id.hex())) == 3 and any(own.trace_id)


def test_a_receiver_that_is_not_there_costs_spans_and_nothing_else(shop):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = shop(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    for number in range(10):
        assert serving.post(b"%d\n" % number, "/shop")[0] == 200
    until(lambda: counts(serving) == [0, 30])
    assert serving.stop() == 0
    assert serving.log.read_text().count("spans are dropped") == 1


def test_a_receiver_that_never_answers_holds_up_neither_requests_nor_the_end(shop):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Of 40 requests 10 fit into the queue; a send would wait for ten minutes.
        limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "30", "OTEL_EXPORTER_OTLP_TIMEOUT": "600000"}
        serving = shop(OTEL_EXPORTER_OTLP_ENDPOINT=url, **limits)
        for number in range(40):
            assert serving.post(b"%d\n" % number, "/shop")[0] == 200
        until(lambda: counts(serving) == [0, 90])
        began = time.monotonic()
        assert serving.stop() == 0
        # Two seconds for the receiver, and what an end takes anyway.
        assert time.monotonic() - began < 30
    assert "30 spans are lost" in serving.log.read_text()
