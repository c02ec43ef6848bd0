//! The shared-memory layout, version 3. Every field is one little-endian 64-bit word, so that all
//! sharing is by atomic words and a zeroed page is a valid empty state. The structs are never
//! placed over shared memory: they give the offsets, and the assertions below pin every byte.

use core::mem::{align_of, offset_of, size_of};

/// The first word of every family segment once its guardian has made it: `SANDPIPE`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SANDPIPE");

/// The layout's version; participants of different versions refuse each other at attach.
pub const LAYOUT_VERSION: u32 = 5;

/// Bytes of a cache line, the unit that moves between two cores.
pub const LINE: usize = 64;

/// Bytes of a page, the unit of protection and of first-touch cost.
pub const PAGE: usize = 4096;

/// Families of one sandbox at the most: the host agent and 31 grains.
pub const FAMILIES_MAX: usize = 32;

/// Queues that one family can publish to at the most.
pub const TARGETS_MAX: usize = 32;

/// Lane slots that one commit can make visible at the most: 8 outputs and their backup copies.
pub const ITEMS_MAX: usize = 16;

/// Instance slots of one family at the most (a claim word holds 14 bits, one value is reserved).
pub const SLOTS_MAX: usize = 1024;

/// Extensions of one family's payload pool at the most.
pub const EXTENSIONS_MAX: usize = 4;

/// Payload bytes that travel inside a lane slot.
pub const INLINE_MAX: usize = 64;

/// Bytes of a payload in a chunk that travel inside the lane slot as well.
pub const HEAD_MAX: usize = INLINE_MAX - 8;

/// The head of a family segment (one page).
#[repr(C, align(4096))]
pub struct FamilyHeader {
    /// [`MAGIC`], written by the guardian.
    pub magic: u64,
    /// [`LAYOUT_VERSION`].
    pub version: u64,
    /// [`layout_hash`] of the writer.
    pub hash: u64,
    /// Index of this family.
    pub family: u64,
    /// Incarnation: 1 for the first segment of the family, plus one for each that replaces it.
    pub epoch: u64,
    /// Bytes of the whole segment.
    pub length: u64,
    _line0: [u64; 2],
    /// Counts the peer segments that this family's worker has mapped anew; an idle instance that
    /// was forked under an older value retires.
    pub attach_epoch: u64,
    /// Odd: some in-flight entry may have no owner. A hint; each recovery that makes an orphan
    /// stores a larger odd number.
    pub orphans: u64,
    /// How often the guardian has opened an extension of this family's pool.
    pub grants: u64,
    /// The pool's extensions: bit 0: chunks may be loaned from it; above bit 8: which file it is.
    /// Written by the guardian.
    pub extension: [u64; EXTENSIONS_MAX],
    /// How often the guardian has answered the family's wish for an extension: opened one, or
    /// dropped a wish that came to nothing.
    pub answers: u64,
    /// What recovery mended in this family.
    pub recovered: RecoveryCounters,
    _rest: [u64; 488],
}

/// What recoveries of one family have found, over all its incarnations. Written by whoever
/// recovers: the worker for its instances, the guardian once the whole family is gone.
#[repr(C, align(64))]
pub struct RecoveryCounters {
    /// Commits of dead slots of which something was still to be carried out.
    pub commits: u64,
    /// Lanes that a dead slot had left half done: stamps, tails or claims.
    pub lanes: u64,
    /// Chunks that came back from dead slots.
    pub chunks: u64,
    /// Messages that are delivered again: taken by a dead slot, not acknowledged.
    pub messages: u64,
    _rest: [u64; 4],
}

/// One line that decides a whole commit: the intent, and the word that makes it a fact.
#[repr(C, align(64))]
pub struct CommitLine {
    /// Sequence number of the newest commit that became a fact.
    pub commit: u64,
    /// Sequence number of the record below; the record counts only while `seq == commit`.
    pub seq: u64,
    /// How many items the record has.
    pub count: u64,
    /// What the commit acknowledges (`ACK_*` kind in the top byte, index below), 0: nothing.
    pub ack_at: u64,
    /// The key or position that must still stand there for the acknowledgement to be carried out.
    pub ack_key: u64,
    /// The first three lane slots to stamp: target index in the top 16 bits, position below.
    pub item: [u64; 3],
}

