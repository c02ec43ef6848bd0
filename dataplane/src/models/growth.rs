//! Extensions of a pool: a loan against the guardian that closes the file.

use loom::thread;

use super::{AGENT, S0, model, pair_of};
use crate::chunk::Pool;
use crate::extension::ExtensionWord;
use crate::{ChunkClass, SlotIndex};

#[test]
fn nobody_loans_from_a_file_that_goes() {
    model(|| {
        let class = ChunkClass {
            bytes: 64,
            count: 1,
        };
        // One extension: it begins on a page and ends on one.
        let (agent, _grain) = pair_of(1, vec![class], 4096);
        let (generation, open) = (0, true);
        ExtensionWord { generation, open }.store(agent.own_memory(), 0);
        let mut producer = agent.instance(S0);
        let _first = producer.loan(8).unwrap();
        let guardian = agent.clone();
        let closing = thread::spawn(move || {
            let own = guardian.own_memory().clone();
            let pool = Pool::new(own, guardian.layouts(), AGENT, SlotIndex(0));
            pool.close(0, generation, &guardian.holders())
        });
        let loaned = producer.loan(8).is_ok();
        let closed = closing.join().unwrap();
        assert!(!(loaned && closed), "a loan of a file that goes");
        let word = ExtensionWord::load(agent.own_memory(), 0);
        assert_eq!(word.open, !closed);
    });
}
