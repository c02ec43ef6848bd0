"""The examples as a user runs them: `sandpipe run APP`, then HTTP."""

import json
import os
import select
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Ten times what anything here should take on a busy machine.
PATIENCE_S = 60


@pytest.fixture
def run(tmp_path):
    """run("hello-python") starts an example; it and all that it started end with the test."""
    started = []

    def start(example):
        started.append(Application(example, tmp_path))
        return started[-1]

    yield start
    for application in started:
        application.stop()


class Application:
    def __init__(self, example, directory):
        program = os.environ.get("SANDPIPE_BIN", ROOT / "target" / "debug" / "sandpipe")
        arguments = ["--listen", "127.0.0.1:0", "--json"]
        arguments += ["--data-dir", directory / "data", "--run-dir", directory / "run"]
        self.run_dir = directory / "run"
        self.log = directory / "stderr"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [program, "run", ROOT / "examples" / example / "app.toml", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise AssertionError(f"{example} does not start:\n{self.log.read_text()}")
        self.ready = json.loads(line)

    def post(self, data):
        """Returns (status, media type, body)."""
        request = urllib.request.Request(self.ready["url"], data)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read()

    def stop(self):
        """Ends it in good order; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        return code
