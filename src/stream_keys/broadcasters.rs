//! What administrators do with broadcasters.

use super::{
    Edit, ProjectReport, StreamKeys, StreamKeysError,
    invalid::{CONTACT_CHARACTERS_MAX, check_metadata, check_text},
};
use crate::{
    domain::{Broadcaster, BroadcasterId, ChangedBy, Label, Metadata, Page, PageRequest},
    postgres::{BroadcasterPosition, Change, PostgresError},
};

/// How many keys get their broadcaster's new name before the renaming is answered.
const RENAMED_AT_ONCE_MAX: u16 = 100;

/// A broadcaster that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBroadcaster {
    /// What viewers see.
    pub display_name: Label,
    /// How the operators reach them.
    pub contact: Option<String>,
    /// Free data.
    pub metadata: Metadata,
}

/// Changes of a broadcaster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BroadcasterPatch {
    /// What viewers see, of the streams that start from now on.
    pub display_name: Option<Label>,
    /// How the operators reach them.
    pub contact: Edit<String>,
    /// Free data, in place of all that was there.
    pub metadata: Option<Metadata>,
}

impl StreamKeys {
    /// Makes a broadcaster.
    ///
    /// # Errors
    /// [`StreamKeysError::Invalid`], or where Postgres does not do it.
    pub async fn create_broadcaster(
        &self,
        new: &NewBroadcaster,
        by: &ChangedBy,
    ) -> Result<Broadcaster, StreamKeysError> {
        check_text("contact", new.contact.as_ref(), CONTACT_CHARACTERS_MAX)?;
        check_metadata(&new.metadata)?;
        Ok(self.postgres.insert_broadcaster(&new.display_name, new.contact.as_deref(), &new.metadata, by).await?)
    }

    /// One broadcaster.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn broadcaster(&self, id: BroadcasterId) -> Result<Option<Broadcaster>, StreamKeysError> {
        Ok(self.postgres.broadcaster(id).await?)
    }

    /// A page of the broadcasters, the newest first.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn broadcasters(
        &self,
        page: &PageRequest<BroadcasterPosition>,
    ) -> Result<Page<Broadcaster, BroadcasterPosition>, StreamKeysError> {
        Ok(self.postgres.broadcasters(page).await?)
    }

    /// Changes a broadcaster. A new name shows on the streams that start from now on.
    ///
    /// # Errors
    /// [`StreamKeysError::Invalid`], [`StreamKeysError::NoSuchBroadcaster`], or where Postgres does not do it.
    pub async fn patch_broadcaster(
        &self,
        id: BroadcasterId,
        patch: BroadcasterPatch,
        by: &ChangedBy,
    ) -> Result<Broadcaster, StreamKeysError> {
        check_text("contact", patch.contact.value(), CONTACT_CHARACTERS_MAX)?;
        patch.metadata.as_ref().map_or(Ok(()), check_metadata)?;
        let renames = patch.display_name.is_some();
        let change = |broadcaster: &mut Broadcaster| {
            patch.contact.apply(&mut broadcaster.contact);
            if let Some(display_name) = patch.display_name {
                broadcaster.display_name = display_name;
            }
            if let Some(metadata) = patch.metadata {
                broadcaster.metadata = metadata;
            }
            Ok::<(), StreamKeysError>(())
        };
        match self.postgres.change_broadcaster(id, by, change).await? {
            Change::Missing => Err(StreamKeysError::NoSuchBroadcaster),
            Change::Refused(refusal) => Err(refusal),
            Change::Done(changed) => {
                if renames && let Err(error) = self.project_name_of(id).await {
                    tracing::debug!(broadcaster_id = %id, %error, "a new name is left to the outbox");
                }
                Ok(changed)
            }
        }
    }

    /// Gives the name to the keys in Redis. What this does not reach, the outbox does: a name is not worth an error.
    async fn project_name_of(&self, id: BroadcasterId) -> Result<(), PostgresError> {
        let memory = self.redis.generations().await;
        let keys = self.postgres.keys_of_broadcaster_awaiting_projection(id, RENAMED_AT_ONCE_MAX).await?;
        self.project_all(&keys, memory, &mut ProjectReport::default()).await
    }
}
