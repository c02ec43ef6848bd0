"""A Python worker and a guardian of another layout version."""

import json
import os
import socket
import struct
import subprocess
import sys

import pytest

PATIENCE_S = 30
ATTACH_FD = 3


@pytest.mark.parametrize("step", [-1, 1], ids=["older", "newer"])
def test_a_guardian_of_another_layout_is_refused_naming_both(tmp_path, step):
    (tmp_path / "handler.py").write_text("def handle(event, context):\n    return b''\n")
    config = {
        "app": "test",
        "grain": "g",
        "family": 1,
        "mode": "fork",
        "concurrency": 1,
        "spares": 1,
        "time_limit_ms": 1000,
        "max_attempts": 1,
        "max_payload_bytes": 1 << 16,
        "handler": "handler.py:handle",
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    theirs.set_inheritable(True)
    worker = subprocess.Popen(
        [sys.executable, "-m", "sandpipe"],
        cwd=tmp_path,
        env={**os.environ, "SANDPIPE_WORKER": json.dumps(config)},
        preexec_fn=lambda: os.dup2(theirs.fileno(), ATTACH_FD),
        close_fds=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    try:
        hello = ours.recv(1024)
        tag, version, layout = struct.unpack_from("<BIQ", hello)
        assert tag == 1
        other = version + step
        reason = f"you speak layout version {version}, not {other}".encode()
        ours.send(struct.pack("<BIQ", 2, other, layout ^ 1) + reason)
        _, said = worker.communicate(timeout=PATIENCE_S)
    finally:
        worker.kill()
        ours.close()
    assert worker.returncode == 2, said
    assert f"the guardian speaks version {other} " in said
    assert f"this process version {version} " in said