/// The robust futex of a process's life, laid out as glibc's robust list needs it.
#[repr(C, align(64))]
pub struct Lease {
    /// TID inside the pid namespace, `FUTEX_WAITERS` set; the kernel sets `FUTEX_OWNER_DIED`.
    pub word: u64,
    _gap: [u64; 2],
    /// glibc writes a back pointer in front of the node.
    pub previous: u64,
    /// The node in the robust list: 32 bytes behind the futex word.
    pub node: u64,
    _rest: [u64; 3],
}

/// What the worker and the guardian know of an instance slot's holder.
#[repr(C, align(64))]
pub struct SlotState {
    /// Process id of the holder (inside the pid namespace), 0: leased to nobody.
    pub pid: u64,
    /// Counts the holders; fences a holder that comes back from the dead.
    pub incarnation: u64,
    /// When the holder took its message, nanoseconds of `CLOCK_MONOTONIC`; 0: it has none.
    pub started_ns: u64,
    /// Messages that this slot has acknowledged.
    pub handled: u64,
    _rest: [u64; 4],
}

/// What one slot counts, over all its holders. Only the holder writes it, by plain stores; nobody
/// polls it. What the protocol's own words tell (published, received) is not counted again.
#[repr(C, align(64))]
pub struct SlotCounters {
    /// Payload bytes of the messages that commits made visible.
    pub bytes: u64,
    /// Messages refused because their lane was full; each try counts.
    pub full: u64,
    /// Loans refused because every chunk that is large enough was held; each try counts.
    pub exhausted: u64,
    /// Sleeps on a bell.
    pub parked: u64,
    /// Sleeps that a ring ended.
    pub woken: u64,
    /// Looks at the lanes that found nothing, before a sleep.
    pub spins: u64,
    /// Sleeps that ended by time-out, and so with a look at every lane.
    pub rescans: u64,
    /// Messages and references of other families that were refused as malformed.
    pub quarantined: u64,
}

/// Everything that one instance slot writes outside its lanes.
#[repr(C, align(64))]
pub struct InstanceSlot {
    /// The commit record.
    pub commit: CommitLine,
    /// Items beyond the third.
    pub more_items: [u64; 16],
    /// The producer's durable position in its lane to each target.
    pub tail: [u64; TARGETS_MAX],
    /// The holder's lease.
    pub lease: Lease,
    /// Who holds the slot.
    pub state: SlotState,
    /// What the slot counts.
    pub counters: SlotCounters,
}

/// The consumer's words for one incoming lane; one claim word for each lane slot follows.
#[repr(C, align(64))]
pub struct LaneHead {
    /// Everything below is free for the producer to overwrite.
    pub head: u64,
    _line0: [u64; 7],
    /// Exclusive receivers: every position below is acknowledged.
    pub cursor: u64,
    /// Exclusive receivers: position + 1 of the message that was started last.
    pub started: u64,
    /// How often that message was started.
    pub attempts: u64,
    _line1: [u64; 5],
}

/// One message that was taken out of its lane and is not acknowledged yet.
#[repr(C, align(64))]
pub struct InFlightEntry {
    /// Lane index in the top 16 bits, position + 1 below; 0: no message.
    pub key: u64,
    /// Owner: slot + 1 in the low 16 bits ([`OWNER_ORPHAN`]: nobody), attempt in the next 16.
    pub owner: u64,
    /// The family's attach epoch when the message was taken: who adopts it must have mapped the
    /// publisher at least as newly.
    pub epoch: u64,
    _line0: [u64; 5],
    /// The message as it lay in the lane, without its stamp.
    pub message: [u64; 15],
    _rest: u64,
}

/// One message in a lane.
#[repr(C, align(128))]
pub struct LaneSlot {
    /// Position + 1 once the message is visible.
    pub stamp: u64,
    /// Message id, low word first.
    pub id: [u64; 2],
    /// Root id.
    pub root: [u64; 2],
    /// Length in the low 32 bits, then kind, destination queue, flags, code: one byte each.
    pub meta: u64,
    /// Up to [`INLINE_MAX`] payload bytes, or a chunk reference. It begins in the stamp's cache
    /// line, so that a reader asks for the chunk and for the slot's second line at once.
    pub payload: [u64; 8],
    /// Parent id.
    pub parent: [u64; 2],
}

