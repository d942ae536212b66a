//! Questions with their answers, as JSON Lines: `{"prompt": "...", "answers": ["...", "..."], "kind": "..."}` on each line.
//!
//! A question is text to be continued, not a chat turn: the prompt leads up to the answer (`"Question: who? Answer:"`). Any of the
//! answers is right. `kind` is optional and groups the questions in a report. Blank lines are skipped.

use crate::files;
use crate::jsonl;
use serde::Serialize;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// The text before the answer; not empty.
    pub prompt: String,
    /// The answers that are right, at least one, none of them blank.
    pub answers: Vec<String>,
    /// What it asks for: `birth year`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl Question {
    /// Whether `answer` is right: [`normalized`], it equals one of the answers.
    pub fn accepts(&self, answer: &str) -> bool {
        let answer = normalized(answer);
        self.answers.iter().any(|right| normalized(right) == answer)
    }
}

/// An answer as it is compared: without surrounding whitespace and one final full stop, in lower case.
pub fn normalized(answer: &str) -> String {
    let answer = answer.trim();
    answer.strip_suffix('.').unwrap_or(answer).trim_end().to_lowercase()
}

/// The accuracy of the most frequent answer: what one would get who knows of each question its kind, and of each kind the answer
/// that is right most often, and nothing else. The baseline of an exact match. NaN for no questions.
pub fn most_frequent_answer_share<'a>(questions: impl IntoIterator<Item = &'a Question>) -> f64 {
    let mut kinds: HashMap<Option<&str>, HashMap<String, usize>> = HashMap::new();
    let mut n = 0;
    for question in questions {
        n += 1;
        let counts = kinds.entry(question.kind.as_deref()).or_default();
        for answer in question.answers.iter().map(|answer| normalized(answer)).collect::<HashSet<_>>() {
            *counts.entry(answer).or_default() += 1;
        }
    }
    let right: usize = kinds.values().filter_map(|counts| counts.values().max()).sum();
    right as f64 / n as f64
}

/// What is wrong with a file of questions.
#[derive(Debug, thiserror::Error)]
pub enum QuestionsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A line is no question.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The field, and what was expected.
        reason: String,
    },
    /// There is no line that could be one.
    #[error("{}: holds no question; each is a line {{\"prompt\": \"...\", \"answers\": [\"...\"]}}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the questions of a file, in order; at least one.
pub fn read(path: &Path) -> Result<Vec<Question>, QuestionsError> {
    let bytes = std::fs::read(path).map_err(|reason| files::Error::new("read", path, reason))?;
    let questions: Vec<Question> = jsonl::lines(&bytes)
        .map(|(line, text)| {
            text.and_then(parse).map_err(|reason| QuestionsError::Line { path: path.to_path_buf(), line, reason })
        })
        .collect::<Result<_, _>>()?;
    if questions.is_empty() {
        return Err(QuestionsError::Empty { path: path.to_path_buf() });
    }
    Ok(questions)
}

/// Writes questions, replacing the file at once. Panics for questions that [`read`] would refuse.
pub fn write(path: &Path, questions: &[Question]) -> Result<(), QuestionsError> {
    assert!(!questions.is_empty(), "questions::write: no questions");
    let mut text = String::new();
    for (i, question) in questions.iter().enumerate() {
        check(question).unwrap_or_else(|reason| panic!("questions::write: question {i}: {reason}"));
        text += &serde_json::to_string(question).expect("strings become JSON");
        text.push('\n');
    }
    Ok(files::replace(path, text.as_bytes())?)
}

fn parse(line: &str) -> Result<Question, String> {
    let mut record = jsonl::object(line)?;
    if let Some(unknown) = record.keys().find(|key| !["prompt", "answers", "kind"].contains(&key.as_str())) {
        return Err(format!("unknown field \"{unknown}\", expected \"prompt\", \"answers\" or \"kind\""));
    }
    let has = jsonl::fields(&record);
    let missing = |field: &str| format!("no field \"{field}\"; its fields are {has}");
    let prompt = string("field \"prompt\"", record.swap_remove("prompt").ok_or_else(|| missing("prompt"))?)?;
    let answers = match record.swap_remove("answers").ok_or_else(|| missing("answers"))? {
        Value::Array(answers) => answers
            .into_iter()
            .enumerate()
            .map(|(i, answer)| string(&format!("item {i} of field \"answers\""), answer))
            .collect::<Result<_, _>>()?,
        other => return Err(format!("field \"answers\" is {}, expected an array of strings", jsonl::kind(&other))),
    };
    let kind = match record.swap_remove("kind") {
        None | Some(Value::Null) => None,
        Some(kind) => Some(string("field \"kind\"", kind)?),
    };
    let question = Question { prompt, answers, kind };
    check(&question)?;
    Ok(question)
}

fn string(what: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("{what} is {}, expected a string", jsonl::kind(&other))),
    }
}

