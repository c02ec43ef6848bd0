//! Leases: a robust futex held for a process's life, so that its death is seen in about 0.1 ms
//! whatever the size of its memory.
//!
//! The word lies in the instance slot. It is linked into glibc's own robust list, so that robust
//! mutexes go on working, and holds the TID inside the pid namespace, which is what the kernel
//! compares. The kernel sets `FUTEX_OWNER_DIED` when the thread ends. A lease tells of a thread's
//! end: delivery may start again then, but memory is recycled only after waitid.
#![allow(
    unsafe_code,
    reason = "the robust list is a kernel interface of raw pointers"
)]

use core::mem::offset_of;
use core::sync::atomic::{Ordering, compiler_fence};
use core::time::Duration;
use std::io;

use sandpipe_abi::layout::{InstanceSlot, Lease as LeaseLayout};

use crate::bus::Bus;
use crate::futex;
use crate::memory::Memory;
use crate::segment::Mapping;
use crate::topology::{FamilyIndex, SlotIndex};

const FUTEX_WAITERS: u64 = 0x8000_0000;
const FUTEX_OWNER_DIED: u64 = 0x4000_0000;
const FUTEX_TID_MASK: u64 = 0x3fff_ffff;

/// glibc puts the futex word 32 bytes before the node.
const FUTEX_OFFSET: libc::c_long = -32;

/// `struct robust_list_head` of the kernel.
#[repr(C)]
struct RobustListHead {
    next: *mut u64,
    futex_offset: libc::c_long,
    pending: *mut u64,
}

/// A lease held by the calling thread until it ends. Dropping it changes nothing.
#[derive(Debug)]
pub struct Lease {
    _segment: Mapping,
}

impl Lease {
    /// Holds the lease of `slot` for the rest of the calling thread's life: two system calls.
    /// A forked child holds nothing; it takes its own slot's lease.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if this C library lays its robust list out differently;
    /// the pidfd then is the only sign of death.
    pub fn hold(bus: &Bus<Mapping>, slot: SlotIndex) -> io::Result<Lease> {
        let segment = bus.own_memory().clone();
        assert!(
            segment.is_writable(),
            "a lease lies in the holder's own segment"
        );
        let at = bus.own_layout().slot_at(slot) + offset_of!(InstanceSlot, lease);
        let mut head: *mut RobustListHead = core::ptr::null_mut();
        let mut len: usize = 0;
        // SAFETY: get_robust_list(0, ..) writes the calling thread's head and its length.
        let result =
            unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a head that is not null is glibc's, valid for the thread's life.
        if head.is_null() || unsafe { (*head).futex_offset } != FUTEX_OFFSET {
            let what = "this C library keeps no robust list that a lease can join";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let tid = u64::from(
            rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned(),
        );
        let word = segment.word(at + offset_of!(LeaseLayout, word));
        let node = segment.word(at + offset_of!(LeaseLayout, node)).as_ptr();
        // SAFETY: the head is the calling thread's own. Until the node is in the list `pending`
        // names it, so that the kernel marks the word also after a death between the two.
        unsafe { (*head).pending = node };
        word.store(tid | FUTEX_WAITERS, Ordering::SeqCst);
        // SAFETY: the list is the calling thread's own and nobody else walks it while the thread
        // lives. Every node, and the head itself, has its back pointer 8 bytes before the word
        // that `next` points to; the lowest bit of `next` marks a PI futex. The node stays mapped
        // for the thread's life, since `Lease` keeps the mapping and is never dropped early.
        unsafe {
            let first = (*head).next;
            if first != node {
                node.write(first as u64);
                node.sub(1).write(head as u64);
                let first_node = (first as usize & !1) as *mut u64;
                first_node.sub(1).write(node as u64);
                compiler_fence(Ordering::SeqCst);
                (*head).next = node;
            }
            compiler_fence(Ordering::SeqCst);
            (*head).pending = core::ptr::null_mut();
        }
        core::mem::forget(segment.clone());
        Ok(Lease { _segment: segment })
    }
}

/// What a lease word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody has ever held it in this segment.
    Free,
    /// A living thread holds it; its id inside the pid namespace.
    Held(u32),
    /// Its holder has ended.
    Died,
}

/// Reads the lease of any family's slot; `None` if that segment is not mapped.
#[must_use]
pub fn lease_state(bus: &Bus<Mapping>, family: FamilyIndex, slot: SlotIndex) -> Option<LeaseState> {
    let word = lease_word(bus, family, slot)?;
    Some(match word & (FUTEX_TID_MASK | FUTEX_OWNER_DIED) {
        0 => LeaseState::Free,
        word if word & FUTEX_OWNER_DIED != 0 => LeaseState::Died,
        tid => LeaseState::Held(tid as u32),
    })
}

/// Sleeps until a held lease changes, at most `timeout`; works on a read-only mapping.
pub fn wait_for_change(
    bus: &Bus<Mapping>,
    family: FamilyIndex,
    slot: SlotIndex,
    timeout: Duration,
) {
    let at = bus.topology().layout(family).slot_at(slot) + offset_of!(InstanceSlot, lease);
    if let (Some(word), Some(segment)) = (lease_word(bus, family, slot), bus.segment(family))
        && word & FUTEX_OWNER_DIED == 0
    {
        futex::wait(segment.word(at), word as u32, timeout);
    }
}

fn lease_word(bus: &Bus<Mapping>, family: FamilyIndex, slot: SlotIndex) -> Option<u64> {
    let at = bus.topology().layout(family).slot_at(slot) + offset_of!(InstanceSlot, lease);
    Some(bus.segment(family)?.word(at).load(Ordering::SeqCst))
}

/// Clears the leases of a copied segment: its holders are gone.
pub(crate) fn clear(bus: &Bus<Mapping>) {
    for slot in 0..bus.own_layout().slots {
        let at = bus.own_layout().slot_at(SlotIndex(slot)) + offset_of!(InstanceSlot, lease);
        bus.own_memory().word(at).store(0, Ordering::SeqCst);
    }
}
