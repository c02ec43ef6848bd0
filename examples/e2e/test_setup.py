"""The scripts on a machine that lacks something: they say what, and how to get it."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
PATIENCE_S = 300


@pytest.fixture
def directory():
    """A directory that everybody may read: pytest's own are its user's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def without_java(directory):
    """An environment with every program of this machine but Java's and Maven's."""
    programs = directory / "bin"
    programs.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*"):
            link = programs / program.name
            if program.name not in ("java", "javac", "mvn") and not link.is_symlink():
                link.symlink_to(program)
    environment = {key: value for key, value in os.environ.items() if key != "JAVA_HOME"}
    return environment | {"PATH": str(programs)}


def run(environment, *command, **options):
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        **options,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_setup_without_root_names_what_root_should_run(without_java, directory):
    # A copy: the repository may lie where nobody else may look.
    (directory / "scripts").mkdir()
    script = directory / "scripts" / "setup"
    shutil.copy(ROOT / "scripts" / "setup", script)
    ended = run(without_java, script, "--only", "java", user=NOBODY, group=NOBODY, extra_groups=[])
    assert ended.returncode == 0, ended.stdout  # optional: all but the Kafka rows work without
    assert "as root run: apt-get update && apt-get install" in ended.stdout
    assert "default-jre-headless maven" in ended.stdout
    assert "rows and tests with a real Kafka will be skipped" in ended.stdout


def test_a_broker_without_java_says_how_to_get_it(without_java):
    ended = run(without_java, ROOT / "scripts" / "kafka", "start")
    assert ended.returncode == 69, ended.stdout
    assert "install Java 17 or newer" in ended.stdout


def test_the_figure_without_java_says_why_its_kafka_rows_are_missing(without_java, directory):
    program = os.environ.get("SANDPIPE_BENCH_BIN", ROOT / "target" / "debug" / "sandpipe-bench")
    arguments = ["--figures", "5b", "--profile", "smoke", "--out", directory / "report"]
    ended = run(without_java, program, "run", *arguments)
    assert ended.returncode == 0, ended.stdout
    assert "local bus, consumer awake" in ended.stdout
    assert "Kafka cannot run: " in ended.stdout and "install Java 17 or newer" in ended.stdout
    report = json.loads((directory / "report" / "report.json").read_text())
    assert any("install Java 17" in note for note in report["validity"])
    assert not any("Kafka" in row["case"] for row in report["figures"][0]["rows"])
