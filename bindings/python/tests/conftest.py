"""A real worker (`python -m sandpipe`) in a real sandbox; see worker_sandbox.rs."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Ten times what anything here should take on a busy machine.
PATIENCE_S = 30


@pytest.fixture(scope="session")
def sandbox_program():
    command = ["cargo", "build", "--quiet", "-p", "sandpipe-python", "--example", "worker_sandbox"]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "debug" / "examples" / "worker_sandbox"


@pytest.fixture
def worker(sandbox_program, tmp_path):
    """worker(source, **settings) starts a worker whose handler.py has that source."""
    started = []

    def start(source, **settings):
        (tmp_path / "handler.py").write_text(source)
        started.append(Worker(sandbox_program, tmp_path, settings))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


class Worker:
    def __init__(self, program, directory, settings):
        config = {
            "app": "test",
            "grain": "g",
            "family": 1,
            "mode": "fork",
            "concurrency": 2,
            "spares": 1,
            "time_limit_ms": 20000,
            "max_attempts": 2,
            "max_payload_bytes": 1 << 20,
            "handler": "handler.py:handle",
            **settings,
        }
        if config["mode"] == "pool":
            config["spares"] = 0
        # As a user's machine: no buffering or search path of whoever runs the tests.
        environment = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
        self.log = directory / "stderr"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [program, json.dumps(config), sys.executable, "-m", "sandpipe"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.lines = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.pid = int(self.next_line().split()[1])
        self.asked = 0

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def next_line(self):
        try:
            return self.lines.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise AssertionError(f"nothing for {PATIENCE_S} s; stderr:\n{self.stderr()}") from None

    def stderr(self):
        return self.log.read_text()

    def send(self, data):
        self.asked += 1
        self.process.stdin.write(data.hex() + "\n")
        self.process.stdin.flush()
        return self.asked

    def ask(self, data=b""):
        """Sends an event; returns (what happened, grain or code, bytes)."""
        sent = self.send(data)
        while True:
            what, *rest = self.next_line().split(" ")
            if what in ("final", "output", "failed") and int(rest[0]) == sent:
                middle = rest[1] if what != "final" else None
                text = rest[-1] if len(rest) > (1 if what == "final" else 2) else ""
                return what, middle, bytes.fromhex(text)
            assert what != "exit", f"the worker ended; stderr:\n{self.stderr()}"

    def exit_code(self):
        """Waits until the worker ends by itself."""
        while True:
            what, *rest = self.next_line().split(" ")
            if what == "exit":
                return int(rest[0])

    def finish(self):
        """Asks the worker to end; returns its exit code."""
        self.process.stdin.close()
        return self.exit_code()

    def kill(self):
        if self.process.poll() is None:
            # The session holds the worker and its instances too.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        self.reader.join(PATIENCE_S)
        self.process.stdout.close()
