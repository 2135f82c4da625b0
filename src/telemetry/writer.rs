//! A writer that never blocks: lines go into a bounded queue, a thread writes them out.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait: a second of a busy server's access log, some 4 MiB.
const QUEUE: usize = 16 * 1024;

/// Bytes after which what has been gathered is written.
const BATCH: usize = 64 * 1024;

/// How long the writer rests after a write. The first line after a rest goes out at once; those that come in a rest go
/// out together. Whoever logs then wakes nobody, and the write is one for all of them: without it, every line of an access log
/// woke the writer and was a system call of its own. Short enough that who acts and then reads the log finds it there.
const REST: Duration = Duration::from_millis(1);

/// How long the last lines may take. Whoever does not read his pipe must not keep the process from ending.
const LAST: Duration = Duration::from_secs(1);

/// Makes a writer for each line.
#[derive(Clone)]
pub struct BatchedLogWriter {
    queue: SyncSender<Vec<u8>>,
    dropped: DroppedLines,
}

/// Counts lines that found the queue full.
#[derive(Debug, Clone, Default)]
pub struct DroppedLines(Arc<AtomicU64>);

impl DroppedLines {
    /// How many so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Waits for the queue to empty when dropped, a second at most.
pub struct Flush {
    queue: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Flush {
    fn drop(&mut self) {
        let (Some(queue), Some(thread)) = (self.queue.take(), self.thread.take()) else { return };
        let until = Instant::now() + LAST;
        // An empty line is the sign to stop; the subscriber keeps senders of its own until the process ends.
        let mut told = false;
        while !thread.is_finished() && Instant::now() < until {
            told = told || queue.try_send(Vec::new()).is_ok();
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts the thread that writes to `out`.
pub fn start(out: impl Write + Send + 'static) -> (BatchedLogWriter, Flush, DroppedLines) {
    let (queue, lines) = sync_channel(QUEUE);
    let dropped = DroppedLines::default();
    let thread = thread::Builder::new().name("log".into()).spawn(move || write_out(out, &lines)).ok();
    let flush = Flush { queue: Some(queue.clone()), thread };
    (BatchedLogWriter { queue, dropped: dropped.clone() }, flush, dropped)
}

fn write_out(mut out: impl Write, lines: &Receiver<Vec<u8>>) {
    while let Ok(mut batch) = lines.recv() {
        let mut last = batch.is_empty();
        for line in lines.try_iter() {
            last |= line.is_empty();
            batch.extend_from_slice(&line);
            if batch.len() >= BATCH {
                break;
            }
        }
        // Where standard error is closed there is nobody to tell.
        let _ = out.write_all(&batch).and_then(|()| out.flush());
        if last {
            return;
        }
        // A full batch means that more waits.
        if batch.len() < BATCH {
            thread::sleep(REST);
        }
    }
}

impl<'a> MakeWriter<'a> for BatchedLogWriter {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bytes: Vec::with_capacity(512), lines: self.clone() }
    }
}

/// One line in the making.
pub struct Line {
    bytes: Vec<u8>,
    lines: BatchedLogWriter,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.lines.queue.try_send(std::mem::take(&mut self.bytes)) {
            self.lines.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct SlowWriter(Arc<Mutex<Vec<u8>>>);

    impl Write for SlowWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let out = SlowWriter::default();
        let blocked = out.0.lock().unwrap();
        let (lines, flush, dropped) = start(out.clone());
        let more = 2 * QUEUE;
        for n in 0..more {
            writeln!(lines.make_writer(), "{n}").unwrap();
        }
        assert!(dropped.count() > 0);
        drop(blocked);
        drop(flush);
        let written = out.0.lock().unwrap().split(|b| *b == b'\n').count() - 1;
        assert_eq!(written as u64 + dropped.count(), more as u64);
    }

    /// Counts writes.
    #[derive(Clone, Default)]
    struct CountingWriter(SlowWriter, Arc<AtomicU64>);

    impl Write for CountingWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_come_together_are_written_together() {
        let out = CountingWriter::default();
        let (lines, flush, dropped) = start(out.clone());
        for n in 0..1000 {
            writeln!(lines.make_writer(), "{n}").unwrap();
        }
        drop(flush);
        let writes = out.1.load(Ordering::Relaxed);
        assert!(writes < 500, "{writes} writes for 1000 lines");
        let text = String::from_utf8(out.0.0.lock().unwrap().clone()).unwrap();
        let expected: String = (0..1000).map(|n| format!("{n}\n")).collect();
        assert_eq!((text, dropped.count()), (expected, 0));
    }

    #[test]
    fn nobody_waits_long_for_a_reader_that_does_not_read() {
        let out = SlowWriter::default();
        let _blocked = out.0.lock().unwrap();
        let (lines, flush, _) = start(out.clone());
        for n in 0..2 * QUEUE {
            writeln!(lines.make_writer(), "{n}").unwrap();
        }
        let began = Instant::now();
        drop(flush);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
