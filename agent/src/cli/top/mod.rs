//! `sandpipe top`: a live view of a running agent.

mod sample;
mod screen;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::deploy::Where;
use crate::application::Places;
use crate::control::{AgentStatus, Question, ask};
use sample::{Looked, Sample};
use screen::{Sort, View};

/// The size of the picture that `--once` prints.
const COLUMNS: u16 = 118;
const ROWS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sandpipe top\n  sandpipe top --once\n  \
    sandpipe top --once --json\n\n\
    Keys: n name, d depth of the queue, e events/s, r restarts, m memory (again: the other way\n\
    round); / filters by application or grain (Enter keeps it, Esc drops it); q ends.\n\n\
    A row of an application: requests/s, p50 and p99 of the last 10 to 20 s at the front door,\n\
    and the backup window. A row of a grain: its queue now and at its highest (looked at once a\n\
    second), events in hand, processes, events/s, restarts, proportional memory, wake-ups/s.")]
pub(super) struct Args {
    /// Print one picture and end
    #[arg(long)]
    once: bool,
    /// Print JSON (with --once)
    #[arg(long, requires = "once")]
    json: bool,
    /// Between two looks
    #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
    interval: u64,
    /// The application of a `sandpipe run`, in place of the agent's
    #[arg(long)]
    app: Option<String>,
    #[command(flatten)]
    agent: Where,
}

impl Args {
    fn socket(&self) -> PathBuf {
        let agent = self.agent.socket();
        match (&self.app, agent.parent()) {
            (Some(app), Some(run)) => Places::socket_for(run, app),
            _ => agent,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.clamp(50, 60_000))
    }
}

pub(super) fn top(args: &Args) -> anyhow::Result<ExitCode> {
    let socket = args.socket();
    let first = look(&socket)?;
    if !args.once {
        if !std::io::stdout().is_terminal() {
            bail!("standard output is no terminal; use --once or --once --json");
        }
        live(args, &socket, first)?;
        return Ok(ExitCode::SUCCESS);
    }
    std::thread::sleep(args.interval());
    let sample = Sample::between(&first, &look(&socket)?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&sample)?);
    } else {
        println!("{}", picture(&sample)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn look(socket: &Path) -> anyhow::Result<Looked> {
    let status: AgentStatus = ask(socket, Question::Status)?;
    Ok(Looked::now(status))
}

/// The screen as text.
fn picture(sample: &Sample) -> anyhow::Result<String> {
    let rows = (sample.rows() + 6).min(ROWS_MAX);
    let backend = TestBackend::new(COLUMNS, u16::try_from(rows).unwrap_or(u16::MAX));
    let mut terminal = Terminal::new(backend)?;
    terminal.draw(|frame| screen::draw(frame, sample, &View::default()))?;
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(COLUMNS)).map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned()
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn live(args: &Args, socket: &Path, first: Looked) -> anyhow::Result<()> {
    // Restores the screen also when this panics.
    let mut terminal = ratatui::init();
    let ended = run(args, socket, first, &mut terminal);
    ratatui::restore();
    ended
}

fn run(
    args: &Args,
    socket: &Path,
    mut before: Looked,
    terminal: &mut ratatui::DefaultTerminal,
) -> anyhow::Result<()> {
    let mut view = View::default();
    let mut sample = Sample::between(&before, &before);
    let mut next = Instant::now() + Duration::from_millis(200);
    loop {
        terminal.draw(|frame| screen::draw(frame, &sample, &view))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                if take_key(&mut view, key.code, control) {
                    return Ok(());
                }
            }
            continue;
        }
        match look(socket) {
            Ok(now) => {
                sample = Sample::between(&before, &now);
                before = now;
                view.away = None;
            }
            // An agent that is started again is seen again.
            Err(error) => view.away = Some(error.to_string()),
        }
        next = Instant::now() + args.interval();
    }
}

/// Does what a key says; `true` ends.
fn take_key(view: &mut View, key: KeyCode, control: bool) -> bool {
    if control {
        return key == KeyCode::Char('c');
    }
    if view.typing {
        match key {
            KeyCode::Enter => view.typing = false,
            KeyCode::Esc => {
                view.typing = false;
                view.filter.clear();
            }
            KeyCode::Backspace => drop(view.filter.pop()),
            KeyCode::Char(letter) => view.filter.push(letter),
            _ => {}
        }
        return false;
    }
    match key {
        KeyCode::Char('q') => return true,
        KeyCode::Char('/') => view.typing = true,
        KeyCode::Esc => view.filter.clear(),
        KeyCode::Char('n') => view.sort_by(Sort::Name),
        KeyCode::Char('d') => view.sort_by(Sort::Depth),
        KeyCode::Char('e') => view.sort_by(Sort::Events),
        KeyCode::Char('r') => view.sort_by(Sort::Restarts),
        KeyCode::Char('m') => view.sort_by(Sort::Memory),
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_filter_and_end() {
        let mut view = View::default();
        let mut press = |key| take_key(&mut view, key, false);
        assert!(!press(KeyCode::Char('d')));
        assert!(!press(KeyCode::Char('/')));
        "qx".chars()
            .for_each(|letter| assert!(!press(KeyCode::Char(letter))));
        assert!(!press(KeyCode::Backspace) && !press(KeyCode::Enter));
        assert_eq!((view.sort, view.filter.as_str()), (Sort::Depth, "q"));
        assert!(!view.typing);
        assert!(!take_key(&mut view, KeyCode::Esc, false));
        assert!(view.filter.is_empty());
        assert!(take_key(&mut view, KeyCode::Char('q'), false));
        assert!(take_key(&mut view, KeyCode::Char('c'), true));
    }
}
