"""What an instance is left with in each runtime that needs no compiler: its descriptors."""

import json
import sys

PYTHON = '''
import json, os

def handle(event, context):
    found = {}
    for number in range(4096):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass
    return json.dumps(found)
'''


def application(directory, name, grain):
    """An application of one grain in a directory of its own."""
    place = directory / name
    place.mkdir()
    (place / "look.py").write_text(PYTHON)
    head = f'name = "{name}"\n[workflow]\nchain = ["look"]\n[[grain]]\nname = "look"\n'
    (place / "app.toml").write_text(head + grain)
    return place


def test_a_python_instance_holds_no_descriptor_of_the_agent_or_another(run, tmp_path):
    grain = f'runtime = "python"\nhandler = "look.py:handle"\npython = "{sys.executable}"\n'
    status, _, body = run(application(tmp_path, "look-python", grain)).post(b"")
    assert status == 200, body
    held = json.loads(body)
    kinds = {number: target.split(":")[0] for number, target in held.items()}
    assert kinds == {"0": "/dev/null", "1": "pipe", "2": "pipe"}


def test_an_executable_holds_its_input_its_output_and_its_errors(run, tmp_path):
    grain = 'runtime = "exec"\nhandler = "/bin/ls"\nargs = ["-l", "/proc/self/fd"]\n'
    status, _, body = run(application(tmp_path, "look-exec", grain)).post(b"")
    assert status == 200, body
    lines = [line.split() for line in body.decode().splitlines() if "->" in line]
    found = {int(line[-3]): line[-1].split(":")[0] for line in lines}
    # The fourth is the directory that ls itself reads.
    assert found.pop(3).startswith("/proc/")
    assert found == {0: "pipe", 1: "pipe", 2: "pipe"}
