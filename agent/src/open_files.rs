//! What a person is told when descriptors run out: the system's words do not say what to raise.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// The words for an error of having no descriptor left; `None` for any other.
#[must_use]
pub fn told(error: &io::Error) -> Option<String> {
    match Errno::from_io_error(error)? {
        Errno::MFILE => Some(format!("too many open files ({}", own_limit())),
        Errno::NFILE => Some("too many open files on this machine: raise fs.file-max".into()),
        _ => None,
    }
}

/// A message of any error, with what to raise if it is one of these.
#[must_use]
pub fn with_remedy(message: String) -> String {
    let numbered = |errno: Errno| message.contains(&format!("(os error {})", errno.raw_os_error()));
    if numbered(Errno::MFILE) {
        format!("{message} ({}", own_limit())
    } else if numbered(Errno::NFILE) {
        format!("{message} (of this machine: raise fs.file-max)")
    } else {
        message
    }
}

/// Opens `count` descriptors and closes them again: who needs them later, and would not end well
/// without, asks here first. Blocks for nothing.
///
/// # Errors
/// The system's, if there are not so many.
pub fn reserve(count: usize) -> io::Result<()> {
    let open = |_| std::fs::File::open("/dev/null");
    (0..count)
        .map(open)
        .collect::<io::Result<Vec<_>>>()
        .map(drop)
}

fn own_limit() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or("none".into(), |limit| limit.to_string());
    format!("limit {limit}): raise LimitNOFILE (systemd) or ulimit -n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_want_of_descriptors_is_told_with_its_limit() {
        let told_of = |errno: Errno| told(&io::Error::from(errno));
        let words = told_of(Errno::MFILE).unwrap();
        assert!(words.contains("too many open files (limit "), "{words}");
        assert!(words.contains("raise LimitNOFILE"), "{words}");
        assert!(told_of(Errno::NFILE).unwrap().contains("fs.file-max"));
        assert_eq!(told_of(Errno::NOENT), None);
        let message = format!("x: {}", io::Error::from(Errno::MFILE));
        assert!(with_remedy(message.clone()).starts_with(&message));
        assert!(with_remedy(message).contains("raise LimitNOFILE"));
        assert_eq!(with_remedy("x (os error 2)".into()), "x (os error 2)");
    }
}
