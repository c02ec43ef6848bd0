"""The figures with what scripts/setup has installed: the rows of Python are there."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300


def report_of(figure, place):
    """The report of a figure's smoke run."""
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
    return json.loads((place / "report.json").read_text())


def python_cases(figure, place):
    """What a figure's smoke run has measured with Python grains, and its marks."""
    report = report_of(figure, place)
    rows = [row for each in report["figures"] for row in each["rows"]]
    return {row["case"] for row in rows if row["series"] == "Python"}, report["validity"]


def test_the_python_grains_of_figure_5c_run_in_their_sandbox(tmp_path):
    cases, marks = python_cases("5c", tmp_path)
    assert cases >= {"forked on demand", "forked ahead", "pool"}, marks


def test_the_image_pipeline_of_figure_7_runs_in_its_sandbox(tmp_path):
    cases, marks = python_cases("7", tmp_path)
    modes = ["forked on demand", "forked ahead", "pool"]
    assert cases >= {f"total, {mode}" for mode in modes}, marks


def test_agents_that_are_killed_lose_no_event_and_grains_go_on(tmp_path):
    report = report_of("agent_death", tmp_path)
    (figure,), marks = report["figures"], report["validity"]
    counts = {row["case"]: row["n"] for row in figure["rows"]}
    kills, applications = 5, 3
    assert counts["from SIGKILL until the next agent is ready"] == kills, marks
    assert figure["ratios"]["agent_death.lost"] == 0, marks
    accepted = kills * applications * 800
    said = f"agent_death: {kills} kills, {accepted} events accepted, 0 without their answer"
    assert said in marks
    phases = [case for case in counts if case.startswith("between two deliveries, ")]
    assert len(phases) == 3
    around = counts["longest time between two deliveries around each death"]
    # On a machine that is slow to start an agent a source may have run dry.
    assert 0 < around <= kills * applications
    assert all(counts[phase] > 0 for phase in phases), counts


def test_at_three_times_its_capacity_a_front_door_answers_and_refuses(tmp_path):
    report = report_of("overload", tmp_path)
    (figure,), marks = report["figures"], report["validity"]
    counts = {row["case"]: row["n"] for row in figure["rows"]}
    assert len(counts) == 3 and all(count > 0 for count in counts.values()), (counts, marks)
    assert set(figure["ratios"]) == {
        "overload.goodput_over_best",
        "overload.rss_after_over_before",
    }
    note = next(mark for mark in marks if mark.startswith("overload: of "))
    offered, answered, refused = (int(word) for word in note.split() if word.isdigit())
    assert offered == answered + refused and answered > 0 and refused > 0, note
