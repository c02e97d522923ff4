//! The YAML that wires a `MediaMTX` server to Onair, and the file that its hooks' `curl` reads.
//!
//! Invariants:
//! - Pure: the same wiring gives the same text.
//! - The password stands in two files and in no command line, which every local user could read.
//! - Hooks name the path and the source, never `MTX_QUERY`, which may hold a stream key.

use url::Url;

use super::credentials::NodePassword;
use crate::domain::NodeName;

/// Where the hooks' `curl` finds its credentials unless something else is wanted.
pub const CURL_CONFIG_PATH: &str = "/etc/mediamtx/onair.curlrc";

/// How one node is wired to Onair.
#[derive(Debug, Clone)]
pub struct Wiring<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// Its password.
    pub password: &'a NodePassword,
    /// How the node reaches Onair.
    pub onair_url: &'a Url,
    /// What the node's control API listens on, such as `:9997` or `127.0.0.1:9997`.
    pub api_address: &'a str,
    /// Whether the node tells of publishers by hooks.
    pub hooks: Hooks<'a>,
}

/// Whether a node tells of publishers by hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks<'a> {
    /// By `curl`, which reads its credentials from a file of this name. Onair knows within milliseconds.
    Curl {
        /// The file's name: see [`is_hook_word`].
        config_path: &'a str,
    },
    /// Not at all, for an image without `curl`. Onair knows from its next poll.
    None,
}

/// True where a text can stand in a hook's command as it is: `MediaMTX` starts hooks without a shell, parts them at white
/// space, reads quotes and backslashes, and then expands every `$`, even between single quotes.
#[must_use]
pub fn is_hook_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-:%[]@+~,=".contains(&byte))
}

impl Wiring<'_> {
    /// The address of an endpoint of ours, below whatever path the service has.
    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.onair_url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.set_path(&format!("{}{path}", self.onair_url.path().trim_end_matches('/')));
        url
    }

    /// What stands as `authHTTPAddress`: it holds the node's credentials, which `MediaMTX` sends as HTTP Basic.
    #[must_use]
    pub fn auth_address(&self) -> Url {
        let mut url = self.endpoint("/v1/mediamtx/auth");
        // They fail only for a URL without a host, and then the address could not be called either.
        let _ = url.set_username(self.node.as_str());
        let _ = url.set_password(Some(self.password.reveal()));
        url
    }

    /// The file that the hooks' `curl` reads with `-K`.
    #[must_use]
    pub fn curl_config(&self) -> String {
        format!("user = \"{}:{}\"\n", self.node, self.password.reveal())
    }

    /// What belongs into the node's `mediamtx.yml`.
    #[must_use]
    pub fn yaml(&self) -> String {
        let Self { node, api_address, .. } = self;
        let auth_address = self.auth_address();
        let hooks = match self.hooks {
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
            let address = self.endpoint(hook);
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
            command("/v1/hooks/publish"),
            command("/v1/hooks/unpublish")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ConfigSecret, nodes::credentials::NodeCredentials};

    fn with_wiring<T>(onair_url: &str, hooks: Hooks<'_>, look: impl FnOnce(Wiring<'_>) -> T) -> T {
        let node = "edge-1".parse().unwrap();
        let secret = ConfigSecret::new("node-secret-node-secret-node-secret");
        let password = NodeCredentials::new(&[secret]).unwrap().password(&node);
        let onair_url = onair_url.parse().unwrap();
        look(Wiring { node: &node, password: &password, onair_url: &onair_url, api_address: ":9997", hooks })
    }

    const HOOKS: Hooks<'_> = Hooks::Curl { config_path: CURL_CONFIG_PATH };

    #[test]
    fn the_auth_address_carries_the_nodes_credentials() {
        with_wiring("http://onair.example.org:8080", HOOKS, |wiring| {
            let password = wiring.password.reveal();
            let expected = format!("http://edge-1:{password}@onair.example.org:8080/v1/mediamtx/auth");
            assert_eq!(wiring.auth_address().as_str(), expected);
            assert!(wiring.yaml().contains(&format!("authHTTPAddress: \"{expected}\"\n")));
        });
    }

    #[test]
    fn a_service_below_a_path_is_reached_there() {
        with_wiring("https://example.org/onair/", HOOKS, |wiring| {
            assert!(wiring.auth_address().as_str().ends_with("@example.org/onair/v1/mediamtx/auth"));
            assert!(wiring.yaml().contains("https://example.org/onair/v1/hooks/publish\n"));
        });
    }

    #[test]
    fn the_password_is_in_no_command_line_and_no_hook_names_the_query() {
        with_wiring("http://onair.example.org:8080", HOOKS, |wiring| {
            let yaml = wiring.yaml();
            let hooks = yaml.split_once("runOnOnline").unwrap().1;
            assert!(!hooks.contains(wiring.password.reveal()));
            assert!(!yaml.contains("MTX_QUERY"));
            assert_eq!(wiring.curl_config(), format!("user = \"edge-1:{}\"\n", wiring.password.reveal()));
        });
    }

    #[test]
    fn without_hooks_there_is_no_command() {
        with_wiring("http://onair.example.org:8080", Hooks::None, |wiring| {
            assert!(!wiring.yaml().contains("curl"));
        });
    }

    #[test]
    fn a_hooks_word_is_one_that_mediamtx_leaves_as_it_is() {
        assert!(is_hook_word(CURL_CONFIG_PATH));
        for bad in ["", "/a b", "/a$HOME", "/a'b", "/a\"b", "/a\\b", "/a\nb"] {
            assert!(!is_hook_word(bad), "{bad:?}");
        }
    }
}
