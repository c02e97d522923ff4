//! The commands, as somebody types them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

const API_SECRET: &str = "api-secret-api-secret-api-secret";
const NODE_SECRET: &str = "node-secret-node-secret-node-secret";

/// Two servers and a service, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

/// The program, with nothing of this environment that could change what it does.
fn onair(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onair"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn with_secrets(arguments: &[&str]) -> Command {
    let mut command = onair(arguments);
    command.env("ONAIR_SERVER_API_SECRETS", API_SECRET).env("ONAIR_SERVER_NODE_SECRETS", NODE_SECRET);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_secret_file_that_others_can_read_is_refused_once_and_with_the_command_that_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("api_secrets");
    fs::write(&file, API_SECRET).unwrap();
    let check = |mode: u32| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = onair(&["serve", "--check", "--listen", "127.0.0.1:9000"]);
        command.env("ONAIR_SERVER_API_SECRETS_FILE", &file).env("ONAIR_SERVER_NODE_SECRETS", NODE_SECRET);
        let output = command.output().unwrap();
        (output.status.success(), said(&output))
    };
    assert!(check(0o600).0 && check(0o400).0);
    for mode in [0o640, 0o604, 0o644, 0o660] {
        let (success, said) = check(mode);
        assert!(!success && said.contains(&format!("chmod 600 {}", file.display())), "{mode:o}: {said}");
        assert_eq!(said.matches("server.api_secrets").count(), 1, "reported twice: {said}");
        assert!(!said.contains(API_SECRET), "{said}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let keys = ["keys", "list", "--api-url", "http://127.0.0.1:9", "--api-secret-file", file.to_str().unwrap()];
    let output = onair(&keys).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("chmod 600"), "{}", said(&output));
}

#[test]
fn check_says_what_a_configuration_amounts_to_and_shows_no_secret() {
    let output = with_secrets(&["serve", "--check", "--listen", "127.0.0.1:9000"]).output().unwrap();
    let said = said(&output);
    assert!(output.status.success() && said.contains("listens on 127.0.0.1:9000"), "{said}");
    assert!(!said.contains(API_SECRET) && !said.contains(NODE_SECRET), "{said}");
}

