//! The composition and the image, as far as they can be held without a container engine: everything that they name exists
//! and fits the rest.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use onair::{config::ConfigSecret, domain::NodeName, node_credentials::NodeCredentials};
use serde_json::Value;
use support::files::{items, json, members, path, stems, str_of, text, yaml};
use tempfile::TempDir;
use url::Url;

const ONAIR: &str = env!("CARGO_BIN_EXE_onair");

/// Where MediaMTX listens unless it is told otherwise, by the word of `public_urls`.
const MEDIA_PORTS: [(&str, u16); 5] = [("rtmp", 1935), ("rtsp", 8554), ("hls", 8888), ("webrtc", 8889), ("srt", 8890)];

fn composition() -> Value {
    yaml("docker-compose.yml")
}

/// `scripts/compose-secrets`, run in a directory of the test's own.
struct Made {
    directory: TempDir,
}

impl Made {
    fn now() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("scripts")).expect("a directory");
        fs::copy(path("scripts/compose-secrets"), directory.path().join("scripts/compose-secrets")).expect("a copy");
        let made = Self { directory };
        made.make();
        made
    }

    fn make(&self) {
        // Through the shell: a file that was written a moment ago may still be open in a child of another test.
        let mut command = Command::new("bash");
        let output = command.arg(self.path("scripts/compose-secrets")).env("ONAIR", ONAIR).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Who may do what with a file.
    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("it is there").permissions().mode() & 0o777
    }

    /// Every secret file with its text.
    fn secrets(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.path(".compose")).expect("it is there");
        let names = entries.map(|entry| entry.expect("it can be listed").file_name().into_string().expect("a name"));
        names.map(|name| (name.clone(), self.text(&format!(".compose/{name}")))).collect()
    }
}

/// `${NAME:-default}` and `${NAME:?advice}` in a text: the name, and what stands behind it.
fn variables(text: &str) -> Vec<(&str, &str)> {
    let inside = text.split("${").skip(1).map(|rest| rest.split_once('}').expect("it is closed").0);
    inside.map(|inside| inside.split_once(':').unwrap_or((inside, ""))).collect()
}

/// The text with the defaults of its variables.
fn with_defaults(text: &str) -> String {
    variables(text).iter().fold(text.to_owned(), |text, (name, rest)| {
        text.replace(&format!("${{{name}:{rest}}}"), rest.trim_start_matches('-'))
    })
}

/// The names of the secrets that a service is given.
fn secrets_of(service: &Value) -> BTreeSet<&str> {
    let name = |secret| if Value::is_string(secret) { secret } else { &secret["source"] };
    items(&service["secrets"]).iter().map(name).map(str_of).collect()
}

/// Published ports of a service: outside and inside.
fn ports_of(service: &Value) -> BTreeMap<u16, u16> {
    let number = |text: &str| text.split('/').next().unwrap_or_default().parse().expect("a port");
    let ports = items(&service["ports"]).iter().map(|port| with_defaults(str_of(port)));
    let pair = |port: String| {
        let mut from_the_end = port.rsplit(':').map(number);
        let inside = from_the_end.next().expect("a port inside");
        (from_the_end.next().expect("a port outside"), inside)
    };
    ports.map(pair).collect()
}

fn environment_of(service: &Value) -> BTreeMap<String, String> {
    let values = members(&service["environment"]);
    values.map(|(name, value)| (name.to_owned(), with_defaults(str_of(value)))).collect()
}

/// The nodes as the composition tells Onair of them.
fn nodes() -> Vec<Value> {
    let environment = environment_of(&composition()["services"]["onair"]);
    items(&serde_json::from_str(&environment["ONAIR_NODES"]).expect("JSON")).to_vec()
}

