//! A real MediaMTX and real encoders, where the machine has them: on loopback, on free ports, and gone with the test.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    measured::say,
    stack::{API_SECRET, NODE_SECRET, Replica, TestKey, node_password},
    stores::until,
};

/// A port that was free a moment ago may be taken by the time it is opened.
const STARTS_MAX: u32 = 5;

/// The MediaMTX binary of this machine. Says that the test is skipped where it is not given.
pub fn binary(test: &str) -> Option<OsString> {
    let binary = std::env::var_os("MEDIAMTX_BIN");
    if binary.is_none() {
        say(&format!("skipped: {test}: MEDIAMTX_BIN does not name a MediaMTX binary"));
    }
    binary
}

/// Whether a node tells of its publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    Curl,
    None,
}

#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub rtmp: u16,
    pub rtsp: u16,
    pub srt: u16,
    pub api: u16,
}

impl Ports {
    fn free() -> Self {
        // Held together, so that they differ.
        let tcp = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        let ports = tcp.map(|listener| listener.local_addr().expect("it is bound").port());
        let srt = udp.local_addr().expect("it is bound").port();
        Self { rtmp: ports[0], rtsp: ports[1], srt, api: ports[2] }
    }
}

/// A node of the fleet, wired with what `onair mediamtx-config` prints. Killed when it is dropped.
pub struct RealMediaMtx {
    binary: OsString,
    process: Process,
    directory: TempDir,
    http: reqwest::Client,
    pub ports: Ports,
}

struct Process {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl RealMediaMtx {
    /// Starts it and adds it to the fleet.
    pub async fn start(binary: OsString, replica: &Replica, hooks: Hooks) -> Self {
        for _ in 0..STARTS_MAX {
            let (ports, directory) = (Ports::free(), tempfile::tempdir().expect("a directory"));
            configure(&directory, replica, ports, hooks);
            let Some(process) = Process::start(&binary, &directory).await else { continue };
            let urls = json!({
                "rtmp": format!("rtmp://127.0.0.1:{}", ports.rtmp),
                "rtsp": format!("rtsp://127.0.0.1:{}", ports.rtsp),
                "srt": format!("srt://127.0.0.1:{}", ports.srt),
            });
            let node = json!({"control_url": format!("http://127.0.0.1:{}", ports.api), "public_urls": urls});
            replica.api.put("/v1/nodes/edge-1", &node).await.expect(201);
            until("the node answers", async || {
                replica.api.get("/v1/nodes/edge-1").await.expect(200).json["reachable"] == true
            })
            .await;
            return Self { binary, process, directory, http: reqwest::Client::new(), ports };
        }
        panic!("MediaMTX did not start on any ports");
    }

    /// Everything that it has written.
    pub fn said(&self) -> String {
        self.process.lines().join("\n")
    }

    /// Whether MediaMTX itself says that a path is online.
    pub async fn has(&self, path: &str) -> bool {
        let asked = self.http.get(format!("http://127.0.0.1:{}/v3/paths/get/{path}", self.ports.api));
        let answer = asked.basic_auth("edge-1", Some(node_password("edge-1"))).send().await.expect("it answers");
        if answer.status().as_u16() == 404 {
            return false;
        }
        let item: Value = answer.error_for_status().expect("we may ask").json().await.expect("a path");
        item["online"] == true
    }

    /// SIGKILL: no hook fires.
    pub fn kill(&mut self) {
        end(&mut self.process.child);
    }

