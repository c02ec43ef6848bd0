//! Page faults of this process, and how to have those of private memory over with.

use std::io;

use crate::error::BenchError;

/// Page faults of this process until now.
///
/// # Errors
/// The system's.
pub fn page_faults() -> Result<u64, BenchError> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for the structure, which the call fills.
    let usage = match unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } {
        -1 => return Err(BenchError::os("getrusage", io::Error::last_os_error())),
        // SAFETY: filled by the call, and all zero bytes are valid for it anyway.
        _ => unsafe { usage.assume_init() },
    };
    let faults = usage.ru_minflt + usage.ru_majflt;
    Ok(u64::try_from(faults).unwrap_or(0))
}

/// Maps all private memory, the program's code as well, of which a forked child has no page tables
/// or shares the pages with its parent: what faults afterwards is shared memory.
///
/// # Errors
/// If the list of mappings cannot be read.
pub fn own_private_pages() -> Result<(), BenchError> {
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|e| BenchError::os("read /proc/self/maps", e))?;
    for (range, writable) in maps.lines().filter_map(private_range) {
        let (start, len) = (range.start, range.len());
        let advice = match writable {
            true => libc::MADV_POPULATE_WRITE,
            false => libc::MADV_POPULATE_READ,
        };
        // SAFETY: populating private memory changes none of its contents, whatever the range
        // holds by now.
        unsafe { libc::madvise(start as *mut libc::c_void, len, advice) };
    }
    Ok(())
}

/// The addresses of a line of /proc/self/maps, if it is private and can be read, and whether it can
/// be written.
fn private_range(line: &str) -> Option<(std::ops::Range<usize>, bool)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let rights = words.next()?;
    let private = rights.starts_with('r') && rights.ends_with('p');
    private.then_some((address(start)?..address(end)?, rights.contains('w')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_readable_lines_have_a_range() {
        let heap = "55d0a000-55d0c000 rw-p 00000000 00:00 0    [heap]";
        let expected = Some((0x55d0_a000..0x55d0_c000, true));
        assert_eq!(private_range(heap), expected);
        let text = private_range("7f00-7f10 r-xp 00000000 00:01 5 /bin/x");
        assert_eq!(text, Some((0x7f00..0x7f10, false)));
        assert_eq!(
            private_range("7f00-7f10 rw-s 00000000 00:01 5 /memfd:x"),
            None
        );
        assert_eq!(private_range(""), None);
    }

    #[test]
    fn a_first_touch_is_counted() {
        let before = page_faults().unwrap();
        let page = std::hint::black_box(vec![1_u8; 1 << 20]);
        assert!(page_faults().unwrap() > before, "{}", page.len());
    }
}
