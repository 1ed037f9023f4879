//! `time level rank message`, one line each: to the rank's own file, and from rank 0 also to standard error.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing::Level;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging for this process; later calls do nothing.
///
/// `file` is where this rank's lines go (opened through `rundir`); `to_stderr` is set on rank 0.
pub fn init(file: Box<dyn Write + Send>, rank: usize, to_stderr: bool) {
    let file = Arc::new(Mutex::new(file));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .event_format(Line { rank })
        .with_writer(move || Tee { file: file.clone(), to_stderr })
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The format of a line.
struct Line {
    rank: usize,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let time = chrono::Local::now().format("%Y-%m-%dT%H:%M:%S%.3f");
        write!(writer, "{time} {:<5} rank {} ", event.metadata().level(), self.rank)?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Writes a line to the file and perhaps to standard error. A full disk must not end the work through its log.
struct Tee {
    file: Arc<Mutex<Box<dyn Write + Send>>>,
    to_stderr: bool,
}

impl Write for Tee {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Ok(mut file) = self.file.lock() {
            let _ = file.write_all(line).and_then(|()| file.flush());
        }
        if self.to_stderr {
            let _ = io::stderr().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
