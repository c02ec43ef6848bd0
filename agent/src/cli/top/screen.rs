//! Draws a sample.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::sample::{App, Grain, Sample};

/// By what grains, and applications by their largest grain, are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Depth,
    Events,
    Restarts,
    Memory,
}

/// How it is shown.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) filter: String,
    pub(super) typing: bool,
    /// Why the agent does not answer.
    pub(super) away: Option<String>,
}

impl View {
    pub(super) fn sort_by(&mut self, sort: Sort) {
        self.reversed = self.sort == sort && !self.reversed;
        self.sort = sort;
    }

    /// The applications and grains that are shown, in their order.
    fn chosen<'s>(&self, sample: &'s Sample) -> Vec<(&'s App, Vec<&'s Grain>)> {
        let matches = |name: &str| name.contains(&self.filter);
        let grains = |app: &'s App| {
            let all = app.grains.iter();
            let mut grains: Vec<&Grain> = all
                .filter(|grain| matches(&app.name) || matches(&grain.name))
                .collect();
            // A chain's own order is its order by name.
            if self.sort != Sort::Name {
                grains.sort_by(|a, b| self.compare(self.weight(a), self.weight(b)));
            }
            (app, grains)
        };
        let mut apps: Vec<_> = sample
            .apps
            .iter()
            .map(grains)
            .filter(|(app, grains)| matches(&app.name) || !grains.is_empty())
            .collect();
        if self.sort == Sort::Name && self.reversed {
            apps.reverse();
        } else if self.sort != Sort::Name {
            let heaviest = |grains: &[&Grain]| {
                let weights = grains.iter().map(|grain| self.weight(grain));
                weights.fold(0.0, f64::max)
            };
            apps.sort_by(|(_, a), (_, b)| self.compare(heaviest(a), heaviest(b)));
        }
        apps
    }

    fn weight(&self, grain: &Grain) -> f64 {
        match self.sort {
            Sort::Name => 0.0,
            Sort::Depth => grain.waiting as f64,
            Sort::Events => grain.events_per_s,
            Sort::Restarts => grain.restarts as f64,
            Sort::Memory => grain.memory as f64,
        }
    }

    /// The largest first.
    fn compare(&self, a: f64, b: f64) -> Ordering {
        let order = b.total_cmp(&a);
        if self.reversed {
            order.reverse()
        } else {
            order
        }
    }
}

const HEAD: [&str; 11] = [
    "application / grain",
    "state",
    "queue",
    "high",
    "busy",
    "inst",
    "events/s",
    "p50 / p99 ms",
    "restarts",
    "memory",
    "wakes/s",
];

const WIDTHS: [Constraint; 11] = [
    Constraint::Min(20),
    Constraint::Length(11),
    Constraint::Length(6),
    Constraint::Length(6),
    Constraint::Length(5),
    Constraint::Length(5),
    Constraint::Length(9),
    Constraint::Length(15),
    Constraint::Length(8),
    Constraint::Length(9),
    Constraint::Length(8),
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, sample: &Sample, view: &View) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(summary(sample, view)), head);
    let mut rows = Vec::new();
    for (app, grains) in view.chosen(sample) {
        rows.push(app_row(app));
        rows.extend(grains.into_iter().map(grain_row));
    }
    let bold = Style::default().add_modifier(Modifier::BOLD);
    let table = Table::new(rows, WIDTHS)
        .header(Row::new(HEAD).style(bold))
        .column_spacing(1);
    frame.render_widget(table, body);
    let keys = match view.typing {
        true => format!("filter: {}_   Enter keeps, Esc drops", view.filter),
        false => "n name  d depth  e events/s  r restarts  m memory  / filter  q end".into(),
    };
    frame.render_widget(Paragraph::new(keys), foot);
}

fn summary<'a>(sample: &Sample, view: &View) -> Vec<Line<'a>> {
    let apps = &sample.apps;
    let answered: f64 = apps.iter().map(|app| app.answered_per_s).sum();
    let unbacked: usize = apps.iter().map(|app| app.unbacked_messages).sum();
    let bytes: usize = apps.iter().map(|app| app.unbacked_bytes).sum();
    let age = apps.iter().map(|app| app.unbacked_age_ms).max();
    let first = match &view.away {
        Some(error) => Line::styled(error.clone(), Color::Red),
        None => Line::raw(format!(
            "sandpipe agent {} at {}, {}; applications: {}, {answered:.0} answers/s",
            sample.pid,
            sample.url,
            size(sample.memory),
            apps.len(),
        )),
    };
    let mut second = format!(
        "backup window: {unbacked} messages, {}, oldest {} ms",
        size(bytes as u64),
        age.unwrap_or_default()
    );
    if !view.filter.is_empty() {
        second += &format!("   filter: {}", view.filter);
    }
    vec![first, Line::raw(second)]
}

