//! The almanac: a seeded closed world of invented people, towns and events, told as plain English.
//!
//! A fresh machine has no corpus and needs no download: the quick start trains on this text. Each fact (who lives where, what a town
//! is known for, when a flood was) is told many times in different words, among sentences that state no fact at all.
//!
//! Half of the facts are also *asked*: the text holds a question and its answer. The other half is only stated, and their questions
//! are *held out*: to answer one, a model must have learnt the fact from statements and the form from the questions about other
//! subjects. A third set asks for every fact in phrasings that the text never uses.
//!
//! - `world`: the facts. `relations`: what there is to tell, and the words. `telling`: the text. `calendar`: the rest of it.

mod calendar;
mod relations;
mod telling;
mod world;

use crate::questions::Question;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use relations::fill;
use world::{Fact, Subject};

/// An invented world: the same for the same seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Almanac {
    subjects: Vec<Subject>,
    seed: u64,
}

/// What can be asked about an almanac. `kind` is the relation: `home`, `trade`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Questions {
    /// The text holds these, with their answers.
    pub seen: Vec<Question>,
    /// The text states these facts and never asks for them. It asks the same of other subjects.
    pub held_out: Vec<Question>,
    /// Every fact as the beginning of a sentence that the text never uses; the answer completes it.
    pub cloze: Vec<Question>,
}

impl Almanac {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Almanac {
        Almanac { subjects: world::subjects(&mut Xoshiro256PlusPlus::seed_from_u64(seed)), seed }
    }

    /// Entries of the almanac, one a line, until there are at least `bytes` bytes of text.
    ///
    /// The text goes round by round; a round of some 8 kB tells every fact once more. So a shorter text is the beginning of a
    /// longer one.
    pub fn text(&self, bytes: usize) -> String {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0x7E47);
        let mut text = String::with_capacity(bytes.saturating_add(512));
        while text.len() < bytes {
            for line in telling::round(&self.subjects, &mut rng) {
                text.push_str(&line);
                text.push('\n');
                if text.len() >= bytes {
                    break;
                }
            }
        }
        text
    }

    /// The questions, each fact in one of the wordings of its kind.
    pub fn questions(&self) -> Questions {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0x9E57);
        let mut questions = Questions { seen: Vec::new(), held_out: Vec::new(), cloze: Vec::new() };
        for (subject, fact) in self.facts() {
            let wording = fill(pick(&mut rng, fact.relation.questions), &subject.name, &fact.value);
            let place = if fact.asked { &mut questions.seen } else { &mut questions.held_out };
            place.push(question(format!("Question: {wording} Answer:"), subject, fact));
            let beginning = telling::capital(&fill(pick(&mut rng, fact.relation.cloze), &subject.name, &fact.value));
            questions.cloze.push(question(beginning, subject, fact));
        }
        questions
    }

    /// The number of facts.
    pub fn fact_count(&self) -> usize {
        self.facts().count()
    }

    fn facts(&self) -> impl Iterator<Item = (&Subject, &Fact)> {
        self.subjects.iter().flat_map(|subject| subject.facts.iter().map(move |fact| (subject, fact)))
    }
}

/// The first answer is the one that the text gives, a sentence; the others are shorter.
fn question(prompt: String, subject: &Subject, fact: &Fact) -> Question {
    let relation = fact.relation;
    let mut answers =
        [relation.answer, relation.short_answer, "{v}"].map(|t| fill(t, &subject.name, &fact.value)).to_vec();
    answers[0] = telling::capital(&answers[0]);
    answers.dedup();
    Question { prompt, answers, kind: Some(relation.kind.to_string()) }
}

fn pick<'a>(rng: &mut impl Rng, from: &[&'a str]) -> &'a str {
    from.choose(rng).expect("the lists of the almanac are not empty")
}

#[cfg(test)]
mod tests;
