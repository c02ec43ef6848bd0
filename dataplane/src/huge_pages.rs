//! Whether this machine gives huge pages: tried, not asked for.
#![allow(unsafe_code, reason = "maps, advises and touches memory of its own")]

use std::io;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The size of a huge page here, and what is mapped so that one fits in wherever it begins.
const HUGE: usize = 2 << 20;
const MAPPED: usize = 2 * HUGE;

/// Maps private memory, advises huge pages, touches it, and returns how many bytes of it the kernel
/// backed by huge pages, as /proc/self/smaps says. Blocks for about a millisecond.
///
/// # Errors
/// The system's.
pub fn granted() -> io::Result<u64> {
    let flags = MapFlags::PRIVATE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh private mapping at an address of the kernel's choice.
    let base = unsafe { rustix::mm::mmap_anonymous(core::ptr::null_mut(), MAPPED, access, flags)? };
    let advised = touch(base);
    let granted = advised.and_then(|()| huge_bytes_at(base.addr()));
    // SAFETY: the mapping is this function's own, and nothing refers to it any more.
    unsafe { rustix::mm::munmap(base, MAPPED)? };
    granted
}

fn touch(base: *mut core::ffi::c_void) -> io::Result<()> {
    // SAFETY: the range is the caller's mapping; the advice changes no contents.
    unsafe { rustix::mm::madvise(base, MAPPED, Advice::LinuxHugepage)? };
    for offset in (0..MAPPED).step_by(4096) {
        // SAFETY: inside the mapping, which is writable.
        unsafe { base.cast::<u8>().add(offset).write_volatile(1) };
    }
    Ok(())
}

/// `AnonHugePages` of the mapping that holds an address, in bytes.
fn huge_bytes_at(address: usize) -> io::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    for line in maps.lines() {
        if let Some((begin, end)) = range_of(line) {
            inside = (begin..end).contains(&address);
        } else if inside && let Some(size) = line.strip_prefix("AnonHugePages:") {
            let number = size.trim().trim_end_matches("kB").trim().parse::<u64>();
            return number
                .map(|kib| kib << 10)
                .map_err(|_| io::ErrorKind::InvalidData.into());
        }
    }
    Err(io::Error::other("/proc/self/smaps does not tell"))
}

/// The addresses of a mapping's first line.
fn range_of(line: &str) -> Option<(usize, usize)> {
    let (begin, end) = line.split_whitespace().next()?.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    Some((parse(begin)?, parse(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_mapping_is_told_from_its_fields() {
        let first = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0";
        assert_eq!(range_of(first), Some((0x7f00_0000_0000, 0x7f00_0020_0000)));
        assert_eq!(range_of("AnonHugePages:      2048 kB"), None);
        assert_eq!(range_of("VmFlags: rd wr mr mw me ac sd"), None);
    }
}