#[test]
fn the_composition_names_what_exists() {
    let (composition, made) = (composition(), Made::now());
    let services = &composition["services"];
    for (name, service) in members(services) {
        for volume in items(&service["volumes"]) {
            let (source, _) = str_of(volume).split_once(':').expect("source and target");
            let is_there =
                source.strip_prefix("./").map_or(!composition["volumes"][source].is_null(), |file| path(file).exists());
            assert!(is_there, "{name}: {source}");
        }
        for network in items(&service["networks"]) {
            assert!(!composition["networks"][str_of(network)].is_null(), "{name}: {network}");
        }
        for (other, dependency) in members(&service["depends_on"]) {
            let is_watched = !services[other]["healthcheck"].is_null() || services[other]["build"] == ".";
            assert!(services[other].is_object(), "{name}: {other}");
            assert!(dependency["condition"] != "service_healthy" || is_watched, "{name} waits for {other} in vain");
        }
    }
    let declared: BTreeSet<_> = members(&composition["secrets"]).map(|(name, _)| name).collect();
    let used: BTreeSet<_> = members(services).flat_map(|(_, service)| secrets_of(service)).collect();
    assert_eq!(declared, used);
    for (name, secret) in members(&composition["secrets"]) {
        assert!(made.path(str_of(&secret["file"])).exists(), "{name}: the script does not make it");
    }
}

