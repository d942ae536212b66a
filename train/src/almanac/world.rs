//! The world of a seed: who and what there is, and every fact about it.

use super::relations::{OF_EVENTS, OF_PERSONS, OF_TOWNS, Relation};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// A person, a town or an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// As in the middle of a sentence: `Branor`, `the Long Frost`.
    pub name: String,
    /// `he`, `she` or `it`.
    pub pronoun: &'static str,
    /// What is told of it, in the order of its relations.
    pub facts: Vec<Fact>,
}

/// One fact about a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What kind of fact.
    pub relation: &'static Relation,
    /// Of the relation: `Tulmere`, `weaver`, `1843`.
    pub value: String,
    /// Whether the text holds its questions and their answers. If not, the text only states it.
    pub asked: bool,
}

/// The plural of each takes an s, and `an` goes before a vowel: see `fill`.
const TRADES: [&str; 20] = [
    "baker",
    "weaver",
    "cooper",
    "potter",
    "blacksmith",
    "miller",
    "tanner",
    "carpenter",
    "clockmaker",
    "beekeeper",
    "innkeeper",
    "chandler",
    "glazier",
    "printer",
    "engraver",
    "tailor",
    "wheelwright",
    "saddler",
    "fisher",
    "roofer",
];

const INSTRUMENTS: [&str; 20] = [
    "fiddle",
    "flute",
    "drum",
    "harp",
    "horn",
    "lute",
    "bagpipe",
    "accordion",
    "oboe",
    "zither",
    "organ",
    "trumpet",
    "viola",
    "whistle",
    "cello",
    "mandolin",
    "clarinet",
    "piano",
    "rattle",
    "dulcimer",
];

/// Plurals, so that `are` fits.
const GOODS: [&str; 20] = [
    "apples",
    "blue bowls",
    "blankets",
    "cheeses",
    "smoked eels",
    "walnuts",
    "pears",
    "ropes",
    "bells",
    "oak barrels",
    "paper lanterns",
    "herbs",
    "mirrors",
    "wool socks",
    "candles",
    "ink pots",
    "gloves",
    "knives",
    "dolls",
    "sausages",
];

const EVENTS: [&str; 12] = [
    "the Long Frost",
    "the Great Flood",
    "the Burning of the Mills",
    "the Red Storm",
    "the Year of Locusts",
    "the Fall of the Bridge",
    "the Silent Fever",
    "the Black Harvest",
    "the Night of Hail",
    "the War of the Carts",
    "the Bitter Drought",
    "the Breaking of the Dam",
];

const PERSONS: usize = 20;
const TOWNS: usize = 20;

/// The subjects of a world, in the order persons, towns, events. Of each relation, half of the facts (the larger half) are asked.
pub fn subjects(rng: &mut impl Rng) -> Vec<Subject> {
    let mut names = Names::default();
    let towns: Vec<String> = (0..TOWNS).map(|_| names.next(rng, &TOWN_ENDINGS)).collect();
    let rivers = (0..TOWNS).map(|_| names.next(rng, &RIVER_ENDINGS)).collect();
    let persons: Vec<(String, &str)> = (0..PERSONS)
        .map(|i| {
            let (pronoun, endings) = [("he", &HIS_ENDINGS), ("she", &HER_ENDINGS)][i % 2];
            (names.next(rng, endings), pronoun)
        })
        .collect();
    let person_names: Vec<String> = persons.iter().map(|(name, _)| name.clone()).collect();

    let columns = [
        dealt(rng, &towns, PERSONS),
        dealt(rng, &TRADES, PERSONS),
        years(rng, PERSONS),
        dealt(rng, &INSTRUMENTS, PERSONS),
        shifted(rng, &person_names),
    ];
    let mut subjects = described(rng, persons, OF_PERSONS, columns);
    let columns = [rivers, dealt(rng, &GOODS, TOWNS)];
    subjects.extend(described(rng, towns.iter().map(|name| (name.clone(), "it")).collect(), OF_TOWNS, columns));
    let events = EVENTS.map(|name| (name.to_string(), "it")).to_vec();
    let columns = [years(rng, EVENTS.len())];
    subjects.extend(described(rng, events, OF_EVENTS, columns));
    subjects
}

