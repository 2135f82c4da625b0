//! The built program, on ports that the system chooses, with a storage of its own.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long anything may take that is expected to happen. Never waited for when it does.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What tests send wherever a secret may stand; no log of any edge of the whole run may hold it.
pub const SECRET: &str = "S3CRET";

/// A running edge; killed when dropped.
pub struct Edge {
    child: Child,
    folder: TempDir,
    addresses: HashMap<String, SocketAddr>,
    log: Arc<Mutex<String>>,
}

impl Edge {
    /// Starts the program with `sites` below a preamble that fits a test: port 0, the internal CA, one worker's worth of
    /// noise.
    pub fn start(sites: &str) -> Self {
        Self::with("", sites)
    }

    /// The same, with `listen` in place of the default addresses where it sets any.
    pub fn with(listen: &str, sites: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Self::config(folder.path(), listen, sites);
        std::fs::write(folder.path().join("vestibule.toml"), config).unwrap();
        Self::run(folder)
    }

    /// The text of a configuration in `folder`.
    pub fn config(folder: &Path, listen: &str, sites: &str) -> String {
        let folder = folder.display();
        format!(
            "[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nthreads = 2\n{listen}\n\
             [storage]\npath = \"{folder}/state\"\n[tls]\ncertificates = \"internal\"\n\
             [admin]\nlisten = \"unix:{folder}/admin.sock\"\n{sites}\n"
        )
    }

    /// Ends an edge and starts one with its `off.toml` in its folder.
    pub fn from_file(mut old: Self) -> Self {
        let _ = old.child.kill();
        let _ = old.child.wait();
        std::fs::rename(old.path("off.toml"), old.path("vestibule.toml")).unwrap();
        let folder = std::mem::replace(&mut old.folder, tempfile::tempdir().unwrap());
        Self::run(folder)
    }

    /// Another process that takes over from this one, with the same addresses and storage, and with these sites.
    pub fn successor(&self, sites: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::copy(self.path("state/internal-ca.json"), state.join("internal-ca.json")).unwrap();
        let config = Self::config(folder.path(), "", sites)
            .replace("http = [\"127.0.0.1:0\"]", &format!("http = [\"{}\"]", self.http()))
            .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"{}\"]", self.https()));
        std::fs::write(folder.path().join("vestibule.toml"), config).unwrap();
        // Another name of the old one's admin address, which becomes the new one's.
        std::fs::hard_link(self.path("admin.sock"), folder.path().join("admin.sock")).unwrap();
        let mut command = command(folder.path());
        command.args(["run", "--takeover"]);
        Self::launch(folder, command, "the last line there is")
    }

    /// The same as [`start`](Self::start), by way of a program that changes its own limits and then becomes ours.
    pub fn within(program: &[&str], sites: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vestibule.toml"), Self::config(folder.path(), "", sites)).unwrap();
        let inner = command(folder.path());
        let mut outer = Command::new(program[0]);
        outer.args(&program[1..]).arg(inner.get_program()).args(inner.get_args());
        Self::spawn(folder, outer)
    }

    /// The same as [`start`](Self::start), with a log that nobody reads once it is ready.
    pub fn unread(sites: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vestibule.toml"), Self::config(folder.path(), "", sites)).unwrap();
        let command = command(folder.path());
        Self::spawn_until(folder, command, "\"ready\"")
    }

    fn run(folder: TempDir) -> Self {
        let command = command(folder.path());
        Self::spawn(folder, command)
    }

    fn spawn(folder: TempDir, command: Command) -> Self {
        Self::spawn_until(folder, command, "the last line there is")
    }

    /// Reads the log up to the line that holds `last`.
    fn spawn_until(folder: TempDir, mut command: Command, last: &'static str) -> Self {
        command.arg("run");
        Self::launch(folder, command, last)
    }

    fn launch(folder: TempDir, mut command: Command, last: &'static str) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (ready, is_ready) = mpsc::channel();
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        std::thread::spawn(move || {
            let mut addresses = HashMap::new();
            for line in lines.by_ref().map_while(Result::ok) {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "listening"
                    && let Ok(addr) = event["addr"].as_str().unwrap_or_default().parse::<SocketAddr>()
                {
                    addresses.insert(event["listener"].as_str().unwrap_or_default().to_owned(), addr);
                }
                if event["message"] == "started" {
                    let _ = ready.send(std::mem::take(&mut addresses));
                }
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
                if line.contains(last) {
                    // Kept open, and never read again.
                    std::mem::forget(lines);
                    return;
                }
            }
        });
        let Ok(addresses) = is_ready.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            panic!("the edge did not start:\n{}", log.lock().unwrap());
        };
        Self { child, folder, addresses, log }
    }

    /// The TLS address.
    pub fn https(&self) -> SocketAddr {
        self.addresses["https"]
    }

    /// The plain address.
    pub fn http(&self) -> SocketAddr {
        self.addresses["http"]
    }

    /// The root of its internal CA.
    pub fn root(&self) -> String {
        let text = std::fs::read_to_string(self.path("state/internal-ca.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["certificate"].as_str().unwrap().to_owned()
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of the log.
    pub fn wait_for_log(&self, what: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(what)) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "no {what:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until so many lines of the log hold this.
    pub fn wait_for_logs(&self, what: &str, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.log().lines().filter(|line| line.contains(what)).count() < count {
            assert!(Instant::now() < until, "no {count} times {what:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The event of the exchange with this target.
    pub fn exchange(&self, target: &str) -> serde_json::Value {
        let line = self.wait_for_log(&format!("\"uri\":\"{target}\""));
        serde_json::from_str(&line).unwrap()
    }

    /// A page of the admin server, with its head.
    pub async fn page(&self, path: &str) -> String {
        let mut socket = tokio::net::UnixStream::connect(self.path("admin.sock")).await.unwrap();
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).await.unwrap();
        page
    }

    /// Runs another command of the program on the same file.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        command(self.folder.path()).args(arguments).output().unwrap()
    }

    /// Replaces the file.
    pub fn rewrite(&self, listen: &str, sites: &str) {
        let config = Self::config(self.folder.path(), listen, sites);
        std::fs::write(self.path("new.toml"), config).unwrap();
        std::fs::rename(self.path("new.toml"), self.path("vestibule.toml")).unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the edge does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The processor time that it has used so far, in clock ticks (a hundred a second).
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Its resident memory, in bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// The open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<_> = log.lines().rev().take(100).collect();
            eprintln!("--- the last that the edge said:");
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!self.log().contains(SECRET), "a secret is in the log:\n{}", self.log());
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    command.env_clear().env("RUST_BACKTRACE", "0").args(["--config", folder.join("vestibule.toml").to_str().unwrap()]);
    command
}

/// The program without a configuration of its own.
pub fn program(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vestibule")).args(arguments).output().unwrap()
}
