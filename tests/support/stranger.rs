//! A service that is not ours, and says the same to everybody.

use std::net::SocketAddr;

use axum::{Router, http::StatusCode};
use tokio::{net::TcpListener, task::AbortHandle};

use super::mediamtx::{MediaMtx, PublishRequest, Publisher};

pub struct Stranger {
    address: SocketAddr,
    serving: AbortHandle,
}

impl Stranger {
    pub async fn saying(status: StatusCode, body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let router = Router::new().fallback(async move || (status, body));
        let task = tokio::spawn(async move {
            // Returns only when its task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Self { address, serving: task.abort_handle() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Brings a publisher on air behind the back of the service that the node usually asks at `auth_url`: somebody else admits
/// it. From then on the node sends no hooks.
pub async fn smuggle(node: &MediaMtx, auth_url: &str, request: PublishRequest) -> Publisher {
    let yes_man = Stranger::saying(StatusCode::NO_CONTENT, "").await;
    node.point_at(yes_man.url(), None);
    let publisher = node.publish(request).await.admitted();
    node.point_at(auth_url, None);
    publisher
}