/// `docker-compose` needs no container engine to read a file, to put the variables in, and to hold it to the schema.
#[test]
fn docker_compose_takes_the_composition() {
    let made = Made::now();
    fs::copy(path("docker-compose.yml"), made.path("docker-compose.yml")).expect("a copy");
    let config = |arguments: &[&str]| {
        let mut command = Command::new("docker-compose");
        let output = command.current_dir(made.directory.path()).arg("config").args(arguments).output();
        output.expect("scripts/bootstrap installs it")
    };
    let output = config(&["--services"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let composition = composition();
    assert_eq!(told, members(&composition["services"]).map(|(name, _)| name.to_owned()).collect());
    let misspelt = text("docker-compose.yml").replacen("    image:", "    imgae:", 1);
    fs::write(made.path("docker-compose.yml"), misspelt).expect("it is written");
    assert!(!config(&["--quiet"]).status.success(), "it takes anything");
}

#[test]
fn every_variable_of_the_composition_has_a_default_or_is_made() {
    let (text, env) = (text("docker-compose.yml"), Made::now().text(".env"));
    for (name, rest) in variables(&text) {
        let is_made = env.lines().any(|line| line.starts_with(&format!("{name}=")));
        assert!(rest.starts_with('-') || rest.starts_with("?run scripts/compose-secrets") && is_made, "{name}");
    }
}

#[test]
fn ports_outside_are_used_once_and_only_media_is_open_to_others() {
    let mut taken = BTreeSet::new();
    for (name, service) in members(&composition()["services"]) {
        for (outside, _) in ports_of(service) {
            assert!(taken.insert(outside), "{name}: {outside} is taken");
        }
        for port in items(&service["ports"]) {
            assert!(str_of(port).starts_with("127.0.0.1:") || name.starts_with("edge-"), "{name}: {port}");
        }
    }
}

#[test]
fn secrets_are_for_their_owner_alone_and_are_kept() {
    let made = Made::now();
    let before = made.secrets();
    for name in before.keys() {
        assert_eq!(made.mode(&format!(".compose/{name}")), 0o600, "{name}");
    }
    assert_eq!(made.mode(".compose"), 0o700);
    made.make();
    assert_eq!(made.secrets(), before);
    let other = Made::now().secrets();
    for (name, secret) in &before {
        assert_ne!(*secret, other[name], "{name} is the same everywhere");
    }
    let ignored = text(".gitignore");
    assert!(ignored.lines().any(|line| line == "/.compose") && ignored.lines().any(|line| line == "/.env"));
}

#[test]
fn onair_accepts_what_the_composition_sets() {
    let made = Made::now();
    for (name, service) in members(&composition()["services"]).filter(|(_, service)| service["image"] == "onair") {
        let mut command = Command::new(ONAIR);
        command.args(["serve", "--check"]).env_clear();
        let given = secrets_of(service);
        for (variable, value) in environment_of(service) {
            let secret = value.strip_prefix("/run/secrets/");
            assert!(secret.is_none_or(|secret| given.contains(secret)), "{name}: {value} is not given to it");
            let file = secret.map(|secret| made.path(&format!(".compose/{secret}")).display().to_string());
            command.env(variable, file.unwrap_or(value));
        }
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("2 node(s)"), "{name}: {said}");
    }
}

#[test]
fn the_stores_are_reached_where_they_are() {
    let (composition, made) = (composition(), Made::now());
    let services = &composition["services"];
    let secrets = made.secrets();
    let url = |name: &str| -> Url { secrets[name].trim_end().parse().expect("a URL") };
    let (redis, postgres) = (url("redis_url"), url("postgres_url"));
    assert_eq!((redis.host_str(), redis.port()), (Some("redis"), Some(6379)));
    assert_eq!(secrets["redis_conf"].trim_end(), format!("requirepass {}", redis.password().expect("a password")));
    assert_eq!((postgres.host_str(), postgres.port()), (Some("postgres"), Some(5432)));
    assert_eq!(Some(secrets["postgres_password"].trim_end()), postgres.password());
    let environment = environment_of(&services["postgres"]);
    assert_eq!(environment["POSTGRES_USER"], postgres.username());
    assert_eq!(format!("/{}", environment["POSTGRES_DB"]), postgres.path());
    for store in ["redis", "postgres"] {
        let networks: Vec<_> = items(&services[store]["networks"]).iter().map(str_of).collect();
        assert_eq!(networks, ["stores"], "{store}");
    }
    assert_eq!(composition["networks"]["stores"]["internal"], true);
    assert!(items(&services["redis"]["command"]).iter().any(|word| word == "noeviction"));
}

#[test]
fn those_who_talk_to_one_another_have_a_network_in_common() {
    let composition = composition();
    let networks = |service: &str| -> BTreeSet<String> {
        let names = items(&composition["services"][service]["networks"]).iter().map(str_of);
        names.map(str::to_owned).collect()
    };
    for (one, other) in [
        ("onair", "redis"),
        ("onair", "postgres"),
        ("onair", "edge-1"),
        ("onair", "edge-2"),
        ("migrate", "postgres"),
        ("prometheus", "onair"),
        ("grafana", "prometheus"),
    ] {
        assert!(!networks(one).is_disjoint(&networks(other)), "{one} and {other}");
    }
}

/// Where Redis is full before the history's limit is reached, nothing can be written at all, and what the limit does never happens.
#[test]
fn redis_has_room_for_a_history_that_is_as_late_as_it_may_be() {
    // As docs/failures.md measured it.
    const ENTRY_BYTES: u64 = 700;
    let redis = composition()["services"]["redis"]["command"].clone();
    let words: Vec<&str> = redis.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let place = words.iter().position(|word| *word == "--maxmemory").expect("it has a limit");
    let gigabytes: u64 = words[place + 1].strip_suffix("gb").expect("in gigabytes").parse().unwrap();
    let backlog = onair::config::Config::default().history.backlog_entries_max * ENTRY_BYTES;
    assert!(backlog * 10 < (gigabytes << 30) * 8, "{backlog} bytes of history alone, of {gigabytes} GB");
}

#[test]
fn each_node_asks_onair_with_its_own_password_and_is_asked_where_it_listens() {
    let (composition, made) = (composition(), Made::now());
    let secret = ConfigSecret::new(made.text(".compose/node_secrets").trim_end());
    let credentials = NodeCredentials::new(&[secret]).expect("there is a secret");
    let listen = environment_of(&composition["services"]["onair"])["ONAIR_SERVER_LISTEN"].clone();
    assert_eq!(nodes().len(), 2);
    for node in nodes() {
        let name = str_of(&node["name"]);
        let service = &composition["services"][name];
        assert_eq!(service["secrets"], serde_json::json!([{"source": name, "target": "/mediamtx.yml"}]));
        let file = str_of(&composition["secrets"][name]["file"]);
        let wiring: Value = serde_saphyr::from_str(&made.text(file)).expect("YAML");

        let address: Url = str_of(&wiring["authHTTPAddress"]).parse().expect("a URL");
        let password = address.password().expect("a password");
        let expected: NodeName = name.parse().expect("a node name");
        assert_eq!(credentials.verify_password(address.username(), password), Some(expected));
        assert_eq!(address.host_str(), Some("onair"));
        assert!(listen.ends_with(&format!(":{}", address.port().expect("a port"))), "{listen}");
        let control: Url = str_of(&node["control_url"]).parse().expect("a URL");
        assert_eq!(control.host_str(), Some(name));
        assert_eq!(str_of(&wiring["apiAddress"]), format!(":{}", control.port().expect("a port")));
        assert!(!wiring.to_string().contains("curl"), "the image has none");

        let ports = ports_of(service);
        for (word, inside) in MEDIA_PORTS {
            let public: Url = str_of(&node["public_urls"][word]).parse().expect("a URL");
            assert_eq!(ports.get(&public.port().expect("a port")), Some(&inside), "{name}: {word}");
        }
        let webrtc = environment_of(service)
            .get("MTX_WEBRTCLOCALUDPADDRESS")
            .map_or(8189, |address| address.trim_start_matches(':').parse().expect("a port"));
        assert_eq!(ports.get(&webrtc), Some(&webrtc), "{name}: browsers are told the port inside");
    }
}

#[test]
fn prometheus_and_grafana_find_what_they_are_for() {
    let composition = composition();
    let services = &composition["services"];
    let mount = |service: &str, source: &str| {
        let mut volumes = items(&services[service]["volumes"]).iter().map(str_of);
        let target = volumes.find_map(|volume| volume.strip_prefix(source)?.strip_prefix(':'));
        target.unwrap_or_else(|| panic!("{service} has no {source}")).trim_end_matches(":ro").to_owned()
    };
    let configuration = yaml("grafana/prometheus/prometheus.yml");
    let job = &configuration["scrape_configs"][0];
    assert_eq!((&job["job_name"], &job["dns_sd_configs"][0]["names"][0]), (&"onair".into(), &"onair".into()));
    let listen = environment_of(&services["onair"])["ONAIR_SERVER_LISTEN"].clone();
    assert!(listen.ends_with(&format!(":{}", job["dns_sd_configs"][0]["port"])), "{listen}");
    for file in items(&configuration["rule_files"]) {
        assert!(path("grafana/prometheus").join(str_of(file)).exists(), "{file}");
    }
    let option = format!("--config.file={}/prometheus.yml", mount("prometheus", "./grafana/prometheus"));
    assert!(items(&services["prometheus"]["command"]).contains(&option.into()));

    let datasource = &yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0];
    let url: Url = str_of(&datasource["url"]).parse().expect("a URL");
    let port = ports_of(&services["prometheus"]).into_values().next();
    assert_eq!((url.host_str(), url.port()), (Some("prometheus"), port));
    assert_eq!(datasource["jsonData"]["timeInterval"], configuration["global"]["scrape_interval"]);
    for name in stems("grafana/dashboards", ".json") {
        let board = json(&format!("grafana/dashboards/{name}.json"));
        assert_eq!(board["templating"]["list"][0]["current"]["value"], datasource["uid"], "{name}");
    }
    let provider = &yaml("grafana/provisioning/dashboards/onair.yml")["providers"][0];
    let dashboards = mount("grafana", "./grafana/dashboards");
    assert_eq!(provider["options"]["path"], dashboards.as_str());
    assert_eq!(mount("grafana", "./grafana/provisioning"), "/etc/grafana/provisioning");
    let home = environment_of(&services["grafana"])["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].clone();
    let home = home.strip_prefix(&dashboards).expect("one of ours").to_owned();
    assert!(path(&format!("grafana/dashboards{home}")).exists(), "{home}");
}

/// The instructions of the Dockerfile, continued lines put together.
fn instructions() -> Vec<(String, String)> {
    let joined = text("Dockerfile").replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(' '))
        .map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()))
        .collect()
}

