//! `onair migrate`: brings the database up to date. Safe to run from several machines at once: Postgres lets one at a time.

use anyhow::Context as _;

use super::ConfigOptions;
use crate::postgres::Postgres;

pub(super) async fn run(options: &ConfigOptions) -> anyhow::Result<()> {
    let config = options.load()?;
    let postgres = Postgres::new(&config.postgres)?;
    let outcome = postgres.migrate().await.context("the database could not be brought up to date");
    postgres.close().await;
    outcome?;
    println!("The database is up to date.");
    Ok(())
}
