//! `onair verify`: compares Redis, Postgres and the nodes, changes nothing, and ends with code 1 where something differs.

use anyhow::bail;

use super::ConfigOptions;
use crate::{
    config::Config,
    postgres::{Postgres, SchemaState},
    redis::Redis,
    verify::{Compared, Verify},
};

/// What the commands that look at everything are made of.
pub(super) struct Stores {
    pub(super) redis: Redis,
    pub(super) postgres: Postgres,
    pub(super) verify: Verify,
}

impl Stores {
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let (redis, postgres) = (Redis::connect(&config.redis).await?, Postgres::new(&config.postgres)?);
        // Another schema would be read as differences.
        if postgres.schema().await? != SchemaState::Current {
            bail!("the database is not up to date: run `onair migrate` first");
        }
        let verify = Verify::new(config, redis.clone(), postgres.clone())?;
        Ok(Self { redis, postgres, verify })
    }

    pub(super) async fn close(&self) {
        tokio::join!(self.redis.close(), self.postgres.close());
    }
}

pub(super) async fn run(options: &ConfigOptions) -> anyhow::Result<()> {
    let stores = Stores::open(&options.load()?).await?;
    let findings = stores.verify.findings().await?;
    stores.close().await;
    for difference in &findings.differences {
        println!("DIFFERENT  {difference}");
    }
    match findings.differences.len() {
        0 => {
            println!("{}", agreement(&findings.compared));
            Ok(())
        }
        1 => bail!("there is a difference"),
        count => bail!("there are {count} differences"),
    }
}

/// What agrees, in one line.
pub(super) fn agreement(compared: &Compared) -> String {
    let Compared { stream_keys, streams, nodes } = compared;
    format!(
        "Redis, Postgres and the nodes agree: {stream_keys} stream key(s), {streams} stream(s) on air, {nodes} node(s)"
    )
}
