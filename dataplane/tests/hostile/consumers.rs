//! Lies of a consumer, to whom the agent publishes.

use sandpipe::layout::InFlightEntry;
use sandpipe::{Ack, IncomingLane, Payload, StageError, TraceStamps, Violation};

use crate::house::{AGENT, CHUNKS, CONSUMER, HOSTILE, House, INNOCENT, LANE, S0, header, publish};

/// The lane from the agent's slot 0 to the hostile family, whose head is the hostile one's.
fn lane_from_agent(house: &House) -> IncomingLane {
    let layout = house.agent.topology().layout(HOSTILE);
    *layout
        .lanes
        .iter()
        .find(|l| l.source == AGENT && l.slot == S0)
        .unwrap()
}

fn stage(house: &House, taken: &[u64]) -> Result<(), StageError> {
    let mut agent = house.agent.instance(S0);
    let head_at = lane_from_agent(house).head_at;
    for &head in taken {
        for _ in 0..LANE {
            let payload = Payload::Inline(b"x");
            let header = header(1, HOSTILE);
            agent.stage(HOSTILE, &header, payload, TraceStamps::default())?;
            agent.commit(Ack::NOTHING);
        }
        house.poke(head_at, head);
    }
    agent.stage(
        HOSTILE,
        &header(2, HOSTILE),
        Payload::Inline(b"x"),
        TraceStamps::default(),
    )
}

#[test]
fn a_forged_acknowledgement_of_what_was_never_published_is_refused() {
    for head in [LANE + 1, 1 << 48, u64::MAX] {
        let mut house = House::new();
        let lie = Violation::Head {
            head,
            seen: 0,
            tail: LANE,
        };
        assert_eq!(
            stage(&house, &[head]),
            Err(StageError::Lied(HOSTILE.0, lie))
        );
        house.receiver.refuse(HOSTILE, lie);
        house.agent_refuses(lie);
    }
}

#[test]
fn a_head_that_goes_back_is_refused() {
    let house = House::new();
    let lie = Violation::Head {
        head: 3,
        seen: LANE,
        tail: 2 * LANE,
    };
    assert_eq!(
        stage(&house, &[LANE, 3]),
        Err(StageError::Lied(HOSTILE.0, lie))
    );
}

#[test]
fn an_honest_head_is_believed() {
    let house = House::new();
    assert_eq!(stage(&house, &[LANE, 2 * LANE, 2 * LANE + 1]), Ok(()));
}

#[test]
fn a_consumer_that_never_takes_fills_its_own_lane_only() {
    let mut house = House::new();
    let mut agent = house.agent.instance(S0);
    let mut pinned = 0;
    while publish(&mut agent, &[HOSTILE], 9) {
        pinned += 1;
    }
    assert_eq!(pinned, LANE, "its lane is full, and that is told");
    // In-flight entries that pin every chunk there is, for ever.
    let layout = house.agent.topology().layout(HOSTILE);
    for entry in 0..layout.entries {
        house.poke(layout.entry_at(entry), entry as u64 + 1);
        house.poke(
            layout.entry_at(entry) + size_of::<InFlightEntry>() - 8,
            u64::MAX,
        );
    }
    assert!(u64::from(CHUNKS) > LANE);
    for id in 0..u128::from(LANE) {
        assert!(
            publish(&mut agent, &[INNOCENT], id),
            "the others' lanes have room"
        );
    }
    let loan = agent.loan(4096);
    assert!(loan.is_ok(), "{loan:?}");
    house.innocents_lose_nothing();
}

#[test]
fn a_consumer_that_releases_a_shared_chunk_early_frees_it_for_nobody_else() {
    let house = House::new();
    let mut agent = house.agent.instance(S0);
    // Every message goes to both; the honest one takes nothing yet.
    for id in 0..u128::from(LANE) {
        assert!(publish(&mut agent, &[HOSTILE, CONSUMER], id));
    }
    house.poke(lane_from_agent(&house).head_at, LANE);
    // Every chunk that the consumer holds stays held, whatever the hostile one says.
    assert_eq!(agent.chunks_in_use(), (0, LANE as usize));
    let mut loans = 0;
    while agent.loan(4096).is_ok() {
        loans += 1;
    }
    assert_eq!(loans, u64::from(CHUNKS) - LANE);
}
