//! The YAML that wires a `MediaMTX` server to Onair, and the file that its hooks' `curl` reads.
//!
//! Invariants:
//! - Pure: the same wiring gives the same text.
//! - A [`Wiring`] is only what `MediaMTX` reads as it was meant: [`Wiring::new`] refuses everything else, whoever asks.
//! - The password stands in two files and in no command line, which every local user could read.
//! - Hooks name the path and the source, never `MTX_QUERY`, which may hold a stream key.

use url::{Host, Url};

use super::wiring::{AUTH_PATH, PUBLISH_HOOK_PATH, UNPUBLISH_HOOK_PATH};
use crate::{domain::NodeName, node_credentials::NodePassword};

/// Where the hooks' `curl` finds its credentials unless something else is wanted.
pub const CURL_CONFIG_PATH: &str = "/etc/mediamtx/onair.curlrc";

/// Where `MediaMTX`'s control API listens unless something else is wanted.
const API_PORT: u16 = 9997;

/// How one node is wired to Onair: what can stand in its configuration and in its hooks, and nothing else.
#[derive(Debug, Clone)]
pub struct Wiring<'a>(WiringParts<'a>);

/// What a wiring is made of.
#[derive(Debug, Clone)]
pub struct WiringParts<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// Its password.
    pub password: &'a NodePassword,
    /// How the node reaches Onair: `http` or `https` and a host, without user, password, query and fragment.
    pub onair_url: &'a Url,
    /// What the node's control API listens on, such as `:9997` or `127.0.0.1:9997`: see [`api_address`].
    pub api_address: &'a str,
    /// Whether the node tells of publishers by hooks.
    pub hooks: Hooks<'a>,
}

/// Whether a node tells of publishers by hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks<'a> {
    /// By `curl`, which reads its credentials from a file of this name. Onair knows within milliseconds.
    Curl {
        /// The file's name, without white space, quotes and `$`.
        config_path: &'a str,
    },
    /// Not at all, for an image without `curl`. Onair knows from its next poll.
    None,
}

/// Why a node cannot be wired so. It repeats nothing of what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WiringError {
    /// The address of Onair would not reach it, or not as it stands in a hook.
    #[error("the address of Onair must be like http://onair.example.org:8080, without user, quotes, '$', '?' and '#'")]
    OnairUrl,
    /// What the control API listens on is no address.
    #[error("what the control API listens on must be like :9997 or 127.0.0.1:9997, without spaces, quotes and '$'")]
    ApiAddress,
    /// The hooks could not name the file of their credentials.
    #[error("the hooks' file must have a name without spaces, quotes and '$': MediaMTX would change it")]
    CurlConfigPath,
}

/// True where a text can stand in a hook's command as it is: `MediaMTX` starts hooks without a shell, parts them at white
/// space, reads quotes and backslashes, and then expands every `$`, even between single quotes.
fn is_hook_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-:%[]@+~,=".contains(&byte))
}

fn is_service_url(url: &Url) -> bool {
    let names_a_user = !url.username().is_empty() || url.password().is_some();
    matches!(url.scheme(), "http" | "https") && url.has_host() && !names_a_user && is_hook_word(url.as_str())
}

/// The address of an endpoint of ours, below whatever path the service has.
pub(super) fn endpoint(service_url: &Url, path: &str) -> Url {
    let mut url = service_url.clone();
    url.set_path(&format!("{}{path}", service_url.path().trim_end_matches('/')));
    url
}

/// What a node's control API has to listen on to be found at `control_url`: this machine alone where that leads to this
/// machine, else every address, such as `:9997`. The port is the one that is written there, and `MediaMTX`'s own where none is
/// (or the scheme's, which a URL does not keep): `https://edge-1.example.org` leads to a proxy, and the node is behind it.
#[must_use]
pub fn api_address(control_url: &Url) -> String {
    let port = control_url.port().unwrap_or(API_PORT);
    match control_url.host() {
        Some(Host::Ipv4(ip)) if ip.is_loopback() => format!("{ip}:{port}"),
        Some(Host::Ipv6(ip)) if ip.is_loopback() => format!("[{ip}]:{port}"),
        Some(Host::Domain("localhost")) => format!("127.0.0.1:{port}"),
        Some(Host::Ipv4(_) | Host::Ipv6(_) | Host::Domain(_)) | None => format!(":{port}"),
    }
}