fn app_row(app: &App) -> Row<'static> {
    let name = match app.version {
        0 => app.name.clone(),
        version => format!("{} v{version}", app.name),
    };
    let state = if app.not_ready.is_none() {
        Cell::from("ready")
    } else {
        Cell::from("NOT READY").style(Color::Red)
    };
    let times = match app.recent {
        0 => "-".to_owned(),
        _ => format!("{} / {}", ms(app.p50_us), ms(app.p99_us)),
    };
    let cells = [
        Cell::from(name),
        state,
        Cell::from(app.backup_queue.to_string()),
        Cell::from(app.backup_high_water.to_string()),
        Cell::from(app.open.to_string()),
        Cell::from(""),
        Cell::from(format!("{:.0}", app.answered_per_s)),
        Cell::from(times),
        Cell::from(app.restarts.to_string()),
        Cell::from(""),
        Cell::from(format!("{:.0}", app.wakes_per_s)),
    ];
    Row::new(cells).style(Style::default().add_modifier(Modifier::BOLD))
}

fn grain_row(grain: &Grain) -> Row<'static> {
    let state = Cell::from(grain.state.clone());
    let state = match grain.state.as_str() {
        "running" => state,
        "unloaded" => state.style(Color::DarkGray),
        "starting" | "clearing" | "unloading" | "reloading" => state.style(Color::Yellow),
        _ => state.style(Color::Red),
    };
    let cells = [
        Cell::from(format!("  {}", grain.name)),
        state,
        Cell::from(grain.waiting.to_string()),
        Cell::from(grain.high_water.to_string()),
        Cell::from(grain.taken.to_string()),
        Cell::from(grain.instances.to_string()),
        Cell::from(format!("{:.0}", grain.events_per_s)),
        Cell::from(""),
        Cell::from(grain.restarts.to_string()),
        Cell::from(size(grain.memory)),
        Cell::from(format!("{:.0}", grain.wakes_per_s)),
    ];
    Row::new(cells)
}

fn ms(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    if ms < 10.0 {
        format!("{ms:.2}")
    } else {
        format!("{ms:.0}")
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        let grain = |name: &str, waiting: usize, memory: u64| Grain {
            name: name.into(),
            waiting,
            memory,
            ..Grain::default()
        };
        let app = |name: &str, grains: Vec<Grain>| App {
            name: name.into(),
            grains,
            ..App::default()
        };
        Sample {
            apps: vec![
                app("one", vec![grain("a", 1, 9), grain("b", 5, 3)]),
                app("two", vec![grain("c", 7, 1)]),
            ],
            ..Sample::default()
        }
    }

    /// The names in their order.
    fn names(view: &View) -> Vec<String> {
        let sample = sample();
        let chosen = view.chosen(&sample).into_iter();
        chosen
            .flat_map(|(app, grains)| {
                let grains = grains.into_iter().map(|grain| grain.name.clone());
                std::iter::once(app.name.clone()).chain(grains)
            })
            .collect()
    }

    #[test]
    fn rows_are_sorted_by_the_chosen_column_and_the_other_way_round() {
        let mut view = View::default();
        assert_eq!(names(&view), ["one", "a", "b", "two", "c"]);
        view.sort_by(Sort::Depth);
        assert_eq!(names(&view), ["two", "c", "one", "b", "a"]);
        view.sort_by(Sort::Memory);
        assert_eq!(names(&view), ["one", "a", "b", "two", "c"]);
        view.sort_by(Sort::Memory);
        assert_eq!(names(&view), ["two", "c", "one", "b", "a"]);
    }

    #[test]
    fn a_filter_keeps_an_application_with_its_grains_or_a_grain_with_its_application() {
        let with = |filter: &str| View {
            filter: filter.into(),
            ..View::default()
        };
        assert_eq!(names(&with("two")), ["two", "c"]);
        assert_eq!(names(&with("b")), ["one", "b"]);
        assert!(names(&with("x")).is_empty());
    }
}