/// One chunk of the payload pool.
#[repr(C, align(64))]
pub struct ChunkDescriptor {
    /// Generation (32 bits), owning slot (16), phase (8: free, loaned, published).
    pub state: u64,
    /// Commit sequence number that published it.
    pub commit_seq: u64,
    /// How many lane slots name it.
    pub count: u64,
    /// Payload bytes in use.
    pub len: u64,
    _line0: [u64; 4],
    /// The lane slots that name it: target index in the top 16 bits, position below.
    pub holder: [u64; ITEMS_MAX],
}

/// One queue's words in the hint page, which every process of the application may write.
#[repr(C, align(128))]
pub struct HintBlock {
    /// Futex word (its low half): moves with every ring.
    pub bell: u64,
    /// Low half: upper bound of the consumers parked on the bell; a ringer takes one off and wakes
    /// one. High half: how often that has happened.
    pub parked: u64,
    _rest: [u64; 14],
}

/// Entry owner that means "nobody: to be delivered again".
pub const OWNER_ORPHAN: u64 = 0xffff;

/// `ack_at` kind: an in-flight entry.
pub const ACK_ENTRY: u64 = 1 << 56;

/// `ack_at` kind: the cursor of an incoming lane.
pub const ACK_CURSOR: u64 = 2 << 56;

/// A fingerprint of every size and offset above, exchanged at attach beside the version.
#[must_use]
pub const fn layout_hash() -> u64 {
    let facts = [
        LAYOUT_VERSION as usize,
        offset_of!(FamilyHeader, attach_epoch),
        offset_of!(FamilyHeader, orphans),
        offset_of!(FamilyHeader, grants),
        offset_of!(FamilyHeader, extension),
        offset_of!(FamilyHeader, answers),
        offset_of!(FamilyHeader, recovered),
        size_of::<FamilyHeader>(),
        offset_of!(InstanceSlot, more_items),
        offset_of!(InstanceSlot, tail),
        offset_of!(InstanceSlot, lease),
        offset_of!(InstanceSlot, state),
        offset_of!(InstanceSlot, counters),
        size_of::<InstanceSlot>(),
        offset_of!(LaneHead, cursor),
        size_of::<LaneHead>(),
        offset_of!(InFlightEntry, message),
        offset_of!(InFlightEntry, epoch),
        size_of::<InFlightEntry>(),
        offset_of!(LaneSlot, meta),
        offset_of!(LaneSlot, parent),
        size_of::<LaneSlot>(),
        offset_of!(ChunkDescriptor, holder),
        size_of::<ChunkDescriptor>(),
        size_of::<HintBlock>(),
        FAMILIES_MAX,
        TARGETS_MAX,
        EXTENSIONS_MAX,
        ITEMS_MAX,
    ];
    // FNV-1a, 64 bits: enough to tell two layouts apart, and const.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < facts.len() {
        hash = (hash ^ facts[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

const _: () = {
    assert!(size_of::<FamilyHeader>() == PAGE && offset_of!(FamilyHeader, attach_epoch) == 64);
    assert!(offset_of!(FamilyHeader, grants) == 80 && offset_of!(FamilyHeader, extension) == 88);
    assert!(offset_of!(FamilyHeader, answers) == 120);
    assert!(size_of::<RecoveryCounters>() == LINE && offset_of!(FamilyHeader, recovered) == 128);
    assert!(size_of::<CommitLine>() == LINE && align_of::<CommitLine>() == LINE);
    assert!(size_of::<Lease>() == LINE && offset_of!(Lease, node) == 32);
    assert!(size_of::<SlotState>() == LINE);
    assert!(offset_of!(InstanceSlot, more_items) == 64 && offset_of!(InstanceSlot, tail) == 192);
    assert!(offset_of!(InstanceSlot, lease) == 448 && offset_of!(InstanceSlot, state) == 512);
    assert!(size_of::<SlotCounters>() == LINE && offset_of!(InstanceSlot, counters) == 576);
    assert!(size_of::<InstanceSlot>() == 640);
    assert!(size_of::<LaneHead>() == 128 && offset_of!(LaneHead, cursor) == 64);
    assert!(size_of::<InFlightEntry>() == 192 && offset_of!(InFlightEntry, message) == 64);
    assert!(size_of::<LaneSlot>() == 128 && offset_of!(LaneSlot, payload) == 48);
    assert!(size_of::<ChunkDescriptor>() == 192 && offset_of!(ChunkDescriptor, holder) == 64);
    assert!(size_of::<HintBlock>() == 128);
    assert!(FAMILIES_MAX * size_of::<HintBlock>() == PAGE);
};
