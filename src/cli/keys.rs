//! `onair keys`: stream keys from the command line. A client of the same API that everybody else uses.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::api::{Api, ApiOptions};
use crate::domain::{BroadcasterId, KeyId, KeyStatus, OnConflict, Playback, StreamPath};

/// How many keys are asked for at once.
const PAGE_ITEMS: &str = "100";

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    api: ApiOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a key; the answer holds its secret, this once
    Create(Create),
    /// List keys, the newest first
    List(List),
    /// Make a key useless for ever, and take its stream off air
    Revoke(One),
    /// Switch a key off, and take its stream off air
    Disable(One),
    /// Switch a key on again
    Enable(One),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The broadcaster that it is for
    #[arg(long, value_name = "ID")]
    broadcaster: Option<BroadcasterId>,
    /// Or the name of a new broadcaster
    #[arg(long, value_name = "NAME")]
    broadcaster_name: Option<String>,
}

#[derive(Args)]
struct Create {
    #[command(flatten)]
    whose: Whose,
    /// The path it admits to, such as live/ada; made up where it is not given
    #[arg(long)]
    path: Option<StreamPath>,
    /// A name for you
    #[arg(long)]
    label: Option<String>,
    /// Title of its streams
    #[arg(long)]
    title: Option<String>,
    /// Description of its streams
    #[arg(long)]
    description: Option<String>,
    /// When it stops admitting, such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// What happens when a second publisher comes: reject or `take_over`
    #[arg(long, value_name = "WORD")]
    on_conflict: Option<OnConflict>,
    /// Who may watch: public or private
    #[arg(long, value_name = "WORD")]
    playback: Option<Playback>,
}

#[derive(Args)]
struct List {
    /// active, disabled, revoked or expired
    #[arg(long)]
    status: Option<KeyStatus>,
    /// Those of this broadcaster
    #[arg(long, value_name = "ID")]
    broadcaster: Option<BroadcasterId>,
    /// Those for this path
    #[arg(long)]
    path: Option<StreamPath>,
    /// As JSON, one key a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct One {
    /// The key's id, not its secret
    id: KeyId,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let api = Api::new(&options.api)?;
    match options.command {
        Command::Create(create) => print_whole(&create.run(&api).await?),
        Command::List(list) => list.run(&api).await,
        Command::Revoke(one) => print_whole(&one.post(&api, "revoke").await?),
        Command::Disable(one) => print_whole(&one.post(&api, "disable").await?),
        Command::Enable(one) => print_whole(&one.post(&api, "enable").await?),
    }
}

impl One {
    async fn post(&self, api: &Api, verb: &str) -> anyhow::Result<Value> {
        api.post(&format!("/v1/stream-keys/{}/{verb}", self.id), None).await
    }
}

impl Create {
    async fn run(self, api: &Api) -> anyhow::Result<Value> {
        api.post("/v1/stream-keys", Some(&self.body())).await
    }

    /// Only what was given: the API knows the defaults.
    fn body(self) -> Value {
        let fields = [
            ("broadcaster_id", self.whose.broadcaster.map(|id| id.to_string())),
            ("broadcaster_name", self.whose.broadcaster_name),
            ("path", self.path.map(|path| path.to_string())),
            ("label", self.label),
            ("title", self.title),
            ("description", self.description),
            ("expires_at", self.expires_at),
            ("on_conflict", self.on_conflict.map(|word| word.to_string())),
            ("playback", self.playback.map(|word| word.to_string())),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::String(value?))));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

impl List {
    async fn run(self, api: &Api) -> anyhow::Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let is_first = cursor.is_none();
            let page = api.get("/v1/stream-keys", &self.query(cursor)).await?;
            if is_first && !self.json {
                println!("{:<36}  {:<8}  {:<6}  {:<28}  LABEL", "ID", "STATUS", "IN USE", "PATH");
            }
            for key in page["items"].as_array().context("the answer holds no items")? {
                println!("{}", if self.json { key.to_string() } else { row(key) });
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    fn query(&self, cursor: Option<String>) -> Vec<(&'static str, String)> {
        let fields = [
            ("limit", Some(PAGE_ITEMS.to_owned())),
            ("status", self.status.map(|status| status.to_string())),
            ("broadcaster_id", self.broadcaster.map(|id| id.to_string())),
            ("path", self.path.as_ref().map(ToString::to_string)),
            ("cursor", cursor),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn row(key: &Value) -> String {
    let text = |name: &str| key[name].as_str().unwrap_or("-");
    let in_use = match key["in_use"].as_bool() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    format!("{:<36}  {:<8}  {in_use:<6}  {:<28}  {}", text("id"), text("status"), text("path"), text("label"))
}

fn print_whole(answer: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        let create = Create {
            whose: Whose { broadcaster: None, broadcaster_name: Some("Ada".to_owned()) },
            path: Some("live/ada".parse().unwrap()),
            label: None,
            title: None,
            description: None,
            expires_at: None,
            on_conflict: Some(OnConflict::TakeOver),
            playback: None,
        };
        let expected = json!({"broadcaster_name": "Ada", "path": "live/ada", "on_conflict": "take_over"});
        assert_eq!(create.body(), expected);
    }

    #[test]
    fn a_row_shows_what_tells_keys_apart() {
        let row = row(&json!({"id": "i", "status": "active", "in_use": true, "path": "live/ada", "label": null}));
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["i", "active", "yes", "live/ada", "-"]);
    }
}
