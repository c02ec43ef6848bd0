"""Each Python example, from app.toml to the answer."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
PHOTO = EXAMPLES / "image-pipeline" / "photo.jpg"


def test_hello_python_answers_as_its_readme_says(run):
    hello = run("hello-python")
    status, media, body = hello.post(b"Ada")
    assert (status, media) == (200, "application/json")
    assert body == b'{"answer":"HELLO, ADA!","grain":"shout"}'
    assert f"$ curl --data Ada URL\n{body.decode()}" in read("hello-python/README.md")


def test_a_photo_comes_back_as_a_thumbnail_with_its_face_marked(run, tmp_path):
    pipeline = run("image-pipeline")
    status, media, body = pipeline.post(PHOTO.read_bytes())
    assert (status, media) == (200, "image/jpeg")
    thumbnail = tmp_path / "thumbnail.jpg"
    thumbnail.write_bytes(body)
    # As the README tells the user to look at it.
    command = [sys.executable, EXAMPLES / "image-pipeline" / "photo.py", thumbnail]
    about = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert about["thumbnail"] == {"width": 256, "height": 256}
    assert [found["what"] for found in about["objects"]] == ["face"]


def test_many_photos_at_once_are_all_answered(run):
    pipeline = run("image-pipeline")
    photo = PHOTO.read_bytes()
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: pipeline.post(photo), range(24)))
    assert [status for status, _, _ in answers] == [200] * 24
    assert len({body for _, _, body in answers}) == 1


def test_what_is_no_photo_is_an_error_that_names_the_grain_and_shows_the_traceback(run):
    pipeline = run("image-pipeline")
    status, media, body = pipeline.post(b"hello")
    problem = json.loads(body)
    assert (status, media) == (500, "application/problem+json")
    assert (problem["error"], problem["grain"]) == ("handler_error", "metadata")
    assert "ValueError: not a JPEG" in problem["detail"]
    assert pipeline.post(PHOTO.read_bytes())[0] == 200


def test_sigterm_leaves_no_process_behind(run):
    hello = run("hello-python")
    assert hello.post(b"Ada")[0] == 200
    mine = processes_naming(str(hello.run_dir)) | children(hello.process.pid)
    assert mine
    assert hello.stop() == 0
    assert not {pid for pid in mine if alive(pid)}


def read(path):
    return (EXAMPLES / path).read_text()


def processes_naming(text):
    found = set()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in cmdline.read_bytes():
                found.add(int(cmdline.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def children(pid):
    """All descendants of a process, itself included."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, new = set(), [pid]
    while new:
        found.update(new)
        new = [child for parent in new for child in parents.get(parent, [])]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False
