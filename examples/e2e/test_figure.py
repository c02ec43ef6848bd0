"""The figures with what scripts/setup has installed: the rows of Python are there."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300


def test_the_python_grains_of_figure_5c_run_in_their_sandbox(tmp_path):
    program = os.environ.get("SANDPIPE_BENCH_BIN", ROOT / "target" / "debug" / "sandpipe-bench")
    arguments = ["run", "--figures", "5c", "--profile", "smoke", "--out", tmp_path]
    ended = subprocess.run(
        [program, *arguments, "--root", ROOT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    cases = {row["case"] for row in report["figures"][0]["rows"] if row["series"] == "Python"}
    assert cases >= {"forked on demand", "forked ahead", "pool"}, report["validity"]
