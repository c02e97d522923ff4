//! What administrators do with stream keys.

use super::{
    Edit, StreamKeys, StreamKeysError,
    invalid::{
        DESCRIPTION_CHARACTERS_MAX, FieldProblem, TITLE_CHARACTERS_MAX, check_expiry, check_metadata, check_path,
        check_text,
    },
    secrets,
};
use crate::{
    domain::{
        AuditAction, BroadcasterId, ChangedBy, KeyId, KeyStatus, Label, Metadata, OnConflict, Page, PageRequest,
        Playback, Secret, Stream, StreamKey, StreamPath, Timestamp,
    },
    postgres::{
        Change, Constraint, InUse, KeyFilter, KeyPosition, KeySettings, KeyWithOwner, NewStreamKey, PostgresError,
        StatusFilter,
    },
};

/// How often a path is made up before it is believed that something is wrong with the random numbers.
const PATH_DRAWS_MAX: usize = 3;

/// A key that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewKey {
    /// Whose it is.
    pub broadcaster_id: BroadcasterId,
    /// The path it admits to; made up where absent.
    pub path: Option<StreamPath>,
    /// The rest.
    pub settings: KeySettings,
}

/// A key that was made, with its secret: the one time that it is shown.
#[derive(Debug, Clone)]
pub struct CreatedKey {
    /// The key.
    pub key: StreamKey,
    /// Its secret.
    pub secret: Secret,
}

/// Changes of a key's settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyPatch {
    /// A name for the administrators.
    pub label: Edit<Label>,
    /// Title of the streams that it starts from now on.
    pub title: Edit<String>,
    /// Description of the streams that it starts from now on.
    pub description: Edit<String>,
    /// Free data, in place of all that was there.
    pub metadata: Option<Metadata>,
    /// When it stops admitting. A stream that is on air is moved along.
    pub expires_at: Edit<Timestamp>,
    /// What happens when a second publisher comes.
    pub on_conflict: Option<OnConflict>,
    /// Who may watch, from now on.
    pub playback: Option<Playback>,
}

/// Which keys are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListKeys {
    /// Of this status now.
    pub status: Option<KeyStatus>,
    /// Of this broadcaster.
    pub broadcaster_id: Option<BroadcasterId>,
    /// For this path.
    pub path: Option<StreamPath>,
    /// In use or not: with the ids of the keys whose streams are on air.
    pub in_use: Option<InUse>,
}

/// A key after a change that is in effect.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedKey {
    /// The key.
    pub key: StreamKey,
    /// The stream that the change took off air. Its source is still to be kicked; the kick is recorded. Absent where a
    /// call before this one did it.
    pub ended: Option<Stream>,
}

impl StreamKeys {
    /// Makes a key.
    ///
    /// A Redis that is away does not keep this from succeeding, since the secret is in the answer and nowhere else: a key
    /// whose making were refused now would hold its path, and nobody could use it. It admits as soon as Redis is back,
    /// because a key that Redis does not hold is looked up.
    ///
    /// # Errors
    /// [`StreamKeysError::Invalid`], [`StreamKeysError::PathTaken`], or where Postgres does not do it.
    pub async fn create(&self, new: &NewKey, by: &ChangedBy) -> Result<CreatedKey, StreamKeysError> {
        self.make(new, None, by).await
    }

    /// Makes a key and its broadcaster, who gets the id that the key names. Both are made, or neither.
    ///
    /// # Errors
    /// As [`StreamKeys::create`].
    pub async fn create_with_broadcaster(
        &self,
        display_name: &Label,
        new: &NewKey,
        by: &ChangedBy,
    ) -> Result<CreatedKey, StreamKeysError> {
        self.make(new, Some(display_name), by).await
    }

    async fn make(&self, new: &NewKey, owner: Option<&Label>, by: &ChangedBy) -> Result<CreatedKey, StreamKeysError> {
        check_settings(&new.settings)?;
        new.path.as_ref().map_or(Ok(()), |path| check_path(path, &self.renditions))?;
        let secret = secrets::draw_secret()?;
        let memory = self.redis.generations().await;
        let made = match &new.path {
            Some(path) => self.insert(new, owner, path, &secret, by).await?,
            None => self.insert_somewhere(new, owner, &secret, by).await?,
        };
        match self.bring_into_effect(&made, memory).await {
            Ok(_) | Err(StreamKeysError::RecordedNotYetEffective) => Ok(CreatedKey { key: made.key, secret }),
            Err(error) => Err(error),
        }
    }

    async fn insert_somewhere(
        &self,
        new: &NewKey,
        owner: Option<&Label>,
        secret: &Secret,
        by: &ChangedBy,
    ) -> Result<KeyWithOwner, StreamKeysError> {
        let mut outcome = Err(StreamKeysError::PathTaken);
        for _ in 0..PATH_DRAWS_MAX {
            outcome = self.insert(new, owner, &secrets::draw_path()?, secret, by).await;
            if outcome != Err(StreamKeysError::PathTaken) {
                break;
            }
        }
        outcome
    }

    async fn insert(
        &self,
        new: &NewKey,
        owner: Option<&Label>,
        path: &StreamPath,
        secret: &Secret,
        by: &ChangedBy,
    ) -> Result<KeyWithOwner, StreamKeysError> {
        let row = NewStreamKey {
            id: KeyId::generate(),
            broadcaster_id: new.broadcaster_id,
            path,
            secret_hash: secret.hash(),
            hint: secrets::hint_of(secret),
            settings: &new.settings,
        };
        let inserted = match owner {
            None => self.postgres.insert_stream_key(&row, by).await,
            Some(display_name) => self.postgres.insert_stream_key_and_broadcaster(&row, display_name, by).await,
        };
        inserted.map_err(|error| match error {
            PostgresError::Conflict(Constraint::StreamKeysPathInUse) => StreamKeysError::PathTaken,
            PostgresError::Conflict(Constraint::StreamKeysBroadcasterExists) => {
                FieldProblem::UnknownBroadcaster.of("broadcaster_id").into()
            }
            other => other.into(),
        })
    }

