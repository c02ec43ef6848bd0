//! Instances, workers, inits and the agent killed at random, three applications at work.

mod callers;
mod effects;

use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use self::callers::{Address, Asked, Caller};
use super::fleet::{Agent, Fleet, Stops, say};
use super::harness::{children, is_full, kill, until};
use super::kills::assert_effects_once;
use super::rounds::settled;

const LETTERS: [&str; 3] = ["x", "y", "z"];
const GRAINS: [&str; 2] = ["a", "b"];
const CALLERS: usize = 3;

/// A number that gives the same choices again.
const SEED: &str = "SANDPIPE_CHAOS_SEED";

/// Choices by chance (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let place = self.below(all.len().max(1) as u64);
        all.get(usize::try_from(place).unwrap()).copied()
    }
}

/// How many of each were killed.
#[derive(Debug, Default)]
struct Kills {
    instances: usize,
    workers: usize,
    inits: usize,
    agents: usize,
}

/// One that kills, and starts the agents that succeed the killed ones.
struct Killer<'k> {
    fleet: &'k Fleet,
    address: &'k Address,
    agent: Agent<'k>,
    chance: Chance,
    kills: Kills,
}

impl Killer<'_> {
    fn run(mut self, time: Duration) -> Self {
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(self.chance.below(200)));
            let letter = self.chance.of(&LETTERS).unwrap();
            match self.chance.below(100) {
                0..60 => self.kill_instance(letter),
                60..85 => self.kill_worker(letter),
                85..94 => self.kill_init(letter),
                _ => self = self.kill_agent(letter),
            }
        }
        self
    }

    /// A worker's process, if the drawn one runs.
    fn worker(&mut self, letter: &str) -> Option<u32> {
        let grain = self.chance.of(&GRAINS).unwrap();
        let grains = self.agent.app(letter).grains;
        let found = grains.iter().find(|state| state.grain == grain)?;
        found.pid.filter(|_| found.state == "running")
    }

    fn kill_instance(&mut self, letter: &str) {
        let instances = self.worker(letter).map(children).unwrap_or_default();
        if let Some(instance) = self.chance.of(&instances) {
            kill(instance, "KILL");
            self.kills.instances += 1;
        }
    }

    fn kill_worker(&mut self, letter: &str) {
        if let Some(worker) = self.worker(letter) {
            kill(worker, "KILL");
            self.kills.workers += 1;
        }
    }

    fn kill_init(&mut self, letter: &str) {
        // While one follows another there may be two, or none.
        for init in self.fleet.inits(letter) {
            kill(init, "KILL");
            self.kills.inits += 1;
        }
    }

    /// Half of the time an init dies while no agent is there.
    fn kill_agent(mut self, letter: &str) -> Self {
        self.agent.kill();
        self.kills.agents += 1;
        if self.chance.below(2) == 0 {
            for init in self.fleet.inits(letter) {
                kill(init, "KILL");
                self.kills.inits += 1;
            }
        }
        let agent = self.fleet.start();
        assert_eq!(agent.announced["resumed"], LETTERS.len());
        *self.address.write().unwrap() = agent.address;
        Killer { agent, ..self }
    }
}

fn seed() -> u64 {
    let given = std::env::var(SEED).ok();
    let seed = given.map(|text| text.parse().expect("the seed is a number"));
    seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_secs()
    })
}

/// Three applications at work, each in another way.
fn deploy(fleet: &Fleet) {
    let limits = "max_in_flight = 10000\nmax_attempts = 100\ndeadline_ms = 600000\n\
                  result_ttl_s = 7200";
    let modes = ["", "mode = \"pool\"", "spares = 0"];
    for (letter, mode) in LETTERS.into_iter().zip(modes) {
        fleet.deploy(&fleet.write(letter, &GRAINS, limits, mode));
    }
}

/// Load and kills for that long; then nobody kills, and every caller gets its answer.
fn under_load<'k>(killer: Killer<'k>, asked: &Asked, time: Duration) -> Killer<'k> {
    let paths = LETTERS.map(|letter| format!("/{}", killer.fleet.app(letter)));
    let (address, stop) = (killer.address, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (letter, path) in LETTERS.into_iter().zip(&paths) {
            for number in 0..CALLERS {
                let caller = Caller {
                    address,
                    asked,
                    letter,
                    path,
                    number,
                };
                let stop = &stop;
                scope.spawn(move || caller.ask_until(stop));
            }
        }
        let _stops = Stops(&stop);
        killer.run(time)
    })
}

#[test]
fn whatever_is_killed_at_random_nothing_is_lost_or_doubled_and_nothing_stays() {
    let time = Duration::from_secs(if is_full() { 600 } else { 60 });
    let seed = seed();
    say(&format!("{SEED}={seed} makes the same choices again"));
    let fleet = Fleet::new();
    let agent = fleet.start();
    deploy(&fleet);
    for letter in LETTERS {
        assert_eq!(agent.post(letter, ".").text(), ".ab");
    }
    let before = settled(&fleet, &agent, None);
    let address = RwLock::new(agent.address);
    let asked = Asked::default();
    let killer = Killer {
        fleet: &fleet,
        address: &address,
        agent,
        chance: Chance(seed),
        kills: Kills::default(),
    };
    let Killer { agent, kills, .. } = under_load(killer, &asked, time);
    let accepted = asked.accepted.into_inner().unwrap();
    for one in &accepted {
        let answer = agent.collect(&one.place);
        assert_eq!(
            answer.text(),
            format!("{}ab", one.text),
            "{}",
            answer.status
        );
    }
    until("every worker runs again", || {
        let mut apps = agent.status().apps.into_iter();
        apps.all(|app| app.grains.iter().all(|grain| grain.state == "running"))
    });
    assert_eq!(settled(&fleet, &agent, Some(&before)), before);
    agent.stop();
    assert_effects_once(&fleet, &accepted);
    let texts = asked.texts.into_inner().unwrap();
    let mut again = 0;
    for letter in LETTERS {
        let of_letter = texts.iter().filter(|(of, _)| *of == letter);
        let of_letter: Vec<&str> = of_letter.map(|(_, text)| text.as_str()).collect();
        again += effects::assert_once(&fleet, letter, &of_letter, &GRAINS);
    }
    fleet.assert_clean();
    assert!(LETTERS.iter().all(|letter| fleet.inits(letter).is_empty()));
    let Kills {
        instances,
        workers,
        inits,
        agents,
    } = kills;
    say(&format!(
        "{instances} instances, {workers} workers, {inits} inits and {agents} agents killed; {} \
         requests answered once, {} of them collected later; {} clear refusals, {} connections \
         broken, {again} handlers run again",
        texts.len(),
        accepted.len(),
        asked.refusals.into_inner(),
        asked.broken.into_inner()
    ));
    assert!(
        [instances, workers, inits, agents]
            .iter()
            .all(|&count| count > 0)
    );
}
