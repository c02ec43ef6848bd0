//! The `sandpipe` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sandpipe_agent::cli::main()
}
