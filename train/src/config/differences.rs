//! What differs between two configurations, key by key.

use super::TrainConfig;

impl TrainConfig {
    /// The keys whose values differ, with both values, in the order of the file.
    pub fn differences(&self, other: &TrainConfig) -> Vec<Difference> {
        let (old, new) = (flat(self), flat(other));
        let keys = old.iter().chain(&new).map(|(key, _)| key);
        let mut all: Vec<Difference> = Vec::new();
        for key in keys {
            let find = |entries: &[(String, String)]| {
                entries.iter().find(|(k, _)| k == key).map_or("(none)".to_string(), |(_, v)| v.clone())
            };
            let (was, now) = (find(&old), find(&new));
            if was != now && all.iter().all(|d| d.key != *key) {
                all.push(Difference { key: key.clone(), was, now });
            }
        }
        all
    }
}

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// With its section: `train.lr`.
    pub key: String,
    /// The value of the first.
    pub was: String,
    /// The value of the second.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {}, is {}", self.key, self.was, self.now)
    }
}

/// Every key with its section, and its value as text.
fn flat(config: &TrainConfig) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&key, value, out);
                }
            }
            value => out.push((prefix.to_string(), value.to_string())),
        }
    }
    let mut out = Vec::new();
    walk("", &toml::Value::try_from(config).expect("a configuration is TOML"), &mut out);
    out
}