/// Subjects with their facts: `columns[r][i]` is the value of relation `r` of subject `i`.
fn described<const R: usize>(
    rng: &mut impl Rng,
    names: Vec<(String, &'static str)>,
    relations: &'static [Relation],
    columns: [Vec<String>; R],
) -> Vec<Subject> {
    assert_eq!(relations.len(), R, "almanac: one column a relation");
    let mut subjects: Vec<Subject> =
        names.into_iter().map(|(name, pronoun)| Subject { name, pronoun, facts: Vec::new() }).collect();
    for (relation, column) in relations.iter().zip(columns) {
        let mut asked: Vec<bool> = (0..subjects.len()).map(|i| i % 2 == 0).collect();
        asked.shuffle(rng);
        for ((subject, value), asked) in subjects.iter_mut().zip(column).zip(asked) {
            subject.facts.push(Fact { relation, value, asked });
        }
    }
    subjects
}

/// `count` of the values in a random order, each as often as the others or once more.
fn dealt<T: AsRef<str>>(rng: &mut impl Rng, values: &[T], count: usize) -> Vec<String> {
    let mut dealt = Vec::with_capacity(count);
    while dealt.len() < count {
        let mut deck: Vec<String> = values.iter().map(|v| v.as_ref().to_string()).collect();
        deck.shuffle(rng);
        dealt.extend(deck.into_iter().take(count - dealt.len()));
    }
    dealt.shuffle(rng);
    dealt
}

/// `count` different years.
fn years(rng: &mut impl Rng, count: usize) -> Vec<String> {
    let mut years: Vec<u32> = (1801..1881).collect();
    years.shuffle(rng);
    years[..count].iter().map(u32::to_string).collect()
}

/// To each name another one, and none twice.
fn shifted(rng: &mut impl Rng, names: &[String]) -> Vec<String> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.shuffle(rng);
    let mut to = vec![String::new(); names.len()];
    for (i, &from) in order.iter().enumerate() {
        to[from] = names[order[(i + 1) % order.len()]].clone();
    }
    to
}

const TOWN_ENDINGS: [&str; 8] = ["ford", "wick", "ham", "mere", "stow", "den", "by", "combe"];
const RIVER_ENDINGS: [&str; 4] = ["ey", "une", "ade", "oss"];
const HIS_ENDINGS: [&str; 4] = ["o", "in", "ert", "or"];
const HER_ENDINGS: [&str; 4] = ["a", "ia", "wen", "eth"];

/// Makes names, no two of them with the same first two letters: byte by byte, likeness is what makes facts hard to tell apart.
#[derive(Default)]
struct Names {
    used: Vec<String>,
}

impl Names {
    fn next(&mut self, rng: &mut impl Rng, endings: &[&str]) -> String {
        const ONSETS: [&str; 18] =
            ["B", "Br", "C", "D", "Dr", "F", "G", "H", "L", "M", "N", "P", "R", "S", "T", "Th", "V", "W"];
        const MIDDLES: [&str; 14] =
            ["al", "ar", "el", "en", "er", "il", "in", "ol", "or", "os", "ul", "und", "ath", "eld"];
        let pick = |rng: &mut _, from: &[&'static str]| from[RngExt::random_range(rng, 0..from.len())];
        loop {
            let name =
                format!("{}{}{}", pick(rng, &ONSETS), pick(rng, &MIDDLES), endings[rng.random_range(0..endings.len())]);
            if !self.used.iter().any(|used| used[..2] == name[..2]) {
                self.used.push(name.clone());
                return name;
            }
        }
    }
}
