"""The official CloudEvents SDK as a client of the front door."""

import urllib.error
import urllib.request
from datetime import datetime, timezone

import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_http_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent

PATIENCE_S = 60
# It answers with what it gets.
APP = """
name = "echo"
[workflow]
chain = ["cat"]
[[grain]]
name = "cat"
runtime = "exec"
handler = "/bin/cat"
"""


@pytest.fixture
def echo(run, tmp_path):
    (tmp_path / "app.toml").write_text(APP)
    return run(tmp_path)


def send(echo, message):
    request = urllib.request.Request(echo.ready["url"], message.body, message.headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return from_http_event(HTTPMessage(headers, answer.read()))


def event(number, data, media):
    attributes = {
        "id": f"e-{number}",
        "source": "/sensors/küche",
        "type": "org.example.reading",
        "subject": '50 % of "all"',
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "datacontenttype": media,
        "room": "9",
    }
    return CloudEvent(attributes, data)


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
def test_the_sdk_reads_the_answer_to_what_it_wrote(echo, write):
    for number, (data, media) in enumerate(
        [
            ({"degrees": [20.5, None, "warm"]}, "application/json"),
            ("plain words, ü", "text/plain"),
            (b"\x89PNG\r\n\x1a\n\0\xff", "image/png"),
        ]
    ):
        answer = send(echo, write(event(number, data, media)))
        assert answer.get_data() == data
        assert answer.get_type() == "sandpipe.answer"
        assert answer.get_source() == "/echo"
        assert answer.get_subject() == '50 % of "all"'
        assert answer.get_extension("room") == "9"


def test_an_event_sent_again_in_the_other_mode_is_the_same_event(echo):
    reading = event(1, "words", "text/plain")
    first = send(echo, to_binary_event(reading))
    assert send(echo, to_structured_event(reading)).get_id() == first.get_id()
    other = send(echo, to_structured_event(event(2, "words", "text/plain")))
    assert other.get_id() != first.get_id()


def test_an_event_without_what_it_needs_is_refused(echo):
    media = {"content-type": "application/cloudevents+json"}
    message = HTTPMessage(media, b'{"specversion":"1.0","id":"1"}')
    with pytest.raises(urllib.error.HTTPError) as refused:
        send(echo, message)
    with refused.value as answer:
        assert answer.code == 400 and b"source" in answer.read()