    /// One key.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn get(&self, id: KeyId) -> Result<Option<StreamKey>, StreamKeysError> {
        Ok(self.postgres.stream_key(id).await?)
    }

    /// A page of the keys, the newest first.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn list(
        &self,
        which: ListKeys,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<StreamKey, KeyPosition>, StreamKeysError> {
        let filter = KeyFilter {
            status: which.status.map(|status| StatusFilter { status, at: Timestamp::now() }),
            broadcaster_id: which.broadcaster_id,
            path: which.path,
            in_use: which.in_use,
        };
        Ok(self.postgres.stream_keys(&filter, page).await?)
    }

    /// Changes a key's settings.
    ///
    /// # Errors
    /// [`StreamKeysError::Invalid`], [`StreamKeysError::NoSuchKey`], [`StreamKeysError::KeyIsRevoked`],
    /// [`StreamKeysError::RecordedNotYetEffective`], or where Postgres does not do it.
    pub async fn patch(&self, id: KeyId, patch: KeyPatch, by: &ChangedBy) -> Result<ChangedKey, StreamKeysError> {
        check_patch(&patch)?;
        self.change(id, AuditAction::KeyChanged, by, |key| {
            if key.stored_status == KeyStatus::Revoked {
                return Err(StreamKeysError::KeyIsRevoked);
            }
            patch.label.apply(&mut key.label);
            patch.title.apply(&mut key.title);
            patch.description.apply(&mut key.description);
            patch.expires_at.apply(&mut key.expires_at);
            key.metadata = patch.metadata.unwrap_or_else(|| std::mem::take(&mut key.metadata));
            key.on_conflict = patch.on_conflict.unwrap_or(key.on_conflict);
            key.playback = patch.playback.unwrap_or(key.playback);
            Ok(())
        })
        .await
    }

    /// Switches a key off, and takes its stream off air.
    ///
    /// # Errors
    /// [`StreamKeysError::NoSuchKey`], [`StreamKeysError::KeyIsRevoked`],
    /// [`StreamKeysError::RecordedNotYetEffective`], or where Postgres does not do it.
    pub async fn disable(&self, id: KeyId, by: &ChangedBy) -> Result<ChangedKey, StreamKeysError> {
        self.change(id, AuditAction::KeyDisabled, by, |key| switch(key, KeyStatus::Disabled)).await
    }

    /// Switches a key on again.
    ///
    /// # Errors
    /// As [`StreamKeys::disable`].
    pub async fn enable(&self, id: KeyId, by: &ChangedBy) -> Result<ChangedKey, StreamKeysError> {
        self.change(id, AuditAction::KeyEnabled, by, |key| switch(key, KeyStatus::Active)).await
    }

    /// Ends a key for ever, and takes its stream off air. Its path is free for another key.
    ///
    /// # Errors
    /// [`StreamKeysError::NoSuchKey`], [`StreamKeysError::RecordedNotYetEffective`], or where Postgres does not do it.
    pub async fn revoke(&self, id: KeyId, by: &ChangedBy) -> Result<ChangedKey, StreamKeysError> {
        self.change(id, AuditAction::KeyRevoked, by, |key| {
            key.stored_status = KeyStatus::Revoked;
            Ok(())
        })
        .await
    }

    async fn change(
        &self,
        id: KeyId,
        action: AuditAction,
        by: &ChangedBy,
        change: impl FnOnce(&mut StreamKey) -> Result<(), StreamKeysError>,
    ) -> Result<ChangedKey, StreamKeysError> {
        // Before Postgres: what is read in there must not be written into a later memory of Redis.
        let memory = self.redis.generations().await;
        match self.postgres.change_stream_key(id, action, by, change).await? {
            Change::Missing => Err(StreamKeysError::NoSuchKey),
            Change::Refused(refusal) => Err(refusal),
            Change::Done(changed) => {
                let ended = self.bring_into_effect(&changed, memory).await?;
                Ok(ChangedKey { key: changed.key, ended })
            }
        }
    }
}

fn switch(key: &mut StreamKey, status: KeyStatus) -> Result<(), StreamKeysError> {
    if key.stored_status == KeyStatus::Revoked {
        return Err(StreamKeysError::KeyIsRevoked);
    }
    key.stored_status = status;
    Ok(())
}

fn check_settings(settings: &KeySettings) -> Result<(), StreamKeysError> {
    check_text("title", settings.title.as_ref(), TITLE_CHARACTERS_MAX)?;
    check_text("description", settings.description.as_ref(), DESCRIPTION_CHARACTERS_MAX)?;
    check_metadata(&settings.metadata)?;
    check_expiry(settings.expires_at.as_ref(), Timestamp::now())?;
    Ok(())
}

fn check_patch(patch: &KeyPatch) -> Result<(), StreamKeysError> {
    check_text("title", patch.title.value(), TITLE_CHARACTERS_MAX)?;
    check_text("description", patch.description.value(), DESCRIPTION_CHARACTERS_MAX)?;
    patch.metadata.as_ref().map_or(Ok(()), check_metadata)?;
    check_expiry(patch.expires_at.value(), Timestamp::now())?;
    Ok(())
}
