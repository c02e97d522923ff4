//! The Lua scripts: called by their SHA-1, loaded again where Redis does not know them.

use std::sync::LazyLock;

use fred::{bytes_utils::Str, interfaces::LuaInterface, types::Value, util::sha1_hash};

use super::{Connection, Redis, RedisError, call::Call, resharding};

/// One file under `lua/`.
pub(super) struct Script {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    sha1: LazyLock<Str>,
}

macro_rules! script {
    ($constant:ident, $name:literal) => {
        pub(super) static $constant: Script = Script {
            name: $name,
            source: include_str!(concat!("../../lua/", $name, ".lua")),
            sha1: LazyLock::new(|| sha1_hash($constant.source).into()),
        };
    };
    ($constant:ident, $name:literal, behind $head:literal) => {
        script!($constant, $name, include_str!(concat!("../../lua/", $head, ".lua")), "");
    };
    ($constant:ident, $name:literal, behind $head:literal, for each) => {
        script!(
            $constant,
            $name,
            // One behind the other, so that a line of an error is not far from that of the file.
            concat!("local function of_one(KEYS, ARGV) ", include_str!(concat!("../../lua/", $head, ".lua"))),
            concat!("end\n", include_str!("../../lua/each.lua"))
        );
    };
    ($constant:ident, $name:literal, $before:expr, $after:expr) => {
        pub(super) static $constant: Script = Script {
            name: $name,
            source: concat!($before, include_str!(concat!("../../lua/", $name, ".lua")), $after),
            sha1: LazyLock::new(|| sha1_hash($constant.source).into()),
        };
    };
}

script!(ADMIT, "admit", behind "transition");
script!(ADMIT_EACH, "admit", behind "transition", for each);
script!(CONFIRM, "confirm", behind "transition");
script!(DESCRIBE, "describe", behind "transition");
script!(END, "end", behind "transition");
script!(EXPIRE, "expire", behind "transition");
script!(OBSERVE, "observe", behind "transition");
script!(PROJECT, "project", behind "transition");
script!(RESTORE, "restore", behind "transition");
script!(MEND, "mend", behind "transition");
script!(CHECK, "check", behind "server");
script!(OPEN, "open", behind "server");
script!(NOTE, "note");
script!(CHANGES, "changes");
script!(SET_ASIDE, "set_aside");
script!(LEASE, "lease");
script!(RELEASE, "release");

impl Redis {
    /// Runs `script`.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<Value, RedisError> {
        self.run_call(script, &Call::of(&keys, &arguments)).await
    }

    /// Runs `script`: once, or a second time where Redis has forgotten the script (a restart, a failover). Then it is sent whole,
    /// which also makes Redis remember it: nothing was run before, so nothing runs twice.
    pub(super) async fn run_call(&self, script: &Script, call: &Call) -> Result<Value, RedisError> {
        let connection = self.quick(call.first_key())?;
        let sent = connection.evalsha::<Value, _, _, _>(script.sha1.clone(), call.keys(), call.arguments());
        let error = match self.answered(&connection, sent).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if RedisError::is_noscript(&error) {
            tracing::debug!(script = script.name, "Redis does not hold the script: sending it");
            return Box::pin(self.send_whole(&connection, script, call)).await;
        }
        if RedisError::is_moved(&error) && self.inner.servers.may_change() {
            // Another server holds the keys now, and this one has done nothing.
            return Box::pin(self.run_at_new_holder(script, call)).await;
        }
        if resharding::is_on_the_way(&error) {
            return Box::pin(self.run_on_the_way(script, call, error)).await;
        }
        Err(RedisError::from_fred(&error))
    }

    async fn run_at_new_holder(&self, script: &Script, call: &Call) -> Result<Value, RedisError> {
        self.inner.servers.looked_again().await;
        let connection = self.quick(call.first_key())?;
        self.send_whole(&connection, script, call).await
    }

    async fn send_whole(&self, connection: &Connection, script: &Script, call: &Call) -> Result<Value, RedisError> {
        self.limited(connection, connection.eval(script.source, call.keys(), call.arguments())).await
    }
}