fn arguments_of(instruction: &str) -> Vec<String> {
    instructions().into_iter().filter(|(word, _)| word == instruction).map(|(_, rest)| rest).collect()
}

#[test]
fn the_image_is_built_from_a_complete_package() {
    let directory = tempfile::tempdir().expect("a directory");
    let let_in: BTreeSet<_> =
        text(".dockerignore").lines().filter_map(|line| line.strip_prefix('!').map(str::to_owned)).collect();
    let mut copied = BTreeSet::new();
    for arguments in arguments_of("COPY").iter().filter(|arguments| !arguments.starts_with("--from")) {
        let mut sources: Vec<_> = arguments.split_whitespace().collect();
        sources.pop();
        for source in sources {
            copied.insert(source.to_owned());
            copy(&path(source), &directory.path().join(source));
        }
    }
    assert_eq!(copied, let_in);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version=1"]).current_dir(directory.path());
    let output = cargo.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, text) in sources() {
        for file in text.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let file = directory.path().join(&name).parent().expect("a directory").join(file);
            let is_of_tests = name.ends_with("tests.rs");
            assert!(is_of_tests || file.exists(), "{name} includes {}", file.display());
        }
    }
}

/// Copies a file or all of a directory.
fn copy(from: &Path, to: &Path) {
    let output = Command::new("sh")
        .args(["-c", "mkdir -p \"$(dirname \"$2\")\" && cp -R \"$1\" \"$2\"", "copy"])
        .args([from, to])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file of `src` with its name.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![path("src")];
    while let Some(next) = left.pop() {
        if next.is_dir() {
            left.extend(fs::read_dir(&next).expect("it is there").map(|entry| entry.expect("it can be listed").path()));
        } else {
            let name = next.strip_prefix(path("")).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(&next).expect("text")));
        }
    }
    found
}

