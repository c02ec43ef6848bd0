//! The workflow: which grain's output goes to which grain, and whether that graph can run.

use super::error::Problems;
use super::raw;

/// What the `[workflow]` table says, with names resolved to indices.
pub(super) struct Graph {
    pub entry: usize,
    pub next: Vec<Vec<usize>>,
}

/// Resolves and checks the workflow; `None` when what is noted in `problems` forbids a graph.
pub(super) fn resolve(
    workflow: &toml::Spanned<raw::Workflow>,
    grains: &[toml::Spanned<raw::Grain>],
    problems: &mut Problems<'_>,
) -> Option<Graph> {
    let table = workflow.get_ref();
    let graph = match (&table.chain, &table.next) {
        (Some(chain), Some(_)) => {
            problems.add(
                chain.span(),
                "the workflow has both `chain` and `[workflow.next]`",
                "keep one of them",
            );
            None
        }
        (None, None) => {
            problems.add(
                workflow.span(),
                "the workflow has neither `chain` nor `[workflow.next]`",
                "add chain = [\"first\", \"second\"], or entry and [workflow.next]",
            );
            None
        }
        (Some(chain), None) => from_chain(table, chain, grains, problems),
        (None, Some(_)) => from_edges(workflow, grains, problems),
    }?;
    let sound = no_cycle(&graph, workflow, grains, problems);
    all_reachable(&graph, grains, problems);
    sound.then_some(graph)
}

fn from_chain(
    table: &raw::Workflow,
    chain: &toml::Spanned<Vec<toml::Spanned<String>>>,
    grains: &[toml::Spanned<raw::Grain>],
    problems: &mut Problems<'_>,
) -> Option<Graph> {
    if let Some(entry) = &table.entry {
        problems.add(
            entry.span(),
            "`entry` beside `chain`: a chain starts with its first grain",
            "remove `entry`",
        );
    }
    if chain.get_ref().is_empty() {
        problems.add(
            chain.span(),
            "the chain is empty",
            "name at least one grain",
        );
        return None;
    }
    let mut order = Vec::new();
    for name in chain.get_ref() {
        let index = find(name, grains, problems)?;
        if order.contains(&index) {
            problems.add(
                name.span(),
                format!("grain \"{}\" stands twice in the chain", name.get_ref()),
                "give the second one its own [[grain]] with another name",
            );
            return None;
        }
        order.push(index);
    }
    let mut next = vec![Vec::new(); grains.len()];
    for pair in order.windows(2) {
        next[pair[0]].push(pair[1]);
    }
    Some(Graph {
        entry: order[0],
        next,
    })
}

fn from_edges(
    workflow: &toml::Spanned<raw::Workflow>,
    grains: &[toml::Spanned<raw::Grain>],
    problems: &mut Problems<'_>,
) -> Option<Graph> {
    let table = workflow.get_ref();
    let entry = match &table.entry {
        Some(entry) => find(entry, grains, problems),
        None => {
            problems.add(
                workflow.span(),
                "`[workflow.next]` without `entry`",
                "add entry = \"the grain that requests go to\"",
            );
            None
        }
    };
    let mut next = vec![Vec::new(); grains.len()];
    let mut sound = true;
    for (from, targets) in table.next.as_ref()?.get_ref() {
        let Some(source) = find(from, grains, problems) else {
            sound = false;
            continue;
        };
        for target in targets.get_ref() {
            match find(target, grains, problems) {
                Some(index) if next[source].contains(&index) => problems.add(
                    target.span(),
                    format!(
                        "\"{}\" stands twice after \"{}\"",
                        target.get_ref(),
                        from.get_ref()
                    ),
                    "name each next grain once",
                ),
                Some(index) => next[source].push(index),
                None => sound = false,
            }
        }
    }
    if sound {
        Some(Graph {
            entry: entry?,
            next,
        })
    } else {
        None
    }
}

fn find(
    name: &toml::Spanned<String>,
    grains: &[toml::Spanned<raw::Grain>],
    problems: &mut Problems<'_>,
) -> Option<usize> {
    let names = || {
        grains
            .iter()
            .map(|grain| grain.get_ref().name.get_ref().as_str())
    };
    let found = names().position(|known| known == name.get_ref());
    if found.is_none() {
        let known: Vec<&str> = names().collect();
        problems.add(
            name.span(),
            format!(
                "the workflow names grain \"{}\", which no [[grain]] defines",
                name.get_ref()
            ),
            format!("define it or use one of: {}", known.join(", ")),
        );
    }
    found
}

/// A cycle would run an event for ever, since each message is handled once for each arrival.
fn no_cycle(
    graph: &Graph,
    workflow: &toml::Spanned<raw::Workflow>,
    grains: &[toml::Spanned<raw::Grain>],
    problems: &mut Problems<'_>,
) -> bool {
    let mut incoming = vec![0usize; graph.next.len()];
    for &target in graph.next.iter().flatten() {
        incoming[target] += 1;
    }
    let mut free: Vec<usize> = (0..incoming.len()).filter(|&g| incoming[g] == 0).collect();
    let mut ordered = 0;
    while let Some(grain) = free.pop() {
        ordered += 1;
        for &target in &graph.next[grain] {
            incoming[target] -= 1;
            if incoming[target] == 0 {
                free.push(target);
            }
        }
    }
    if ordered == graph.next.len() {
        return true;
    }
    let stuck: Vec<&str> = (0..incoming.len())
        .filter(|&g| incoming[g] > 0)
        .map(|g| grains[g].get_ref().name.get_ref().as_str())
        .collect();
    let span = workflow
        .get_ref()
        .next
        .as_ref()
        .map_or(workflow.span(), toml::Spanned::span);
    problems.add(
        span,
        format!("the workflow has a cycle through: {}", stuck.join(", ")),
        "take out the edge that leads back",
    );
    false
}

fn all_reachable(graph: &Graph, grains: &[toml::Spanned<raw::Grain>], problems: &mut Problems<'_>) {
    let mut seen = vec![false; graph.next.len()];
    let mut todo = vec![graph.entry];
    while let Some(grain) = todo.pop() {
        if !std::mem::replace(&mut seen[grain], true) {
            todo.extend(&graph.next[grain]);
        }
    }
    for (index, grain) in grains.iter().enumerate().filter(|(index, _)| !seen[*index]) {
        let name = &grain.get_ref().name;
        let entry = grains[graph.entry].get_ref().name.get_ref();
        // A second grain of the same name has been noted already.
        if grains[..index]
            .iter()
            .any(|other| other.get_ref().name.get_ref() == name.get_ref())
        {
            continue;
        }
        problems.add(
            name.span(),
            format!(
                "grain \"{}\" cannot be reached from \"{entry}\"",
                name.get_ref()
            ),
            "put it into the workflow or remove it",
        );
    }
}
