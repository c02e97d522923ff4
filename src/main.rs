//! The command line: see [`onair::cli`].

/// A request makes some hundred small allocations and a few of several kilobytes, which glibc's allocator does not keep at hand: see
/// `docs/performance.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    onair::cli::main()
}
