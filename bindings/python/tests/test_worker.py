"""A Python grain worker as its sandbox starts it: real processes, a real bus."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

WAYS = [{"spares": 2}, {"spares": 0}, {"mode": "pool"}]
way = pytest.mark.parametrize("settings", WAYS, ids=["ahead", "on-demand", "pool"])

ECHO = "def handle(event, context):\n    return event.data\n"


def answer(asked):
    what, _, data = asked
    assert what == "final", asked
    return data


@way
def test_a_handler_answers_in_every_mode(worker, settings):
    grain = worker(ECHO, **settings)
    assert answer(grain.ask(b"hello")) == b"hello"
    assert answer(grain.ask(b"")) == b""
    assert answer(grain.ask(bytes(range(256)) * 100)) == bytes(range(256)) * 100
    assert grain.finish() == 0
    assert grain.stderr() == ""


def test_what_a_handler_sees(worker):
    grain = worker(
        "import os\n"
        "def handle(event, context):\n"
        "    return {'text': event.text, 'json': event.json(), 'id': event.id,\n"
        "            'root': event.root, 'attempt': event.attempt, 'app': context.app,\n"
        "            'grain': context.grain, 'key': context.idempotency_key,\n"
        "            'next': list(context.next),\n"
        "            'threads': os.environ['OPENBLAS_NUM_THREADS']}\n"
    )
    seen = json.loads(answer(grain.ask(b'{"a": 1}')))
    key = seen.pop("key")
    assert seen == {
        "text": '{"a": 1}',
        "json": {"a": 1},
        "id": f"{1:032x}",
        "root": f"{1:032x}",
        "attempt": 1,
        "app": "test",
        "grain": "g",
        "next": [],
        "threads": "1",
    }
    assert key and key != json.loads(answer(grain.ask(b"{}")))["key"]


def test_an_output_goes_to_the_grain_that_the_handler_names(worker):
    source = (
        "import sandpipe\n"
        "def handle(event, context):\n"
        "    return sandpipe.Next(event.text, {'for': list(context.next)})\n"
    )
    following = [{"grain": "left", "family": 2}, {"grain": "right", "family": 3}]
    grain = worker(source, next=following, route="by_output")
    data = b'{"for":["left","right"]}'
    assert grain.ask(b"right") == ("output", "right", data)
    assert grain.ask(b"left") == ("output", "left", data)
    what, _, text = grain.ask(b"nowhere")
    assert what == "failed" and b"nowhere" in text


@way
def test_the_module_is_loaded_once_and_on_load_too(worker, settings):
    grain = worker(
        "import os\n"
        "loaded = [os.getpid()]\n"
        "def on_load():\n"
        "    loaded.append(os.getpid())\n"
        "def handle(event, context):\n"
        "    return {'loaded': loaded, 'me': os.getpid()}\n",
        **settings,
    )
    told = [json.loads(answer(grain.ask())) for _ in range(4)]
    assert all(one["loaded"] == [grain.pid, grain.pid] for one in told)
    instances = {one["me"] for one in told}
    assert grain.pid not in instances
    if settings.get("mode") != "pool":
        assert len(instances) == 4, "a fresh process for each event"


@way
def test_every_instance_has_its_own_random_numbers(worker, settings):
    grain = worker(
        "import random, numpy.random\n"
        "def handle(event, context):\n"
        "    return [random.random(), numpy.random.random()]\n",
        **settings,
    )
    drawn = [tuple(json.loads(answer(grain.ask()))) for _ in range(4)]
    assert len({python for python, _ in drawn}) == 4
    assert len({numpy for _, numpy in drawn}) == 4


def test_on_fork_runs_in_the_instance_before_its_event(worker):
    grain = worker(
        "import os\n"
        "forked = []\n"
        "def on_fork():\n"
        "    forked.append(os.getpid())\n"
        "def handle(event, context):\n"
        "    return {'right': forked == [os.getpid()]}\n"
    )
    assert answer(grain.ask()) == b'{"right":true}'


def test_a_failing_on_fork_takes_no_event(worker, tmp_path):
    grain = worker(
        "import os\n"
        "def on_fork():\n"
        "    if not os.path.exists('mended'):\n"
        "        raise OSError('no socket')\n" + ECHO
    )
    grain.send(b"late")
    deadline = time.monotonic() + 30
    while grain.stderr().count("OSError: no socket") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "on_fork: Traceback" in grain.stderr()
    assert grain.next_line() == "attached"
    assert grain.lines.empty()
    (tmp_path / "mended").touch()
    assert grain.next_line() == f"final 1 {b'late'.hex()}"


def test_objects_of_the_worker_are_frozen_for_the_collector(worker):
    source = "import gc\ndef handle(event, context):\n    return str(gc.get_freeze_count())\n"
    grain = worker(source)
    assert int(answer(grain.ask())) > 1000


@way
def test_printed_text_comes_out_once(worker, settings):
    grain = worker(
        "import sys\n"
        "sys.stdout.write('loading-')\n"
        "def handle(event, context):\n"
        "    sys.stdout.write('handled-')\n",
        **settings,
    )
    for _ in range(3):
        assert answer(grain.ask()) == b""
    assert grain.finish() == 0
    assert grain.stderr().count("loading-") == 1
    assert grain.stderr().count("handled-") == 3


def test_threads_at_the_fork_are_named_once(worker):
    grain = worker(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True, name='ticker').start()\n"
        + ECHO
    )
    for _ in range(3):
        grain.ask(b"x")
    warnings = [line for line in grain.stderr().splitlines() if "warning" in line]
    assert len(warnings) == 1 and "(ticker)" in warnings[0]


@way
def test_an_exception_is_the_answer_with_its_traceback(worker, settings):
    grain = worker(
        "import sys\n"
        "def handle(event, context):\n"
        "    if event.data == b'exit':\n"
        "        sys.exit('enough')\n"
        "    return 1 / len(event.data)\n",
        **settings,
    )
    what, code, text = grain.ask(b"")
    assert (what, code) == ("failed", "HandlerError")
    lines = text.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "handler.py" in lines[1] and "line 5" in lines[1]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    what, code, text = grain.ask(b"exit")
    assert (what, code) == ("failed", "HandlerError") and text.startswith(b"Traceback")
    assert text.endswith(b"SystemExit: enough")
    what, _, text = grain.ask(b"x")
    assert what == "failed" and b"returned a float; return bytes, str" in text


@way
def test_a_crash_is_tried_again_and_then_told(worker, settings):
    grain = worker(
        "import os, signal\n"
        "def handle(event, context):\n"
        "    if event.attempt == 1 or event.data == b'always':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return str(event.attempt)\n",
        **settings,
    )
    assert answer(grain.ask(b"once")) == b"2"
    what, code, text = grain.ask(b"always")
    assert (what, code) == ("failed", "Crashed") and b"2 attempts" in text


def test_an_instance_over_its_time_limit_is_killed(worker):
    source = "import time\ndef handle(event, context):\n    time.sleep(600)\n"
    grain = worker(source, time_limit_ms=300, max_attempts=1)
    what, code, text = grain.ask()
    assert (what, code) == ("failed", "Timeout") and b"300 ms" in text


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def handle(:\n", "SyntaxError"),
        ("x = 1\n", "AttributeError: handler.py has no function handle"),
        ("handle = 3\n", "TypeError: handle in handler.py is a int, not a function"),
        (ECHO + "def on_load():\n    raise RuntimeError('no model')\n", "RuntimeError: no model"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
    ],
    ids=["import", "syntax", "missing", "no-function", "on_load", "exit"],
)
def test_what_cannot_be_loaded_is_told_once_with_exit_code_3(worker, source, says):
    grain = worker(source)
    assert grain.exit_code() == 3
    said = grain.stderr()
    assert said.startswith("sandpipe: grain g: cannot load handler.py:handle: ")
    assert said.rstrip().endswith(says) or says == "SyntaxError" and says in said
    assert said.count(says) == 1
    assert 'handler.py", line' in said or "TypeError" in says or "AttributeError" in says
    assert "loading.py" not in said and "importlib" not in said


def test_a_handler_in_a_module_is_found_beside_the_application(worker, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "till.py").write_text("from shop import name\n" + ECHO)
    (tmp_path / "shop" / "__init__.py").write_text("name = 'shop'\n")
    grain = worker("", handler="shop.till:handle")
    assert answer(grain.ask(b"1")) == b"1"


def test_a_handler_file_imports_its_neighbours_and_hides_no_library(worker, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "json.py").write_text(
        "import till\ndef handle(event, context):\n    return event.json()\n"
    )
    (tmp_path / "shop" / "till.py").write_text("")
    grain = worker("", handler="shop/json.py:handle")
    # Its name does not hide the library's json, which event.json() takes.
    assert answer(grain.ask(b"[1]")) == b"[1]"


def test_a_killed_worker_takes_its_instances_with_it(worker):
    grain = worker("import os\ndef handle(event, context):\n    return str(os.getpid())\n")
    grain.ask()
    with open(f"/proc/{grain.pid}/task/{grain.pid}/children") as file:
        instances = [int(pid) for pid in file.read().split()]
    assert instances
    os.kill(grain.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in instances) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in instances if alive(pid)]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_a_sandbox_the_worker_says_what_to_do():
    environment = {key: value for key, value in os.environ.items() if key != "SANDPIPE_WORKER"}
    command = [sys.executable, "-m", "sandpipe"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "sandpipe run app.toml" in ended.stderr
