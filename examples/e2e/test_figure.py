"""The figures with what scripts/setup has installed: the rows of Python are there."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300


def python_cases(figure, place):
    """What a figure's smoke run has measured with Python grains, and its marks."""
    program = os.environ.get("SANDPIPE_BENCH_BIN", ROOT / "target" / "debug" / "sandpipe-bench")
    arguments = ["run", "--figures", figure, "--profile", "smoke", "--out", place]
    ended = subprocess.run(
        [program, *arguments, "--root", ROOT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stdout
    report = json.loads((place / "report.json").read_text())
    rows = [row for each in report["figures"] for row in each["rows"]]
    return {row["case"] for row in rows if row["series"] == "Python"}, report["validity"]


def test_the_python_grains_of_figure_5c_run_in_their_sandbox(tmp_path):
    cases, marks = python_cases("5c", tmp_path)
    assert cases >= {"forked on demand", "forked ahead", "pool"}, marks


def test_the_image_pipeline_of_figure_7_runs_in_its_sandbox(tmp_path):
    cases, marks = python_cases("7", tmp_path)
    modes = ["forked on demand", "forked ahead", "pool"]
    assert cases >= {f"total, {mode}" for mode in modes}, marks
