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


@pytest.fixture
def agent(tmp_path):
    """agent({"a": TEXT}) starts an agent with applications of these app.toml files."""
    started = []

    def start(applications, settings="", **environment):
        paths = []
        for name, text in applications.items():
            (tmp_path / name).mkdir(exist_ok=True)
            paths.append(str(tmp_path / name / "app.toml"))
            Path(paths[-1]).write_text(text)
        config = tmp_path / "agent.toml"
        config.write_text(f"applications = {json.dumps(paths)}\n{settings}")
        command = ["agent", "--config", config]
        started.append(Sandpipe(command, tmp_path, environment))
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


class Sandpipe:
    """A `sandpipe run` or `sandpipe agent` that serves; its directories outlive it."""

    def __init__(self, command, directory, environment=None):
        program = os.environ.get("SANDPIPE_BIN", ROOT / "target" / "debug" / "sandpipe")
        arguments = ["--listen", "127.0.0.1:0", "--json"]
        arguments += ["--data-dir", directory / "data", "--run-dir", directory / "run"]
        self.run_dir = directory / "run"
        self.log = directory / "stderr"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [program, *command, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise AssertionError(f"{command} does not start:\n{self.log.read_text()}")
        self.ready = json.loads(line)

    def post(self, data, path="", **headers):
        """Returns (status, media type, body)."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.ready["url"] + path, data, headers)
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


class Application(Sandpipe):
    def __init__(self, example, directory):
        super().__init__(["run", ROOT / "examples" / example / "app.toml"], directory)