/// What a node's control API listens on where nobody has said how Onair reaches it.
#[must_use]
pub fn usual_api_address() -> String {
    format!(":{API_PORT}")
}

impl<'a> Wiring<'a> {
    /// Checks that all of it can stand in a node's configuration as it is.
    ///
    /// # Errors
    /// With the first part that cannot.
    pub fn new(parts: WiringParts<'a>) -> Result<Self, WiringError> {
        if !is_service_url(parts.onair_url) {
            return Err(WiringError::OnairUrl);
        }
        if !is_hook_word(parts.api_address) {
            return Err(WiringError::ApiAddress);
        }
        match parts.hooks {
            Hooks::Curl { config_path } if !is_hook_word(config_path) => Err(WiringError::CurlConfigPath),
            Hooks::Curl { .. } | Hooks::None => Ok(Self(parts)),
        }
    }

    /// What stands as `authHTTPAddress`: it holds the node's credentials, which `MediaMTX` sends as HTTP Basic.
    #[must_use]
    pub fn auth_address(&self) -> Url {
        let mut url = endpoint(self.0.onair_url, AUTH_PATH);
        // They fail only for a URL without a host, which is no wiring.
        let _ = url.set_username(self.0.node.as_str());
        let _ = url.set_password(Some(self.0.password.reveal()));
        url
    }

    /// The file that the hooks' `curl` reads with `-K`.
    #[must_use]
    pub fn curl_config(&self) -> String {
        format!("user = \"{}:{}\"\n", self.0.node, self.0.password.reveal())
    }

    /// What belongs into the node's `mediamtx.yml`.
    #[must_use]
    pub fn yaml(&self) -> String {
        let WiringParts { node, api_address, hooks, .. } = &self.0;
        let auth_address = self.auth_address();
        let hooks = match hooks {
            Hooks::Curl { config_path } => self.hooks_yaml(config_path),
            Hooks::None => {
                "  # No hooks: Onair sees publishers come and go when it asks the control API, once a second.\n"
                    .to_owned()
            }
        };
        format!(
            "\
# MediaMTX's part of Onair for the node {node}. It holds the node's password: chmod 600.

# Every publisher and reader is asked about at Onair. The password is sent as HTTP Basic.
authMethod: http
authHTTPAddress: \"{auth_address}\"
# Nothing is let past: what is excluded here is open to everybody.
authHTTPExclude: []

# Onair asks this API what is on air, and takes publishers off air through it. Only Onair has to reach it.
api: yes
apiAddress: \"{api_address}\"

# RTSP's digest hides the key from Onair, so that it could not be checked.
rtspAuthMethods: [basic]

pathDefaults:
  # Onair decides which of two publishers wins; MediaMTX then must not keep the old one.
  overridePublisher: yes
{hooks}
paths:
  all_others:
"
        )
    }

    fn hooks_yaml(&self, config_path: &str) -> String {
        let command = |hook: &str| {
            let address = endpoint(self.0.onair_url, hook);
            format!(
                "curl -fsS -o /dev/null -K {config_path} --max-time 5 --retry 2 --retry-connrefused
    -d path=$MTX_PATH -d source_type=$MTX_SOURCE_TYPE -d source_id=$MTX_SOURCE_ID
    {address}"
            )
        };
        format!(
            "  # A publisher came online, or went offline. Before v1.19.3 they are called runOnReady and runOnNotReady.
  # The file {config_path} holds the credentials (mode 600, owned by MediaMTX's user).
  runOnOnline: >-
    {}
  runOnOffline: >-
    {}
",
            command(PUBLISH_HOOK_PATH),
            command(UNPUBLISH_HOOK_PATH)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ConfigSecret, node_credentials::NodeCredentials};

    /// The node secret of the tests, and one of its nodes.
    fn node_and_password() -> (NodeName, NodePassword) {
        let node = "edge-1".parse().unwrap();
        let secret = ConfigSecret::new("node-secret-node-secret-node-secret");
        let password = NodeCredentials::new(&[secret]).unwrap().password(&node);
        (node, password)
    }

    fn made(onair_url: &str, api_address: &str, hooks: Hooks<'_>) -> Result<(), WiringError> {
        let (node, password) = node_and_password();
        let onair_url = onair_url.parse().unwrap();
        let parts = WiringParts { node: &node, password: &password, onair_url: &onair_url, api_address, hooks };
        Wiring::new(parts).map(drop)
    }

    fn with_wiring<T>(onair_url: &str, hooks: Hooks<'_>, look: impl FnOnce(&Wiring<'_>, &NodePassword) -> T) -> T {
        let (node, password) = node_and_password();
        let onair_url = onair_url.parse().unwrap();
        let api_address = ":9997";
        let parts = WiringParts { node: &node, password: &password, onair_url: &onair_url, api_address, hooks };
        look(&Wiring::new(parts).unwrap(), &password)
    }

