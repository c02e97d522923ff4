//! `onair rebuild`: makes Redis agree with Postgres and the nodes while the service runs, and says what was different.

use anyhow::bail;
use futures_util::{StreamExt as _, stream};

use super::{
    ConfigOptions,
    verify::{Stores, agreement},
};
use crate::verify::{Difference, Mending};

/// How many differences are mended at once: not so many that admissions would wait for them.
const AT_ONCE: usize = 16;

pub(super) async fn run(options: &ConfigOptions) -> anyhow::Result<()> {
    let stores = Stores::open(&options.load()?).await?;
    let findings = stores.verify.findings().await?;
    // First, and one after another: what is projected into a partition must not meet its opening.
    for closed in findings.differences.iter().filter(|one| matches!(one, Difference::PartitionClosed(_))) {
        stores.verify.mend(closed).await?;
    }
    let mending = stream::iter(&findings.differences).map(async |one| (one, stores.verify.mend(one).await));
    let mut mending = mending.buffered(AT_ONCE);
    let (mut mended, mut left) = (0, 0);
    while let Some((difference, outcome)) = mending.next().await {
        match outcome? {
            Mending::Mended => {
                mended += 1;
                println!("MENDED  {difference}");
            }
            Mending::LeftToTheService => println!("LEFT    {difference}; the running service acts on it"),
            Mending::Left => {
                left += 1;
                println!("LEFT    {difference}");
            }
        }
    }
    drop(mending);
    stores.close().await;
    if findings.differences.is_empty() {
        println!("{}", agreement(&findings.compared));
    } else {
        println!("{mended} of {} difference(s) mended", findings.differences.len());
    }
    match left {
        0 => Ok(()),
        1 => bail!("a difference has to be looked at"),
        count => bail!("{count} differences have to be looked at"),
    }
}
