//! The lines that wait to be written.
//!
//! A thread writes what has gathered, some twenty times a second: waking it for every line would cost an admission more than
//! making the line does.
//!
//! Invariant: whoever logs waits for nobody but others who log; while standard output is blocked, lines are dropped and
//! counted once [`WAITING_BYTES_MAX`] are waiting.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// The most that waits to be written: about twenty thousand lines.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long lines gather.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Vec<u8>>,
    dropped: AtomicU64,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are put. Cheap to clone: all clones are one buffer.
#[derive(Clone, Default)]
pub(super) struct LogBuffer(Arc<Shared>);

/// Puts one line into the buffer.
pub(super) struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.waiting();
        if waiting.len() + line.len() > WAITING_BYTES_MAX {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            waiting.extend_from_slice(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogBuffer {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl LogBuffer {
    /// How many lines were dropped so far.
    pub(super) fn lines_dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Starts the thread that writes to `output`.
    pub(super) fn write_to(&self, output: impl Write + Send + 'static) -> io::Result<Writing> {
        let (stop, stopped) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let buffer = self.clone();
        std::thread::Builder::new().name("onair-log".to_owned()).spawn(move || {
            buffer.write_until(output, &stopped);
            // Nobody waits for it any more where this fails.
            let _ = done.send(());
        })?;
        Ok(Writing { stop, is_done })
    }

    fn write_until(&self, mut output: impl Write, stopped: &mpsc::Receiver<()>) {
        let mut gathered = Vec::new();
        loop {
            let goes_on = matches!(stopped.recv_timeout(GATHER), Err(mpsc::RecvTimeoutError::Timeout));
            std::mem::swap(&mut gathered, &mut *self.0.waiting());
            // Standard output that is gone takes no complaint either.
            let _ = output.write_all(&gathered).and_then(|()| output.flush());
            gathered.clear();
            if !goes_on {
                return;
            }
        }
    }
}

/// The thread that writes.
pub(super) struct Writing {
    stop: mpsc::Sender<()>,
    is_done: mpsc::Receiver<()>,
}

impl Writing {
    /// Writes what is waiting, for at most `limit`.
    pub(super) fn finish(self, limit: Duration) {
        drop(self.stop);
        let _ = self.is_done.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_the_end() {
        let (buffer, written) = (LogBuffer::default(), Written::default());
        let writing = buffer.write_to(written.clone()).unwrap();
        let lines: Vec<String> = (0..1_000).map(|number| format!("line {number}\n")).collect();
        for line in &lines {
            buffer.make_writer().write_all(line.as_bytes()).unwrap();
        }
        writing.finish(Duration::from_secs(5));
        assert_eq!(String::from_utf8(written.0.lock().unwrap().clone()).unwrap(), lines.concat());
        assert_eq!(buffer.lines_dropped(), 0);
    }

    #[test]
    fn a_blocked_output_drops_lines_and_makes_nobody_wait() {
        struct Blocked(mpsc::Receiver<()>);
        impl Write for Blocked {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (unblock, blocked) = mpsc::channel();
        let buffer = LogBuffer::default();
        let writing = buffer.write_to(Blocked(blocked)).unwrap();
        let line = vec![b'x'; 1024 * 1024];
        for _ in 0..20 {
            buffer.make_writer().write_all(&line).unwrap();
        }
        assert!(buffer.lines_dropped() > 0);
        drop(unblock);
        writing.finish(Duration::from_secs(5));
    }
}
