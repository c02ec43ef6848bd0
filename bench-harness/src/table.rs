//! The terminal's view of a report: paper, here and the ratio of both, row by row.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::bounds::{self, Bound};
use crate::report::{Figure, Report, Row};

/// Bounds that a report misses: names of ratios.
#[must_use]
pub fn missed(report: &Report) -> Vec<&str> {
    let ratios = report.figures.iter().flat_map(|figure| &figure.ratios);
    ratios
        .filter(|(name, value)| bounds::find(name).is_some_and(|r| !r.bound.keeps(**value)))
        .map(|(name, _)| name.as_str())
        .collect()
}

/// The whole report as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for figure in &report.figures {
        text.push_str(&render_figure(figure));
        text.push('\n');
    }
    text.push_str("How far to believe this:\n");
    for mark in &report.validity {
        text.push_str(&format!("  - {mark}\n"));
    }
    text
}

/// One figure as text.
#[must_use]
pub fn render_figure(figure: &Figure) -> String {
    let mut text = format!(
        "Figure {}: {} ({})\n",
        figure.id, figure.title, figure.source
    );
    if !figure.rows.is_empty() {
        text.push_str(&format!("{}\n", rows(&figure.rows)));
    }
    if !figure.ratios.is_empty() {
        text.push_str(&format!("{}\n", ratios(figure)));
    }
    for substitution in &figure.substitutions {
        text.push_str(&format!("  * {substitution}\n"));
    }
    text
}

fn rows(rows: &[Row]) -> Table {
    let header = [
        "case",
        "series",
        "paper",
        "here (mean ± 95 %)",
        "paper/here",
        "p50",
        "p99",
        "p99.9",
        "n",
    ];
    let mut table = new_table(&header, 2);
    for row in rows {
        let (unit, of) = (&row.unit, &row.summary);
        let half = (of.ci95[1] - of.ci95[0]) / 2.0;
        table.add_row(vec![
            row.case.clone(),
            row.series.clone(),
            row.paper
                .map_or("–".into(), |paper| format!("{} {unit}", number(paper))),
            format!("{} ± {} {unit}", number(of.mean), number(half)),
            row.paper.map_or("–".into(), |paper| {
                format!("{} ×", number(paper / of.mean))
            }),
            number(of.p50),
            number(of.p99),
            number(of.p999),
            of.n.to_string(),
        ]);
    }
    table
}

fn ratios(figure: &Figure) -> Table {
    let mut table = new_table(&["ratio", "paper", "here", "bound", "", "goal"], 1);
    for (name, value) in &figure.ratios {
        let known = bounds::find(name);
        let bound = known.map_or(Bound::Printed, |ratio| ratio.bound);
        let verdict = match (bound, bound.keeps(*value)) {
            (Bound::Printed, _) => "printed",
            (_, true) => "meets",
            (_, false) => "misses",
        };
        let optional = |value: Option<f64>| value.map_or("–".into(), number);
        table.add_row(vec![
            name.clone(),
            optional(known.and_then(|ratio| ratio.paper)),
            number(*value),
            bound.to_string(),
            verdict.to_owned(),
            optional(known.and_then(|ratio| ratio.goal)),
        ]);
    }
    table
}

/// A table whose first `left` columns are text and the others numbers.
fn new_table(header: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(header.to_vec());
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three significant digits, and no more zeros than needed.
#[must_use]
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Unit;
    use crate::stats::Samples;
    use std::collections::BTreeMap;

    fn figure(ratio: f64) -> Figure {
        let samples: Samples = (1..=100).map(|i| i * 10).collect();
        Figure {
            id: "5b".into(),
            title: "Message delivery".into(),
            source: "SAND".into(),
            substitutions: vec!["one broker, not three".into()],
            rows: vec![
                Row::new(
                    "local bus, awake",
                    "Python",
                    Unit::Us,
                    &samples,
                    Some(787e3),
                ),
                Row::new("raw futex", "floor", Unit::Us, &samples, None),
            ],
            ratios: BTreeMap::from([("5b.parked_over_futex.rust".into(), ratio)]),
        }
    }

    #[test]
    fn a_row_shows_paper_here_and_their_ratio() {
        let text = render_figure(&figure(1.2));
        let row = text.lines().find(|line| line.contains("Python")).unwrap();
        for part in ["787 us", "0.505 ± 0.058 us", "1558 ×", "0.500"] {
            assert!(row.contains(part), "{part} is not in {row}");
        }
        let floor = text.lines().find(|line| line.contains("floor")).unwrap();
        assert!(floor.contains('–'), "{floor}");
        assert!(text.contains("* one broker, not three"));
    }

    #[test]
    fn a_ratio_is_said_to_meet_or_miss_its_bound() {
        let line = |ratio: f64| {
            let text = render_figure(&figure(ratio));
            text.lines()
                .find(|line| line.contains("parked_over_futex"))
                .unwrap()
                .to_owned()
        };
        assert!(line(1.3).contains("meets") && line(1.3).contains("≤ 1.3"));
        assert!(line(1.31).contains("misses"));
        let report = |ratio| Report {
            schema: String::new(),
            machine: crate::machine::Machine::default(),
            validity: vec![],
            figures: vec![figure(ratio)],
        };
        assert!(missed(&report(1.3)).is_empty());
        assert_eq!(missed(&report(1.4)), ["5b.parked_over_futex.rust"]);
    }

    #[test]
    fn numbers_have_three_digits() {
        let said = [0.0, 0.1234, 1.234, 12.34, 123.4, 1234.5].map(number);
        assert_eq!(said, ["0", "0.123", "1.23", "12.3", "123", "1234"]);
    }
}
