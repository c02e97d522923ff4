//! A server that lets a client of Redis in and then answers everything with one and the same error: what a Redis says in
//! states that cannot be brought about for a test.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

pub struct OddRedis {
    port: u16,
    refused: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl OddRedis {
    /// One that answers with an error such as `LOADING Redis is loading the dataset in memory`.
    pub async fn that_says(error: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let refused = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&refused);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, error, Arc::clone(&counted)));
            }
        });
        Self { port, refused, accepting: accepting.abort_handle() }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many commands it has answered with its error.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for OddRedis {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(client: TcpStream, error: &'static str, refused: Arc<AtomicU64>) -> Option<()> {
    let (from, mut to) = client.into_split();
    let mut from = BufReader::new(from);
    loop {
        let words = command(&mut from).await?;
        let answer = match words.first()?.to_ascii_uppercase().as_str() {
            "AUTH" | "SELECT" => "+OK\r\n".to_owned(),
            "CLIENT" => ":1\r\n".to_owned(),
            "INFO" => "$22\r\nredis_version:7.0.15\r\n\r\n".to_owned(),
            _ => {
                refused.fetch_add(1, Ordering::Relaxed);
                format!("-{error}\r\n")
            }
        };
        to.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// The words of the next command.
async fn command(from: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..number_after(b'*', from).await? {
        let mut word = vec![0; number_after(b'$', from).await? + 2];
        from.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Some(words)
}

async fn number_after(mark: u8, from: &mut (impl AsyncBufRead + Unpin)) -> Option<usize> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok()?;
    (line.as_bytes().first() == Some(&mark)).then(|| line[1..].trim_end().parse().ok())?
}
