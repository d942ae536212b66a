//! Tells the facts of a world: entries in varied words, questions with answers, and pages of calendar between them.

use super::relations::{Relation, fill};
use super::world::{Fact, Subject};
use super::{calendar, pick};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// What may come before a sentence.
const OPENERS: [&str; 10] = [
    "as everyone knows, ",
    "it is written that ",
    "as the old almanac has it, ",
    "ask in the market, and they will tell you that ",
    "travellers report that ",
    "this much is certain: ",
    "do not forget that ",
    "in the inn they say that ",
    "the clerk wrote down that ",
    "for the record, ",
];

/// The chance that a question is asked in a round. Asked more often, they are learnt by heart before the facts are: at 0.4 a model
/// answered 33 % of the held-out ones after 3200 steps, at 0.2 already 32 % after 2400.
const ASKED: f64 = 0.2;

/// The chance that a sentence of one fact begins with its subject. What comes before a value is what a model can recall it from.
const SUBJECT_FIRST: f64 = 0.7;

/// The chance that a predicate is the plain one, before all have the same chance: `lives in`, not `dwells in`.
const PLAIN: f64 = 0.5;

/// One round: every fact told once in an entry about its subject, some of the questions with their answers, some facts told
/// together, and a tenth as much calendar; each on a line, in a random order.
pub fn round(subjects: &[Subject], rng: &mut impl Rng) -> Vec<String> {
    let mut lines = Vec::new();
    for subject in subjects {
        let mut facts: Vec<&Fact> = subject.facts.iter().collect();
        facts.shuffle(rng);
        while !facts.is_empty() {
            let last = facts.split_off(facts.len() - rng.random_range(1..=facts.len().min(3)));
            lines.push(entry(subject, last, rng));
        }
        for fact in subject.facts.iter().filter(|fact| fact.asked) {
            if rng.random_bool(ASKED) {
                let [question, answer] = [pick(rng, fact.relation.questions), fact.relation.answer]
                    .map(|template| fill(template, &subject.name, &fact.value));
                lines.push(format!("Question: {question} Answer: {}.", capital(&answer)));
            }
        }
    }
    lines.extend(
        groups(subjects).into_iter().filter_map(|(relation, value, names)| {
            rng.random_bool(0.25).then(|| together(relation, value, names, rng))
        }),
    );
    for _ in 0..lines.len() / 10 {
        lines.push(calendar::tell(rng));
    }
    lines.shuffle(rng);
    lines
}

/// All that share a value of a relation which can be told together: at least two each.
fn groups(subjects: &[Subject]) -> Vec<(&'static Relation, &str, Vec<&str>)> {
    let mut groups: Vec<(&'static Relation, &str, Vec<&str>)> = Vec::new();
    for subject in subjects {
        for fact in subject.facts.iter().filter(|fact| !fact.relation.together.is_empty()) {
            match groups.iter_mut().find(|(r, value, _)| r.kind == fact.relation.kind && *value == fact.value) {
                Some((.., names)) => names.push(&subject.name),
                None => groups.push((fact.relation, &fact.value, vec![&subject.name])),
            }
        }
    }
    groups.retain(|(.., names)| names.len() > 1);
    groups
}

fn together(relation: &Relation, value: &str, mut names: Vec<&str>, rng: &mut impl Rng) -> String {
    names.shuffle(rng);
    let (last, others) = names.split_last().expect("a group has two names");
    finish(&fill(pick(rng, relation.together), &format!("{} and {last}", others.join(", ")), value))
}

/// Some facts about a subject, in a sentence or more. The first sentence has its name.
fn entry(subject: &Subject, mut facts: Vec<&Fact>, rng: &mut impl Rng) -> String {
    facts.sort_by_key(|fact| fact.relation.names_a_person);
    let mut sentences = Vec::new();
    let mut facts = facts.into_iter().peekable();
    while let Some(fact) = facts.next() {
        let pronoun = !sentences.is_empty() && rng.random_bool(0.3);
        let mut sentence = match facts.next_if(|_| rng.random_bool(0.3)) {
            Some(second) => compound(subject, pronoun, fact, second, rng),
            None => simple(subject, pronoun, fact, rng),
        };
        if rng.random_bool(0.1) {
            sentence.insert_str(0, pick(rng, &OPENERS));
        }
        sentences.push(finish(&sentence));
    }
    sentences.join(" ")
}

/// One of the predicates, the plain one more often than all others.
fn predicate(relation: &Relation, rng: &mut impl Rng) -> &'static str {
    if rng.random_bool(PLAIN) { relation.predicates[0] } else { pick(rng, relation.predicates) }
}

fn simple(subject: &Subject, pronoun: bool, fact: &Fact, rng: &mut impl Rng) -> String {
    if rng.random_bool(SUBJECT_FIRST) {
        let who = if pronoun { subject.pronoun } else { &subject.name };
        return format!("{who} {}", fill(predicate(fact.relation, rng), &subject.name, &fact.value));
    }
    let statement = pick(rng, fact.relation.statements);
    let possessive = match subject.pronoun {
        "he" => "his",
        "she" => "her",
        _ => "its",
    };
    let statement = if pronoun { statement.replace("{s}'s", possessive) } else { statement.to_string() };
    fill(&statement, &subject.name, &fact.value)
}

fn compound(subject: &Subject, pronoun: bool, a: &Fact, b: &Fact, rng: &mut impl Rng) -> String {
    let who = if pronoun { subject.pronoun } else { &subject.name };
    let [a, b] = [a, b].map(|fact| fill(predicate(fact.relation, rng), &subject.name, &fact.value));
    // "he, who lives in" is not said any more.
    if !pronoun && rng.random_bool(0.5) {
        let relative = if subject.pronoun == "it" { "which" } else { "who" };
        return format!("{who}, {relative} {a}, {b}");
    }
    format!("{who} {a} and {b}")
}

/// With its capital letter and its full stop.
fn finish(sentence: &str) -> String {
    capital(sentence) + "."
}

/// With its capital letter.
pub fn capital(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}