#[test]
fn the_image_runs_commands_that_there_are_and_not_as_root() {
    let help = Command::new(ONAIR).arg("--help").output().expect("it runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let commands = composition()["services"]["migrate"]["command"].clone();
    let health = arguments_of("HEALTHCHECK").join(" ");
    let health =
        health.rsplit_once("\"onair\", \"").or_else(|| health.rsplit_once("/onair\", \"")).expect("a command").1;
    let default = arguments_of("CMD").join(" ");
    for command in [str_of(&commands[0]), health.trim_end_matches("\"]"), default.trim_matches(['[', ']', '"'])] {
        assert!(help.contains(&format!("\n  {command} ")), "onair {command}");
    }
    let user: u32 = arguments_of("USER")[0].split(':').next().unwrap_or_default().parse().expect("a number");
    assert_ne!(user, 0);
    assert!(text("scripts/compose-secrets").contains(&format!("owner={user}:{user}")));
    let listen = &arguments_of("ENV")[0];
    assert!(listen.ends_with(&format!(":{}", arguments_of("EXPOSE")[0])), "{listen}");
}

#[test]
fn the_image_is_built_with_a_rust_that_is_new_enough() {
    let from = &arguments_of("FROM")[0];
    let version = |text: &str| -> Vec<u32> {
        let digits =
            text.split(|letter: char| !letter.is_ascii_digit() && letter != '.').find(|part| part.contains('.'));
        digits.expect("a version").split('.').map(|number| number.parse().expect("a number")).collect()
    };
    let manifest = text("Cargo.toml");
    let needed = manifest.lines().find(|line| line.starts_with("rust-version")).expect("it is stated");
    assert!(from.starts_with("rust:") && version(from) >= version(needed), "{from}, {needed}");
}