#[test]
fn check_fails_with_everything_that_is_wrong() {
    let output =
        onair(&["serve", "--check"]).env("ONAIR_SERVER_LISTEN", "here").env("ONAIR_PORT", "80").output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in ["ONAIR_SERVER_LISTEN", "ONAIR_PORT", "ONAIR_SERVER_API_SECRETS", "ONAIR_SERVER_NODE_SECRETS"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn the_nodes_yaml_goes_to_standard_output_and_the_advice_elsewhere() {
    let arguments = ["mediamtx-config", "edge-1", "--public-url", "http://onair.example.org:8080"];
    let output = with_secrets(&arguments).output().unwrap();
    let yaml = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && yaml.contains("@onair.example.org:8080/v1/mediamtx/auth"), "{yaml}");
    let advice = String::from_utf8(output.stderr).unwrap();
    let again = "onair mediamtx-config edge-1 --public-url 'http://onair.example.org:8080/' --print curlrc > ";
    assert!(advice.contains(again), "{advice}");
    for (flag, bad) in [
        ("--curlrc", "/etc/with $HOME"),
        ("--api-address", "it's:9997"),
        ("--public-url", "http://onair/$HOME"),
        ("--public-url", "http://ada:secret@onair"),
    ] {
        let refused = with_secrets(&["mediamtx-config", "edge-1", flag, bad]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{flag} {bad}");
        assert!(refused.stdout.is_empty() && said(&refused).contains(flag), "{}", said(&refused));
    }
}

#[test]
fn the_nodes_api_listens_where_the_configuration_says_and_a_name_that_it_does_not_have_is_told() {
    let nodes = r#"[{"name": "here", "control_url": "http://127.0.0.1:10997"},
        {"name": "there", "control_url": "http://there.internal:11997"},
        {"name": "behind", "control_url": "https://behind.example.org"}]"#;
    let printed = |name: &str, more: &[&str]| {
        let output = with_secrets(&["mediamtx-config", name]).args(more).env("ONAIR_NODES", nodes).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for (name, address) in [("here", "127.0.0.1:10997"), ("there", ":11997"), ("behind", ":9997")] {
        let (yaml, advice) = printed(name, &[]);
        assert!(yaml.contains(&format!("apiAddress: \"{address}\"\n")), "{yaml}");
        assert!(!advice.contains("Warning"), "{advice}");
    }
    let (yaml, advice) = printed("thare", &[]);
    assert!(yaml.contains("apiAddress: \":9997\"\n"), "it may be one of the API's: {yaml}");
    assert!(advice.contains("Warning: the configuration has no node thare."), "{advice}");
    assert!(printed("there", &["--api-address", "10.0.0.1:12997"]).0.contains("apiAddress: \"10.0.0.1:12997\"\n"));
    assert!(printed("thare", &["--print", "curlrc"]).1.contains("Warning"), "its password is of no use either");
}

#[test]
fn ready_fails_where_nobody_answers_and_says_why() {
    let output = onair(&["ready", "--api-url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot be reached"), "{}", said(&output));
}

#[test]
fn mediamtx_accepts_the_yaml() {
    let Some(mediamtx) = std::env::var_os("MEDIAMTX_BIN") else {
        println!("skipped: MEDIAMTX_BIN is not set");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mediamtx.yml");
    let arguments = ["mediamtx-config", "edge-1", "--api-address", "127.0.0.1:0"];
    fs::write(&file, with_secrets(&arguments).output().unwrap().stdout).unwrap();
    let mut command = Command::new(mediamtx);
    // Only the API, so that no port of this machine is in the way.
    for server in ["RTSP", "RTMP", "HLS", "WEBRTC", "SRT", "MOQ"] {
        command.env(format!("MTX_{server}"), "no");
    }
    let mut server = command.arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<String> = lines.take_while(|line| !line.contains("[API] started")).collect();
    let is_running = server.try_wait().unwrap().is_none();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(is_running && said.iter().any(|line| line.contains("configuration loaded")), "{said:?}");
}

/// A running `onair dev`, killed when a test fails.
struct Dev {
    child: Child,
    output: Option<ChildStdout>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Dev {
    fn start(directory: &Path) -> Self {
        let mut command = onair(&["dev", "--listen", "127.0.0.1:0", "--data-dir"]);
        let mut child = command.arg(directory).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take();
        let mut dev = Self { child, output, said: Arc::default() };
        dev.wait_until_it_serves();
        dev
    }

    fn wait_until_it_serves(&mut self) {
        let mut reader = BufReader::new(self.output.take().unwrap());
        let (serves, is_serving) = mpsc::channel();
        let said = Arc::clone(&self.said);
        std::thread::spawn(move || {
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                if line.contains("Onair is running") {
                    let _ = serves.send(());
                }
                said.lock().unwrap().push(std::mem::take(&mut line));
            }
        });
        is_serving.recv_timeout(START_LIMIT).expect("onair dev serves within the limit");
    }

    /// Stopped in order, it had nothing to report.
    fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
        assert!(self.child.wait().unwrap().success());
        let said = self.said.lock().unwrap();
        let errors: Vec<_> = said.iter().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors, Vec::<&String>::new());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keys(directory: &Path, arguments: &[&str]) -> String {
    let output = onair(&["keys"]).args(arguments).arg("--data-dir").arg(directory).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "keys {arguments:?}: {said}");
    said
}

/// Nothing that was started for this data directory is left. The watchers of its servers end a moment after them.
fn assert_nothing_runs(data: &Path) {
    let began = std::time::Instant::now();
    while !processes_of(data).is_empty() && began.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    assert_eq!(processes_of(data), Vec::<String>::new());
}

/// Processes that have a file below `directory` open, or were started from there.
fn processes_of(directory: &Path) -> Vec<String> {
    let command_line = |entry: fs::DirEntry| {
        let mut text = String::new();
        fs::File::open(entry.path().join("cmdline")).ok()?.read_to_string(&mut text).ok()?;
        let works_there = fs::read_link(entry.path().join("cwd")).is_ok_and(|path| path.starts_with(directory));
        (works_there || text.contains(directory.to_str()?)).then_some(text)
    };
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(command_line).collect()
}

#[test]
fn dev_keeps_keys_and_secrets_and_leaves_nothing_running() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().canonicalize().unwrap().join("data");

    let dev = Dev::start(&data);
    let created = keys(&data, &["create", "--broadcaster-name", "Ada", "--path", "live/ada"]);
    let created: serde_json::Value = serde_json::from_str(&created).unwrap();
    let id = created["stream_key"]["id"].as_str().unwrap().to_owned();
    assert!(created["publish"][0]["rtmp"].as_str().unwrap().starts_with("rtmp://127.0.0.1:1935/live/ada?key=sk_"));
    let in_use = onair(&["dev", "--data-dir"]).arg(&data).output().unwrap();
    assert!(!in_use.status.success() && said(&in_use).contains("in use"), "{}", said(&in_use));
    // What is printed for the node that is there from the beginning is what its file has, but for the hooks' file.
    let printed = onair(&["mediamtx-config", "edge-1", "--data-dir"]).arg(&data).output().unwrap();
    assert!(printed.status.success() && !said(&printed).contains("Warning"), "{}", said(&printed));
    let of_file = fs::read_to_string(data.join("edge-1.yml")).unwrap();
    let hooks_file = data.join("edge-1.curlrc").display().to_string();
    let of_file = of_file.replace(&hooks_file, "/etc/mediamtx/onair.curlrc");
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), of_file);
    let secrets = fs::read_to_string(data.join("credentials.json")).unwrap();
    let credentials: serde_json::Value = serde_json::from_str(&secrets).unwrap();
    let ready = onair(&["ready", "--api-url", credentials["api_url"].as_str().unwrap()]).output().unwrap();
    assert!(ready.status.success() && said(&ready).contains("\"ready\""), "{}", said(&ready));
    dev.stop();
    assert_nothing_runs(&data);

    let dev = Dev::start(&data);
    assert!(keys(&data, &["list"]).contains(&id));
    assert!(keys(&data, &["revoke", &id]).contains("\"status\": \"revoked\""));
    let secret_of = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["node_secret"].clone();
    assert_eq!(secret_of(&secrets), secret_of(&fs::read_to_string(data.join("credentials.json")).unwrap()));
    dev.stop();
    assert_nothing_runs(&data);
}
