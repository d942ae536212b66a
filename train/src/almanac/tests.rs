use super::relations::Relation;
use super::*;
use crate::questions::most_frequent_answer_share;

const SEEDS: [u64; 4] = [0, 1, 2, 77];
/// As long as what the quick start trains on.
const BYTES: usize = 1_000_000;

#[test]
fn a_seed_gives_one_world_and_another_seed_another() {
    assert_eq!(Almanac::new(1).text(5000), Almanac::new(1).text(5000));
    assert_eq!(Almanac::new(1).questions(), Almanac::new(1).questions());
    assert_ne!(Almanac::new(1).text(5000), Almanac::new(2).text(5000));
    let (short, long) = (Almanac::new(3).text(30_000), Almanac::new(3).text(90_000));
    assert_eq!(short, long[..short.len()], "a shorter text is the beginning of a longer one");
}

#[test]
fn the_text_is_whole_lines_of_the_length_asked_for() {
    for seed in SEEDS {
        let text = Almanac::new(seed).text(BYTES);
        assert!(text.len() >= BYTES && text.len() < BYTES + 1000, "{} bytes", text.len());
        assert!(text.is_ascii() && !text.contains(['{', '}']));
        for line in text.lines() {
            assert!(line.ends_with('.') && line.starts_with(|c: char| c.is_ascii_uppercase()), "{line}");
            for wrong in ["  ", " .", "..", " ,", " a a", " an b", " a e", " a i", "the the"] {
                assert!(!line.contains(wrong), "{wrong:?}: {line}");
            }
        }
    }
    assert_eq!(Almanac::new(0).text(0), "");
}

/// The lines that are not calendar and not questions, of some 120 rounds.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("Question:"))
}

#[test]
fn every_fact_is_stated_in_every_round_and_asked_only_if_it_is_to_be() {
    for seed in SEEDS {
        let almanac = Almanac::new(seed);
        assert!((100..=200).contains(&almanac.fact_count()), "{} facts", almanac.fact_count());
        let text = almanac.text(BYTES);
        for (subject, fact) in almanac.facts() {
            let (name, value, kind) = (&subject.name, &fact.value, fact.relation.kind);
            let stated =
                entries(&text).filter(|line| line.contains(name.as_str()) || line.contains(&telling::capital(name)));
            let stated = stated.filter(|line| line.contains(value.as_str())).count();
            assert!(stated >= 100, "{kind} of {name}: stated {stated} times in {BYTES} bytes");
            let asked = fact.relation.questions.iter().map(|q| text.matches(&fill(q, name, value)).count());
            let asked: usize = asked.sum();
            // Of some 120 rounds a fifth, 24: less four standard deviations of 4.4.
            assert_eq!(asked >= 6, fact.asked, "{kind} of {name}: asked {asked} times");
            assert!(fact.asked || asked == 0, "{kind} of {name}: held out, and asked {asked} times");
        }
    }
}

/// Each phrasing of a relation that names the subject, filled, in lower case: the first letter of a sentence is a capital one.
fn phrasings(relation: &Relation, name: &str, value: &str) -> Vec<String> {
    let predicates = relation.predicates.iter().map(|p| format!("{{s}} {p}"));
    let templates = predicates.chain(relation.statements.iter().map(ToString::to_string));
    templates.map(|template| fill(&template, name, value).to_lowercase()).collect()
}

#[test]
fn facts_do_not_contradict_each_other() {
    for seed in SEEDS {
        let almanac = Almanac::new(seed);
        let text = almanac.text(BYTES / 5).to_lowercase();
        let (mut right, mut wrong) = (0, 0);
        for (subject, fact) in almanac.facts() {
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(&subject.name.to_lowercase())).collect();
            let mut others: Vec<&str> = almanac
                .facts()
                .filter(|(_, f)| f.relation.kind == fact.relation.kind && f.value != fact.value)
                .map(|(_, f)| f.value.as_str())
                .collect();
            others.sort();
            others.dedup();
            let said = |value: &str| {
                let phrasings = phrasings(fact.relation, &subject.name, value);
                phrasings.iter().map(|p| lines.iter().filter(|line| line.contains(p.as_str())).count()).sum::<usize>()
            };
            right += said(&fact.value);
            wrong += others.into_iter().map(said).sum::<usize>();
        }
        assert!(wrong == 0 && right > 1000, "seed {seed}: {right} right statements, {wrong} wrong ones");
    }
}

/// An answer is right if the text says so in a plain sentence.
#[test]
fn answers_are_right() {
    for seed in SEEDS {
        let almanac = Almanac::new(seed);
        let (text, questions) = (almanac.text(BYTES), almanac.questions());
        let lower = text.to_lowercase();
        assert_eq!(questions.cloze.len(), almanac.fact_count());
        assert_eq!(questions.seen.len() + questions.held_out.len(), almanac.fact_count());
        assert!(questions.held_out.len() >= 70, "{} held out", questions.held_out.len());
        for question in &questions.seen {
            let line = format!("\n{} {}.\n", question.prompt, question.answers[0]);
            let pair = text.matches(&line).count();
            assert!(pair >= 1, "the text does not hold {line:?}");
        }
        for question in questions.held_out.iter().chain(&questions.cloze) {
            assert!(!text.contains(&question.prompt), "the text holds {:?}", question.prompt);
            let (subject, fact) = almanac
                .facts()
                .find(|(subject, fact)| {
                    question.kind.as_deref() == Some(fact.relation.kind)
                        && question.prompt.to_lowercase().contains(&subject.name.to_lowercase())
                })
                .expect("a question names its subject");
            let plain = phrasings(fact.relation, &subject.name, question.answers.last().unwrap());
            assert!(plain.iter().any(|p| lower.contains(p.as_str())), "{question:?}: the text never says so");
        }
        // No phrasing of a cloze question is there about any subject.
        for (subject, fact) in almanac.facts() {
            for phrasing in fact.relation.cloze {
                let phrasing = fill(phrasing, &subject.name, "");
                assert!(!text.contains(&phrasing) && !text.contains(&telling::capital(&phrasing)), "{phrasing}");
            }
        }
    }
}

/// So that three times what the most frequent answer gets is well below all of them.
#[test]
fn no_answer_is_frequent() {
    for seed in SEEDS {
        let share = most_frequent_answer_share(&Almanac::new(seed).questions().held_out);
        assert!(share > 0.05 && share < 0.25, "seed {seed}: {share}");
    }
}

#[test]
fn articles_and_capitals() {
    assert_eq!(fill("{s} is {a}", "Tilda", "engraver"), "Tilda is an engraver");
    assert_eq!(fill("{s} is {a}", "Tilda", "baker"), "Tilda is a baker");
    assert_eq!(telling::capital("the Long Frost"), "The Long Frost");
    assert_eq!(telling::capital(""), "");
}
