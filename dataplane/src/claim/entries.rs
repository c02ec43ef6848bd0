//! The in-flight entries of an instance: where its messages lie, how it takes over those of the
//! dead, and how it gives entries back.

use core::mem::offset_of;

use sandpipe_abi::layout::{FamilyHeader, InFlightEntry, OWNER_ORPHAN};

use super::{Claimer, Delivery};
use crate::claim_word::{is_due, owner_word, split_owner};
use crate::memory::Memory;
use crate::message::read_words;
use crate::sync::{AtomicU64, Ordering};

impl<M: Memory> Claimer<M> {
    /// An entry of this slot that holds no message; takes a free one if the slot has none.
    #[inline(always)]
    pub(super) fn free_entry(&mut self) -> Option<usize> {
        if !self.is_own_and_free(self.own_entry) {
            self.own_entry = self.find_entry()?;
        }
        Some(self.own_entry)
    }

    #[inline(always)]
    fn is_own_and_free(&self, entry: usize) -> bool {
        let (owner, _) = split_owner(self.owner(entry).load(Ordering::Relaxed));
        owner == u64::from(self.slot.0) + 1
            && self.entry_word(entry, offset_of!(InFlightEntry, key)) == 0
    }

    #[cold]
    fn find_entry(&self) -> Option<usize> {
        let mut entries = self.entries.iter().copied();
        let owned = entries.clone().find(|&at| self.is_own_and_free(at));
        owned.or_else(|| {
            entries.find(|&at| {
                let taken = owner_word(u64::from(self.slot.0) + 1, 1);
                let word = self.owner(at);
                // Acquire pairs with the Release of who gave the entry back: its key is empty.
                word.load(Ordering::Relaxed) == 0
                    && word
                        .compare_exchange(0, taken, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            })
        })
    }

    /// Takes over a message whose instance died.
    #[inline(always)]
    pub(super) fn adopt_orphan(
        &mut self,
        now_ns: &impl Fn() -> u64,
        delivery: &mut Delivery,
    ) -> bool {
        self.orphans().load(Ordering::Relaxed) & 1 != 0 && self.adopt(now_ns, delivery)
    }

    #[cold]
    fn adopt(&mut self, now_ns: &impl Fn() -> u64, delivery: &mut Delivery) -> bool {
        // SYNC(orphans): Acquire pairs with the recoverer's Release: its orphan is seen below.
        let hint = self.orphans().load(Ordering::Acquire);
        let mut left = false;
        let entry = self.entries.iter().copied().find(|&at| {
            // Acquire, here and in the exchange, pairs with the recoverer's Release of an orphan
            // that is newer than the hint.
            let word = self.owner(at).load(Ordering::Acquire);
            let (owner, attempt) = split_owner(word);
            if owner != OWNER_ORPHAN {
                return false;
            }
            left = true;
            if !is_due(word, now_ns()) {
                return false;
            }
            let taken = owner_word(u64::from(self.slot.0) + 1, attempt);
            self.can_read(at) && {
                self.own
                    .word(self.started_at)
                    .store(now_ns(), Ordering::Relaxed);
                self.owner(at)
                    .compare_exchange(word, taken, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            }
        });
        if !left {
            // Only after a scan that found nothing, and only if no orphan has appeared since: a
            // claimer that is stopped anywhere in here hides no orphan from the others.
            let word = self.orphans();
            let _ = word.compare_exchange(hint, hint & !1, Ordering::Relaxed, Ordering::Relaxed);
        }
        let Some(entry) = entry else { return false };
        self.adopted = true;
        let key = self.entry_word(entry, offset_of!(InFlightEntry, key));
        let message_at = entry + offset_of!(InFlightEntry, message);
        let words = read_words(&self.own, message_at);
        let (_, attempt) = split_owner(self.owner(entry).load(Ordering::Relaxed));
        let Some(lane) = self.lanes.get((key >> 48) as usize) else {
            return false;
        };
        delivery.source = lane.source;
        delivery.attempt = attempt as u16;
        self.fill(delivery, entry, key, &words)
    }

    /// Whether some message has no owner and is due.
    #[cold]
    pub(super) fn has_due_orphan(&self, now_ns: u64) -> bool {
        self.entries.iter().any(|&at| {
            let word = self.owner(at).load(Ordering::Relaxed);
            split_owner(word).0 == OWNER_ORPHAN && is_due(word, now_ns)
        })
    }

    /// Whether this process maps the publisher of an entry's message, and as newly as whoever took
    /// it: an older mapping may lack the payload.
    fn can_read(&self, entry: usize) -> bool {
        let key = self.entry_word(entry, offset_of!(InFlightEntry, key));
        let lane = self.lanes.get((key >> 48) as usize);
        lane.is_some_and(|lane| lane.reader.is_some())
            && self.entry_word(entry, offset_of!(InFlightEntry, epoch)) <= self.epoch
    }

    fn entry_word(&self, entry: usize, field: usize) -> u64 {
        self.own.word(entry + field).load(Ordering::Relaxed)
    }

    /// After the acknowledgement: the slot is idle, and an adopted entry is free for others.
    #[inline]
    pub fn finish(&mut self) {
        self.own.word(self.started_at).store(0, Ordering::Relaxed);
        if core::mem::take(&mut self.adopted) {
            self.give_back_entries();
        }
    }

    /// Hands back a message that this process cannot read, or whose outputs it cannot publish,
    /// since its mappings are older than its family's worker's; it must end then. Recovery of its
    /// slot has the message delivered to one with newer mappings, and counts no attempt.
    #[cold]
    pub fn hand_back(&mut self, delivery: &Delivery) {
        let entry = self.entries[(delivery.ack.at & 0xff_ffff) as usize];
        let newest = self.own.word(offset_of!(FamilyHeader, attach_epoch));
        let newest = newest.load(Ordering::Relaxed);
        self.own
            .word(entry + offset_of!(InFlightEntry, epoch))
            .store(newest, Ordering::Relaxed);
        let (owner, attempt) = split_owner(self.owner(entry).load(Ordering::Relaxed));
        let uncounted = owner_word(owner, attempt.saturating_sub(1));
        self.owner(entry).store(uncounted, Ordering::Relaxed);
    }

    /// Keeps one entry without a message, as new, and frees the others.
    #[cold]
    fn give_back_entries(&self) {
        let mut kept = false;
        for &at in self.entries.iter().filter(|&&at| self.is_own_and_free(at)) {
            let next = if kept {
                0
            } else {
                owner_word(u64::from(self.slot.0) + 1, 1)
            };
            // Release pairs with the Acquire of who takes it next.
            self.owner(at).store(next, Ordering::Release);
            kept = true;
        }
    }

    fn owner(&self, entry: usize) -> &AtomicU64 {
        self.own.word(entry + offset_of!(InFlightEntry, owner))
    }
}
