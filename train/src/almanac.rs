//! The almanac: a seeded closed world of invented people and places, told as plain English.
//!
//! A fresh machine has no corpus and needs no download: the quick start trains on this text. Each fact (who lives where, who
//! does what, what a town is known for) is told many times in different words, so that a small model can learn both the
//! language and the facts within minutes.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// An invented world: the same for the same seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Almanac {
    people: Vec<Person>,
    towns: Vec<Town>,
    seed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Person {
    name: String,
    trade: &'static Trade,
    town: usize,
    born: u32,
    friend: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Town {
    name: String,
    river: String,
    goods: &'static str,
    fair: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
struct Trade {
    name: &'static str,
    makes: &'static str,
    tool: &'static str,
}

const fn trade(name: &'static str, makes: &'static str, tool: &'static str) -> Trade {
    Trade { name, makes, tool }
}

const TRADES: [Trade; 16] = [
    trade("baker", "bread", "an oven"),
    trade("weaver", "cloth", "a loom"),
    trade("cooper", "barrels", "an adze"),
    trade("potter", "bowls", "a wheel"),
    trade("smith", "horseshoes", "an anvil"),
    trade("miller", "flour", "a millstone"),
    trade("tanner", "leather", "a scraper"),
    trade("carpenter", "tables", "a plane"),
    trade("clockmaker", "clocks", "a small file"),
    trade("beekeeper", "honey", "a smoker"),
    trade("cartwright", "carts", "a spokeshave"),
    trade("chandler", "candles", "a dipping frame"),
    trade("glazier", "windows", "a diamond"),
    trade("printer", "almanacs", "a press"),
    trade("shipwright", "boats", "a mallet"),
    trade("brewer", "ale", "a copper kettle"),
];

const GOODS: [&str; 12] = [
    "apples",
    "blue glass",
    "wool",
    "salt",
    "smoked trout",
    "cheese",
    "slate",
    "walnuts",
    "paper",
    "pears",
    "rope",
    "bells",
];

const SEASONS: [&str; 4] = ["spring", "summer", "autumn", "winter"];

const TOWNS: usize = 24;
const PEOPLE: usize = 64;

impl Almanac {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Almanac {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut names = Names::default();
        let towns = (0..TOWNS)
            .map(|_| Town {
                name: names.next(&mut rng, &["ford", "wick", "ham", "mere", "stow", "den"]),
                river: names.next(&mut rng, &["a", "e", "an", "or"]),
                goods: pick(&mut rng, &GOODS),
                fair: pick(&mut rng, &SEASONS),
            })
            .collect();
        let people = (0..PEOPLE)
            .map(|i| Person {
                name: names.next(&mut rng, &["a", "o", "in", "el", "is", "ert"]),
                trade: &TRADES[rng.random_range(0..TRADES.len())],
                town: rng.random_range(0..TOWNS),
                born: rng.random_range(1801..1880),
                // Anyone but oneself.
                friend: (i + rng.random_range(1..PEOPLE)) % PEOPLE,
            })
            .collect();
        Almanac { people, towns, seed }
    }

    /// Entries of the almanac, one paragraph a line, until there are at least `bytes` bytes of text.
    pub fn text(&self, bytes: usize) -> String {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0x7E47);
        let mut text = String::with_capacity(bytes + 512);
        while text.len() < bytes {
            if rng.random_bool(0.75) {
                self.tell_of_person(&mut rng, &mut text);
            } else {
                self.tell_of_town(&mut rng, &mut text);
            }
            text.push('\n');
        }
        text
    }

    fn tell_of_person(&self, rng: &mut Xoshiro256PlusPlus, text: &mut String) {
        let who = &self.people[rng.random_range(0..PEOPLE)];
        let (name, trade, town) = (&who.name, who.trade, &self.towns[who.town]);
        let friend = &self.people[who.friend];
        let mut facts = [
            pick(
                rng,
                &[
                    "{name} is a {trade} in {town}.",
                    "In {town} lives {name}, the {trade}.",
                    "{name} works as a {trade}, and lives in {town}.",
                ],
            ),
            pick(
                rng,
                &[
                    "{name} was born in {born}.",
                    "The year of birth of {name} is {born}.",
                    "It was in {born} that {name} was born.",
                ],
            ),
            pick(
                rng,
                &[
                    "{name} makes {makes} with {tool}.",
                    "With {tool}, {name} makes {makes}.",
                    "The {makes} of {name} are made with {tool}.",
                ],
            ),
            pick(
                rng,
                &[
                    "The best friend of {name} is {friend}.",
                    "{name} has a friend called {friend}.",
                    "{friend} is a friend of {name}.",
                ],
            ),
        ];
        shuffle(rng, &mut facts);
        for fact in &facts[..rng.random_range(2..=4)] {
            let told = fact
                .replace("{name}", name)
                .replace("{trade}", trade.name)
                .replace("{town}", &town.name)
                .replace("{born}", &who.born.to_string())
                .replace("{makes}", trade.makes)
                .replace("{tool}", trade.tool)
                .replace("{friend}", &friend.name);
            push_sentence(text, &told);
        }
    }

    fn tell_of_town(&self, rng: &mut Xoshiro256PlusPlus, text: &mut String) {
        let town = &self.towns[rng.random_range(0..TOWNS)];
        let mut facts = [
            pick(
                rng,
                &[
                    "{town} lies on the river {river}.",
                    "The river {river} runs through {town}.",
                    "By the river {river} stands {town}.",
                ],
            ),
            pick(
                rng,
                &[
                    "{town} is known for its {goods}.",
                    "People come to {town} for the {goods}.",
                    "The {goods} of {town} are the best in the land.",
                ],
            ),
            pick(
                rng,
                &[
                    "The fair of {town} is held in {fair}.",
                    "In {fair}, {town} holds its fair.",
                    "Every {fair} there is a fair in {town}.",
                ],
            ),
        ];
        shuffle(rng, &mut facts);
        for fact in &facts[..rng.random_range(2..=3)] {
            let told = fact
                .replace("{town}", &town.name)
                .replace("{river}", &town.river)
                .replace("{goods}", town.goods)
                .replace("{fair}", town.fair);
            push_sentence(text, &told);
        }
    }
}

/// Makes names that do not repeat.
#[derive(Default)]
struct Names {
    used: Vec<String>,
}

impl Names {
    fn next(&mut self, rng: &mut Xoshiro256PlusPlus, endings: &[&str]) -> String {
        const ONSETS: [&str; 18] =
            ["B", "Br", "C", "D", "Dr", "F", "G", "H", "L", "M", "N", "P", "R", "S", "T", "Th", "V", "W"];
        const MIDDLES: [&str; 14] =
            ["al", "ar", "el", "en", "er", "il", "in", "ol", "or", "os", "ul", "und", "ath", "eld"];
        loop {
            let name = format!("{}{}{}", pick(rng, &ONSETS), pick(rng, &MIDDLES), pick(rng, endings));
            if !self.used.contains(&name) {
                self.used.push(name.clone());
                return name;
            }
        }
    }
}

fn pick<T: Copy>(rng: &mut Xoshiro256PlusPlus, from: &[T]) -> T {
    *from.choose(rng).expect("the lists of the almanac are not empty")
}

fn shuffle<T>(rng: &mut Xoshiro256PlusPlus, items: &mut [T]) {
    use rand::seq::SliceRandom;
    items.shuffle(rng);
}

fn push_sentence(text: &mut String, sentence: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push(' ');
    }
    text.push_str(sentence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_world_and_another_seed_another() {
        assert_eq!(Almanac::new(1).text(5000), Almanac::new(1).text(5000));
        assert_ne!(Almanac::new(1).text(5000), Almanac::new(2).text(5000));
    }

    #[test]
    fn the_text_is_whole_sentences_of_the_length_asked_for() {
        let text = Almanac::new(7).text(100_000);
        assert!(text.len() >= 100_000 && text.len() < 101_000);
        assert!(text.is_ascii() && !text.contains('{') && !text.contains('}'));
        for line in text.lines() {
            assert!(line.ends_with('.') && line.starts_with(|c: char| c.is_ascii_uppercase()), "{line}");
        }
    }

    #[test]
    fn facts_do_not_contradict_each_other() {
        let world = Almanac::new(3);
        let text = world.text(200_000);
        for person in &world.people {
            let born = format!("{} was born in ", person.name);
            for place in text.match_indices(&born) {
                let year = &text[place.0 + born.len()..][..4];
                assert_eq!(year, person.born.to_string(), "{}", person.name);
            }
        }
    }
}
