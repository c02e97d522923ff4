//! A client of the API that holds every answer against the service's own `/openapi.json`.
//!
//! An answer whose status, media type, code or member is not documented for its operation fails the test, whatever the
//! test is about. So the document cannot drift from what is served.

mod contract;

use std::{sync::Arc, time::Duration};

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

use super::stack::TestKey;
use contract::Contract;

/// Beyond every time limit of the service.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
enum Credentials {
    None,
    Bearer(String),
    Basic(String, String),
}

/// A caller with certain credentials. Cheap to clone.
#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    base: String,
    credentials: Credentials,
    contract: Arc<Contract>,
}

/// An answer that is as the document says.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// `null` where the body is no JSON.
    pub json: Value,
}

impl ApiClient {
    /// A caller with an API secret. `base` is such as `http://127.0.0.1:8080`.
    pub async fn connect(base: &str, api_secret: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(ANSWER_LIMIT).build().expect("a client");
        let document = http.get(format!("{base}/openapi.json")).send().await.expect("the service answers");
        let document: Value = document.json().await.expect("the document is JSON");
        Self {
            http,
            base: base.to_owned(),
            credentials: Credentials::Bearer(api_secret.to_owned()),
            contract: Arc::new(Contract::new(&document)),
        }
    }

    /// The same service, called with another API secret.
    pub fn with_secret(&self, api_secret: &str) -> Self {
        Self { credentials: Credentials::Bearer(api_secret.to_owned()), ..self.clone() }
    }

    /// The same service, called as a node.
    pub fn as_node(&self, name: &str, password: &str) -> Self {
        Self { credentials: Credentials::Basic(name.to_owned(), password.to_owned()), ..self.clone() }
    }

    /// The same service, called by nobody in particular.
    pub fn anonymous(&self) -> Self {
        Self { credentials: Credentials::None, ..self.clone() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// A POST without a body.
    pub async fn act(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// A form, as `curl -d` sends it.
    pub async fn post_form(&self, path: &str, form: &str) -> Answer {
        self.post_raw(path, "application/x-www-form-urlencoded", form).await
    }

    pub async fn post_raw(&self, path: &str, media_type: &str, body: &str) -> Answer {
        self.send(self.request(Method::POST, path).header("content-type", media_type).body(body.to_owned())).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// A key for a path, of a broadcaster of its own.
    pub async fn key(&self, path: &str) -> TestKey {
        let broadcaster =
            self.post("/v1/broadcasters", &json!({"display_name": "Ada"})).await.expect(201).text_at("/id");
        let body = json!({"path": path, "broadcaster_id": broadcaster});
        let created = self.post("/v1/stream-keys", &body).await.expect(201);
        TestKey { id: created.text_at("/stream_key/id"), secret: created.text_at("/secret"), path: path.to_owned() }
    }

    /// What is on air, as the frontend sees it.
    pub async fn on_air(&self) -> Vec<Value> {
        let answer = self.get("/v1/streams?limit=1000").await.expect(200);
        answer.json["items"].as_array().expect("a list").clone()
    }

    /// A request with this caller's credentials, to be sent by [`ApiClient::send`].
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.credentials {
            Credentials::None => request,
            Credentials::Bearer(secret) => request.bearer_auth(secret),
            Credentials::Basic(name, password) => request.basic_auth(name, Some(password)),
        }
    }

    /// Sends a request, and fails where the answer is not documented.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request.build().expect("a request");
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let response = self.http.execute(request).await.expect("the service answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("the body arrives");
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        let answer = Answer { status, headers, text, json };
        self.contract.check(&method, &path, &answer);
        answer
    }
}

impl Answer {
    /// The same, once it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// The same, once it is a problem with this status and code.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.json["code"].as_str()), (status, Some(code)), "{}", self.text);
        self
    }

    /// A member of the body that is a text.
    #[track_caller]
    pub fn text_at(&self, pointer: &str) -> String {
        let value = self.json.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_else(|| panic!("no text at {pointer}: {}", self.text)).to_owned()
    }

    pub fn media_type(&self) -> &str {
        self.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
