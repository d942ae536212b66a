//! Files with one JSON object a line, and what can be wrong with a line, in words.

use serde_json::{Map, Value};

/// The lines that are not blank, with their numbers from 1; `Err` for one that is not UTF-8. A byte order mark before the first,
/// with which some editors begin a file, is no part of it.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, Result<&str, String>)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|&b| b == b'\n').map(|line| std::str::from_utf8(line).map_err(|_| "not UTF-8".to_string()));
    (1..).zip(lines).filter(|(_, line)| !matches!(line, Ok(line) if line.trim().is_empty()))
}

/// The object on a line.
pub(crate) fn object(line: &str) -> Result<Map<String, Value>, String> {
    let record = serde_json::from_str(line).map_err(|e| {
        // The parser saw one line and calls it the first.
        let reason = e.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {reason} at column {}", e.column())
    })?;
    match record {
        Value::Object(record) => Ok(record),
        other => Err(format!("{}, expected a JSON object", kind(&other))),
    }
}

/// What a value is: `a number`.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields of an object, as a message lists them.
pub(crate) fn fields(record: &Map<String, Value>) -> String {
    let names: Vec<String> = record.keys().map(|key| format!("\"{key}\"")).collect();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}