    const ONAIR: &str = "http://onair.example.org:8080";
    const HOOKS: Hooks<'_> = Hooks::Curl { config_path: CURL_CONFIG_PATH };

    #[test]
    fn the_auth_address_carries_the_nodes_credentials() {
        with_wiring(ONAIR, HOOKS, |wiring, password| {
            let expected = format!("http://edge-1:{}@onair.example.org:8080/v1/mediamtx/auth", password.reveal());
            assert_eq!(wiring.auth_address().as_str(), expected);
            assert!(wiring.yaml().contains(&format!("authHTTPAddress: \"{expected}\"\n")));
        });
    }

    #[test]
    fn a_service_below_a_path_is_reached_there() {
        with_wiring("https://example.org/onair/", HOOKS, |wiring, _| {
            assert!(wiring.auth_address().as_str().ends_with("@example.org/onair/v1/mediamtx/auth"));
            assert!(wiring.yaml().contains("https://example.org/onair/v1/hooks/publish\n"));
            assert!(wiring.yaml().contains("https://example.org/onair/v1/hooks/unpublish\n"));
        });
    }

    #[test]
    fn the_password_is_in_no_command_line_and_no_hook_names_the_query() {
        with_wiring(ONAIR, HOOKS, |wiring, password| {
            let yaml = wiring.yaml();
            let hooks = yaml.split_once("runOnOnline").unwrap().1;
            assert!(!hooks.contains(password.reveal()));
            assert!(!yaml.contains("MTX_QUERY"));
            assert_eq!(wiring.curl_config(), format!("user = \"edge-1:{}\"\n", password.reveal()));
        });
    }

    #[test]
    fn without_hooks_there_is_no_command() {
        with_wiring(ONAIR, Hooks::None, |wiring, _| assert!(!wiring.yaml().contains("curl")));
    }

    #[test]
    fn a_wiring_is_only_what_mediamtx_leaves_as_it_is() {
        assert_eq!(made(ONAIR, "127.0.0.1:9997", HOOKS), Ok(()));
        assert_eq!(made("http://[::1]:8080/below/a/path", "[::1]:9997", Hooks::None), Ok(()));
        let urls = [
            "http://onair:8080/a$HOME",
            "http://onair$HOME:8080",
            "http://onair/it's",
            "http://onair/?a=b",
            "http://onair/#a",
            "http://ada:secret@onair",
            "http://ada@onair",
            "ftp://onair",
            "mailto:ada@onair",
        ];
        for url in urls {
            assert_eq!(made(url, ":9997", Hooks::None), Err(WiringError::OnairUrl), "{url}");
        }
        for bad in ["", "a b", "a$HOME", "a'b", "a\"b", "a\\b", "a\nb"] {
            assert_eq!(made(ONAIR, bad, HOOKS), Err(WiringError::ApiAddress), "{bad:?}");
            let hooks = Hooks::Curl { config_path: bad };
            assert_eq!(made(ONAIR, ":9997", hooks), Err(WiringError::CurlConfigPath), "{bad:?}");
        }
    }

    #[test]
    fn the_control_api_listens_where_it_is_looked_for() {
        for (control_url, expected) in [
            ("http://edge-1.internal:9997", ":9997"),
            ("http://10.0.0.1:10997", ":10997"),
            ("https://edge-1.example.org", ":9997"),
            ("https://edge-1.example.org/behind/a/proxy", ":9997"),
            ("https://edge-1.example.org:8443", ":8443"),
            ("http://127.0.0.1:9997", "127.0.0.1:9997"),
            ("http://127.0.0.2", "127.0.0.2:9997"),
            ("http://localhost:10997", "127.0.0.1:10997"),
            ("http://[::1]:9997", "[::1]:9997"),
            ("http://[2001:db8::1]:9997", ":9997"),
        ] {
            assert_eq!(api_address(&control_url.parse().unwrap()), expected, "{control_url}");
        }
        assert_eq!(usual_api_address(), ":9997");
    }
}