fn check(question: &Question) -> Result<(), String> {
    if question.prompt.is_empty() {
        return Err("field \"prompt\" is empty, expected the text before the answer".to_string());
    }
    if question.answers.is_empty() {
        return Err("field \"answers\" is empty, expected at least one answer".to_string());
    }
    match question.answers.iter().position(|answer| answer.trim().is_empty()) {
        Some(i) => Err(format!("item {i} of field \"answers\" is blank, expected an answer")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(prompt: &str, answers: &[&str], kind: Option<&str>) -> Question {
        Question {
            prompt: prompt.to_string(),
            answers: answers.iter().map(|a| a.to_string()).collect(),
            kind: kind.map(str::to_string),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.jsonl");
        let questions =
            [question("Who?\nA:", &["\"Ann\"", "Änne"], Some("name")), question(" When? ", &["in 1800"], None)];
        write(&path, &questions).unwrap();
        assert_eq!(read(&path).unwrap(), questions);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().nth(1), Some("{\"prompt\":\" When? \",\"answers\":[\"in 1800\"]}"));
    }

    #[test]
    fn blank_lines_a_mark_and_null_are_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.jsonl");
        let text = "\u{feff}{\"answers\": [\"a\"], \"prompt\": \"p\", \"kind\": null}\r\n\n \r\n{\"prompt\":\"q\",\"answers\":[\"b\"],\"kind\":\"k\"}";
        std::fs::write(&path, text).unwrap();
        assert_eq!(read(&path).unwrap(), [question("p", &["a"], None), question("q", &["b"], Some("k"))]);
    }

    #[test]
    fn what_is_no_question_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.jsonl");
        let good = b"{\"prompt\":\"p\",\"answers\":[\"a\"]}\n\n".to_vec();
        for (line, words) in [
            (&b"{\"prompt\" 1}"[..], "not JSON: expected `:` at column 11"),
            (b"[1]", "an array, expected a JSON object"),
            (b"{\"answers\":[\"a\"]}", "no field \"prompt\"; its fields are \"answers\""),
            (b"{\"prompt\":\"p\"}", "no field \"answers\"; its fields are \"prompt\""),
            (b"{\"prompt\":3,\"answers\":[\"a\"]}", "field \"prompt\" is a number, expected a string"),
            (b"{\"prompt\":\"\",\"answers\":[\"a\"]}", "field \"prompt\" is empty"),
            (b"{\"prompt\":\"p\",\"answers\":\"a\"}", "field \"answers\" is a string, expected an array of strings"),
            (b"{\"prompt\":\"p\",\"answers\":[]}", "field \"answers\" is empty, expected at least one answer"),
            (b"{\"prompt\":\"p\",\"answers\":[\"a\",null]}", "item 1 of field \"answers\" is null, expected a string"),
            (b"{\"prompt\":\"p\",\"answers\":[\"a\",\" \"]}", "item 1 of field \"answers\" is blank"),
            (b"{\"prompt\":\"p\",\"answers\":[\"a\"],\"kind\":[]}", "field \"kind\" is an array, expected a string"),
            (
                b"{\"prompt\":\"p\",\"answer\":[\"a\"]}",
                "unknown field \"answer\", expected \"prompt\", \"answers\" or \"kind\"",
            ),
            (b"{\"prompt\":\"caf\xe9\",\"answers\":[\"a\"]}", "not UTF-8"),
        ] {
            std::fs::write(&path, [&good[..], line].concat()).unwrap();
            let error = read(&path).unwrap_err().to_string();
            let expected = format!("{} line 3: {words}", path.display());
            assert!(error.starts_with(&expected), "{error}\nshould begin with\n{expected}");
        }
        std::fs::write(&path, "\n \n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("holds no question; each is a line {\"prompt\": "));
        let missing = folder.path().join("missing.jsonl");
        let error = read(&missing).unwrap_err().to_string();
        assert!(error.contains("missing.jsonl: cannot be read: No such file"), "{error}");
    }

    #[test]
    fn answers_are_compared_without_case_space_and_full_stop() {
        let q = question("p", &["a Baker.", " 3.5 "], None);
        for right in ["a baker", "  A BAKER . \n", "3.5", "3.5."] {
            assert!(q.accepts(right), "{right:?}");
        }
        for wrong in ["", "baker", "a baker..", "3", "a baker. He"] {
            assert!(!q.accepts(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_most_frequent_answer_is_taken_kind_by_kind() {
        // Of kind a: "x" is right for 2 of 3, by its second answers too. Of kind b, 1 of 2. Without a kind, 1 of 1.
        let questions = [
            question("1", &["x", "X."], Some("a")),
            question("2", &["x"], Some("b")),
            question("3", &["y", "x"], Some("a")),
            question("4", &["z"], Some("a")),
            question("5", &["y"], Some("b")),
            question("6", &["w"], None),
        ];
        assert_eq!(most_frequent_answer_share(&questions), 4.0 / 6.0);
        assert_eq!(most_frequent_answer_share(&questions[..1]), 1.0);
        assert!(most_frequent_answer_share([]).is_nan());
    }
}
