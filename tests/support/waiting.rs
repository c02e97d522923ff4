//! What a test waits for, as the frontend would see it come about.

use serde_json::Value;

use super::{stack::Replica, stores::until};

impl Replica {
    /// The stream on a path, once it is live.
    pub async fn until_live(&self, path: &str) -> Value {
        let mut found = Value::Null;
        until(&format!("{path} is live"), async || {
            found = self.stream_on(path).await.unwrap_or_default();
            found["state"] == "live"
        })
        .await;
        found
    }

    /// Returns when nothing holds a path.
    pub async fn until_off_air(&self, path: &str) {
        until(&format!("{path} is off air"), async || self.stream_on(path).await.is_none()).await;
    }

    /// The stream of this id, once it is in the history as ended.
    pub async fn until_recorded(&self, id: &str) -> Value {
        let mut found = Value::Null;
        until(&format!("{id} is in the history"), async || {
            let ended = self.api.get("/v1/streams?state=ended&limit=1000").await.expect(200);
            let mut items = ended.json["items"].as_array().expect("a list").iter();
            found = items.find(|stream| stream["id"] == id).cloned().unwrap_or_default();
            !found.is_null()
        })
        .await;
        found
    }

    /// All streams that have ended, once there are so many.
    pub async fn until_recorded_all(&self, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        until(&format!("{count} streams are in the history"), async || {
            let ended = self.api.get("/v1/streams?state=ended&limit=1000").await.expect(200);
            found.clone_from(ended.json["items"].as_array().expect("a list"));
            found.len() == count
        })
        .await;
        found
    }

    /// Everything about a stream.
    pub async fn details(&self, id: &str) -> Value {
        self.api.get(&format!("/v1/streams/{id}")).await.expect(200).json
    }
}

/// The id of a stream in an answer.
#[track_caller]
pub fn id_of(stream: &Value) -> String {
    stream["id"].as_str().unwrap_or_else(|| panic!("no stream: {stream}")).to_owned()
}