    /// After [`Self::kill`]: the same ports, the same configuration.
    pub async fn restart(&mut self) {
        let process = Process::start(&self.binary, &self.directory).await;
        self.process = process.expect("its ports are still free");
    }
}

fn configure(directory: &TempDir, replica: &Replica, ports: Ports, hooks: Hooks) {
    let curlrc = directory.path().join("onair.curlrc");
    let curlrc = curlrc.to_str().expect("a plain path");
    let (api_address, url) = (format!("127.0.0.1:{}", ports.api), replica.url());
    let mut arguments = vec!["--public-url", &url, "--api-address", &api_address, "--curlrc", curlrc];
    if hooks == Hooks::None {
        arguments.push("--no-hooks");
    }
    let printed = printed_config(&arguments);
    fs::write(curlrc, printed_config(&[&arguments[..], &["--print", "curlrc"]].concat())).expect("it is written");
    let Ports { rtmp, rtsp, srt, .. } = ports;
    let here = format!(
        "rtmpAddress: 127.0.0.1:{rtmp}\nrtspTransports: [tcp]\nrtspAddress: 127.0.0.1:{rtsp}\n\
         srtAddress: 127.0.0.1:{srt}\nhls: no\nwebrtc: no\nmoq: no\n"
    );
    fs::write(directory.path().join("mediamtx.yml"), format!("{here}{printed}")).expect("it is written");
}

/// What the command prints, ready to be pasted.
fn printed_config(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onair"));
    command.args(["mediamtx-config", "edge-1"]).args(arguments).env_clear();
    command.env("ONAIR_SERVER_API_SECRETS", API_SECRET).env("ONAIR_SERVER_NODE_SECRETS", NODE_SECRET);
    let output = command.output().expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

impl Process {
    /// `None` where a port is taken.
    async fn start(binary: &OsString, directory: &TempDir) -> Option<Self> {
        let mut command = Command::new(binary);
        command.arg(directory.path().join("mediamtx.yml")).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("MEDIAMTX_BIN can be started");
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (lines, output) = (Arc::clone(&said), child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let mut process = Self { child, said };
        let mut serves = false;
        until("MediaMTX serves or gives up", async || {
            serves = process.lines().iter().any(|line| line.contains("[API] started"));
            serves || process.child.try_wait().expect("it is ours").is_some()
        })
        .await;
        if !serves {
            let said = process.lines().join("\n");
            assert!(said.contains("address already in use"), "MediaMTX did not start: {said}");
        }
        serves.then_some(process)
    }

    fn lines(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An FFmpeg that publishes a picture and a sound until it is closed. Killed when it is dropped, also where it is frozen.
pub struct Encoder {
    child: Child,
}

impl Encoder {
    pub fn rtmp(ports: Ports, key: &TestKey) -> Self {
        Self::start(&["-f", "flv"], &format!("rtmp://127.0.0.1:{}/{}?key={}", ports.rtmp, key.path, key.secret))
    }

    pub fn rtsp(ports: Ports, key: &TestKey) -> Self {
        let address = format!("rtsp://broadcaster:{}@127.0.0.1:{}/{}", key.secret, ports.rtsp, key.path);
        Self::start(&["-f", "rtsp", "-rtsp_transport", "tcp"], &address)
    }

    pub fn srt(ports: Ports, key: &TestKey) -> Self {
        let stream_id = format!("publish:{}:broadcaster:{}", key.path, key.secret);
        Self::start(&["-f", "mpegts"], &format!("srt://127.0.0.1:{}?streamid={stream_id}&pkt_size=1316", ports.srt))
    }

    /// What a transcoder on the node publishes, with the node's own password.
    pub fn rendition(ports: Ports, path: &str) -> Self {
        let address = format!("rtsp://edge-1:{}@127.0.0.1:{}/{path}", node_password("edge-1"), ports.rtsp);
        Self::start(&["-f", "rtsp", "-rtsp_transport", "tcp"], &address)
    }

    fn start(format: &[&str], address: &str) -> Self {
        let inputs =
            "-hide_banner -loglevel error -re -f lavfi -i testsrc=size=160x90:rate=10 -f lavfi -i sine=frequency=440";
        let encoding = "-c:v libx264 -preset ultrafast -tune zerolatency -pix_fmt yuv420p -g 10 -c:a aac -b:a 32k";
        let mut command = Command::new("ffmpeg");
        command.args(inputs.split(' ')).args(encoding.split(' ')).args(format).arg(address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().expect("FFmpeg is installed") }
    }

    /// Power cut: the connection stays, and nothing comes any more.
    pub fn freeze(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("it can be stopped");
    }

    /// Whether it has given up by itself, or its connection was closed.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }

    /// How long it may take to notice that its connection was closed.
    pub async fn until_ended(&mut self, limit: Duration) {
        let ended = until("the encoder ends", async || self.has_ended());
        assert!(tokio::time::timeout(limit, ended).await.is_ok(), "the encoder was sent away and goes on");
    }
}

/// SIGKILL, and nothing is left of it.
fn end(child: &mut Child) {
    // It fails only for one that has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Encoder {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
