//! A word with a running QEMU over its monitor protocol (QMP): JSON lines over a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

/// Gives the drive `device` another size; the guest is told, and so is the file behind it.
pub fn block_resize(socket: &Path, device: &str, size_bytes: u64) -> Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let greeting = lines.next().context("no greeting")??;
    if !greeting.contains("\"QMP\"") {
        bail!("{}: not a QMP socket: {greeting}", socket.display());
    }
    execute(&stream, &mut lines, json!({"execute": "qmp_capabilities"}))?;
    execute(
        &stream,
        &mut lines,
        json!({"execute": "block_resize", "arguments": {"device": device, "size": size_bytes}}),
    )
}

/// Sends a command and waits for its answer; what QEMU tells meanwhile (events) is passed over.
fn execute(
    mut stream: &UnixStream,
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    command: Value,
) -> Result<()> {
    writeln!(stream, "{command}")?;
    for line in lines {
        let answer: Value = serde_json::from_str(&line?)?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        if answer.get("return").is_some() {
            return Ok(());
        }
    }
    bail!("{command}: QEMU hung up");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that answers the two commands with these lines.
    fn monitor(name: &str, answers: &'static str) -> (std::path::PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            stream.write_all(answers.as_bytes()).unwrap();
            BufReader::new(stream).lines().map_while(Result::ok).collect()
        });
        (path, thread)
    }

    #[test]
    fn a_drive_is_resized() {
        let (path, thread) = monitor("qmp-ok", "{\"return\": {}}\n{\"event\": \"X\"}\n{\"return\": {}}\n");
        block_resize(&path, "disk1", 4096).unwrap();
        let heard = thread.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities") && heard[1].contains("\"device\":\"disk1\""), "{heard:?}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_refusal_is_told() {
        let (path, thread) = monitor("qmp-bad", "{\"return\": {}}\n{\"error\": {\"desc\": \"no such drive\"}}\n");
        let error = block_resize(&path, "disk9", 4096).unwrap_err();
        assert!(error.to_string().contains("no such drive"), "{error}");
        thread.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
