//! The fleet: its directory, and what each node says of itself.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt as _, stream};

use super::{Difference, Findings, Verify};
use crate::{
    domain::{Node, NodeName, SourceId, SourceType, Stream, StreamPath},
    nodes::Paths,
    store_error::StoreError,
};

/// How many nodes are asked at once.
const NODES_AT_ONCE: usize = 8;

/// What Redis says of publishers.
struct Believed<'a> {
    held: &'a [Stream],
    by_path: HashMap<&'a StreamPath, &'a Stream>,
    must_be_off_air: HashSet<SourceId>,
}

impl Verify {
    pub(super) async fn compare_nodes(&self, held: &[Stream], findings: &mut Findings) -> Result<(), StoreError> {
        let in_redis = self.redis.nodes().await?;
        let fleet = self.postgres.nodes().await?;
        for node in &fleet {
            if in_redis.get(&node.name) != Some(node) {
                findings.differences.push(Difference::NodeNotInRedis(node.name.clone()));
            }
        }
        let names: HashSet<&NodeName> = fleet.iter().map(|node| &node.name).collect();
        let strangers = in_redis.keys().filter(|name| !names.contains(name));
        findings.differences.extend(strangers.cloned().map(Difference::NodeUnknown));
        let without_node = held.iter().filter(|stream| !names.contains(&stream.node));
        findings.differences.extend(without_node.map(|stream| Difference::NodeGone(Box::new(stream.clone()))));

        let believed = Believed {
            held,
            by_path: held.iter().map(|stream| (&stream.path, stream)).collect(),
            must_be_off_air: self.redis.kicks().await?.into_iter().map(|kick| kick.source_id).collect(),
        };
        findings.compared.nodes = fleet.len() as u64;
        let mut answers = stream::iter(&fleet)
            .map(async |node| (node, self.client.paths(node).await))
            .buffer_unordered(NODES_AT_ONCE);
        while let Some((node, answer)) = answers.next().await {
            match answer {
                Ok(paths) => self.compare_node(node, &paths, &believed, findings),
                Err(error) => {
                    findings.differences.push(Difference::NodeSilent(node.name.clone(), error.to_string()));
                }
            }
        }
        Ok(())
    }

    fn compare_node(&self, node: &Node, paths: &Paths, believed: &Believed<'_>, findings: &mut Findings) {
        let mut online = HashSet::new();
        for item in &paths.items {
            // Pulled sources are nobody's publisher.
            let Some(source) = item.online_source() else { continue };
            let (Ok(_), Some(id)) = (source.source_type.parse::<SourceType>(), source.id) else { continue };
            online.insert(id);
            if believed.must_be_off_air.contains(&id) {
                findings.differences.push(Difference::NotKicked(node.name.clone(), item.name.clone(), id));
            } else if !self.is_admitted(node, &item.name, id, believed) {
                findings.differences.push(Difference::NotAdmitted(node.name.clone(), item.name.clone(), id));
            }
        }
        let is_gone = |stream: &&Stream| {
            stream.node == node.name && stream.state.live_since().is_some() && !online.contains(&stream.source.id)
        };
        let gone = believed.held.iter().filter(is_gone);
        findings.differences.extend(gone.map(|stream| Difference::NotOnAir(Box::new(stream.clone()))));
    }

    fn is_admitted(&self, node: &Node, path: &str, source_id: SourceId, believed: &Believed<'_>) -> bool {
        let Ok(path) = path.parse::<StreamPath>() else { return false };
        let holder_of = |path: &StreamPath| believed.by_path.get(path).filter(|stream| stream.node == node.name);
        match self.renditions.parent_of(&path) {
            Some(parent) => holder_of(&parent).is_some(),
            None => holder_of(&path).is_some_and(|stream| stream.source.id == source_id),
        }
    }
}
