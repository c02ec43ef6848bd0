//! Rounds, pairs and what happens to a case that fails.

use super::*;

fn run_of(block: usize, placement: Placement, values: &[u64]) -> BlockRun {
    let samples = values
        .iter()
        .map(|ns| Some([*ns].into_iter().collect()))
        .collect();
    BlockRun {
        block,
        placement,
        samples,
    }
}

fn runner<'a>(near: bool, runs: Vec<BlockRun>, progress: &'a Progress) -> RoundRunner<'a, 'a> {
    let mut plan = Plan::default();
    let floor = plan.case("floor", "x", 1, |_| Ok(Samples::new()));
    let case = plan.case("case", "x", 1, |_| Ok(Samples::new()));
    plan.blocks.push(Block {
        cases: vec![floor, case],
        near,
        in_order: false,
    });
    plan.ratio("r", case, floor);
    plan.value("ns", case, 1.0);
    let (dropped, broken, failures) = (0, BTreeSet::new(), Vec::new());
    RoundRunner {
        plan,
        progress,
        runs,
        dropped,
        broken,
        failures,
        timed: true,
        patience: Duration::ZERO,
    }
}

#[test]
fn a_ratio_is_taken_inside_the_block_and_its_median_over_rounds() {
    let progress = Progress::silent();
    let runs = vec![
        run_of(0, Placement::Near, &[100, 200]),
        run_of(0, Placement::Near, &[400, 2000]),
        run_of(0, Placement::Near, &[50, 150]),
    ];
    let outcome = runner(true, runs, &progress).outcome();
    assert_eq!(outcome.ratio("r"), Some(3.0));
    assert_eq!(outcome.ratio("ns"), Some(200.0));
    assert_eq!(outcome.cases[1].count(), 3);
}

#[test]
fn a_ratio_is_over_the_fastest_form_of_a_peer_in_each_round_and_over_the_one_that_ran() {
    let progress = Progress::silent();
    let mut runs: Vec<BlockRun> = [[100, 200, 50], [100, 80, 400], [100, 25, 10]]
        .iter()
        .map(|values| run_of(0, Placement::Near, values))
        .collect();
    // The faster one failed in the last round.
    runs[2].samples[2] = None;
    let mut runner = runner(true, runs, &progress);
    let other = runner.plan.case("other", "x", 1, |_| Ok(Samples::new()));
    runner.plan.blocks[0].cases.push(other);
    let forms = Side::Fastest(vec![1, other]);
    let plan = &mut runner.plan;
    plan.ratio_of("own", Of::Quantile(0.5), 0, forms.clone());
    plan.ratio_of("own_inverse", Of::Mean, forms, 0);
    plan.ratio_of("of none", Of::Mean, 0, Side::Fastest(Vec::new()));
    let outcome = runner.outcome();
    let of = |name| outcome.ratios.iter().find(|(n, _)| *n == name);
    assert_eq!(of("own").unwrap().1, [2.0, 1.25, 4.0]);
    assert_eq!(of("own_inverse").unwrap().1, [0.5, 0.8, 0.25]);
    assert!(of("of none").unwrap().1.is_empty());
}

#[test]
fn far_rounds_do_not_count_beside_near_ones() {
    let progress = Progress::silent();
    let runs = vec![
        run_of(0, Placement::Near, &[100, 200]),
        run_of(0, Placement::Far, &[100, 900]),
        run_of(0, Placement::Far, &[100, 900]),
    ];
    let outcome = runner(true, runs, &progress).outcome();
    assert_eq!(outcome.ratio("r"), Some(2.0));
    assert!(
        outcome.notes[0].contains("0 sibling, 1 near, 2 far"),
        "{:?}",
        outcome.notes
    );
}

#[test]
fn without_near_rounds_the_most_frequent_placement_counts_and_is_named() {
    let progress = Progress::silent();
    let runs = vec![
        run_of(0, Placement::Sibling, &[100, 200]),
        run_of(0, Placement::Far, &[100, 900]),
        run_of(0, Placement::Far, &[100, 900]),
    ];
    let outcome = runner(true, runs, &progress).outcome();
    assert_eq!(outcome.ratio("r"), Some(9.0));
    assert!(
        outcome.notes[0].ends_with("of the far ones"),
        "{:?}",
        outcome.notes
    );
}

#[test]
fn an_unpinned_block_counts_wherever_the_cores_were() {
    let progress = Progress::silent();
    let runs = vec![
        run_of(0, Placement::Near, &[100, 200]),
        run_of(0, Placement::Far, &[100, 400]),
    ];
    let outcome = runner(false, runs, &progress).outcome();
    assert_eq!(outcome.ratio("r"), Some(3.0));
    assert!(outcome.notes.is_empty());
}

#[test]
fn a_case_that_fails_is_named_once_and_the_others_go_on() {
    let progress = Progress::silent();
    let mut plan = Plan::default();
    let good = plan.case("good", "Rust", 4, |n| {
        Ok((0..n as u64).map(|_| 5).collect())
    });
    let bad = plan.case("bad", "Java", 4, |_| {
        Err(BenchError::missing("bad", "no Java", "install Java 17"))
    });
    plan.blocks.push(Block {
        cases: vec![good, bad],
        near: false,
        in_order: false,
    });
    plan.ratio("bad_over_good", bad, good);
    // Probing forks, which a test process with threads must not: drive the cases directly.
    let (dropped, broken, failures) = (0, BTreeSet::new(), Vec::new());
    let runs = Vec::new();
    let mut runner = RoundRunner {
        plan,
        progress: &progress,
        runs,
        dropped,
        broken,
        failures,
        timed: true,
        patience: Duration::ZERO,
    };
    for _ in 0..3 {
        let samples = vec![runner.case(0, false), runner.case(1, false)];
        runner.runs.push(BlockRun {
            block: 0,
            placement: Placement::Near,
            samples,
        });
    }
    let outcome = runner.outcome();
    assert_eq!(outcome.cases[0].count(), 12);
    assert_eq!(outcome.ratio("bad_over_good"), None);
    let said = "bad (Java): bad cannot run: no Java; install Java 17";
    assert_eq!(outcome.failures, [said]);
}
