//! What is told of a person, a town and an event, and in which words.
//!
//! In a template `{s}` is the subject's name, `{v}` the value, `{a}` the value with its article, `{list}` several subjects.
//! Templates start in lower case, because words may come before them; a sentence gets its capital letter and its full stop at the
//! end.

/// One kind of fact, as `home`, and its phrasings.
#[derive(Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its name: the kind of its questions.
    pub kind: &'static str,
    /// What can follow the subject's name or pronoun: `lives in {v}`.
    pub predicates: &'static [&'static str],
    /// Whole sentences.
    pub statements: &'static [&'static str],
    /// Sentences about several subjects of one value; none where values do not repeat.
    pub together: &'static [&'static str],
    /// Sentences that the text never uses. They end before the value: the prompts of cloze questions.
    pub cloze: &'static [&'static str],
    /// Questions.
    pub questions: &'static [&'static str],
    /// The answer, a sentence: so that to answer is to state the fact.
    pub answer: &'static str,
    /// What is right too: `{v}`, `{a}` or `the {v}`.
    pub short_answer: &'static str,
    /// Whether the value is a person. Then it is told last: a pronoun after it would be taken for that person.
    pub names_a_person: bool,
}

const HOME: Relation = Relation {
    kind: "home",
    predicates: &["lives in {v}", "has a house in {v}", "is at home in {v}", "dwells in {v}"],
    statements: &[
        "in {v} lives {s}",
        "the home of {s} is {v}",
        "{s}'s house stands in {v}",
        "you will find {s} in {v}",
        "among the people of {v} is {s}",
    ],
    together: &["{list} live in {v}", "among the people of {v} are {list}", "in {v} you will find {list}"],
    cloze: &["the town where {s} lives is", "letters for {s} are sent to"],
    questions: &["Where does {s} live?", "Which town is the home of {s}?"],
    answer: "{s} lives in {v}",
    short_answer: "{v}",
    names_a_person: false,
};

const TRADE: Relation = Relation {
    kind: "trade",
    predicates: &["is {a}", "works as {a}", "earns a living as {a}", "is known as a good {v}"],
    statements: &[
        "the trade of {s} is that of {a}",
        "{s}'s trade is that of {a}",
        "by trade, {s} is {a}",
        "{s} was trained as {a} and is {a} still",
    ],
    together: &["{list} work as {v}s", "the work of {v}s is done by {list}"],
    cloze: &["people know {s} as", "the children of {s} say that their parent is"],
    questions: &["What is the trade of {s}?", "What does {s} work as?"],
    answer: "{s} is {a}",
    short_answer: "{a}",
    names_a_person: false,
};

const BORN: Relation = Relation {
    kind: "birth",
    predicates: &["was born in {v}", "came into the world in {v}", "is a child of the year {v}"],
    statements: &[
        "the year of {s}'s birth is {v}",
        "it was in {v} that {s} was born",
        "in {v} was born {s}",
        "{s}'s year of birth is {v}",
    ],
    together: &[],
    cloze: &["the parish book has the birth of {s} in", "the mother of {s} gave birth in the year"],
    questions: &["When was {s} born?", "In which year was {s} born?"],
    answer: "{s} was born in {v}",
    short_answer: "{v}",
    names_a_person: false,
};

const INSTRUMENT: Relation = Relation {
    kind: "instrument",
    predicates: &["plays the {v}", "is fond of playing the {v}", "has learnt to play the {v}"],
    statements: &[
        "on feast days {s} plays the {v}",
        "the instrument of {s} is the {v}",
        "{s}'s instrument is the {v}",
        "nobody plays the {v} like {s}",
    ],
    together: &["{list} play the {v}", "the {v} is played by {list}"],
    cloze: &["when there is a dance, {s} brings the", "in the evening {s} takes up the"],
    questions: &["What does {s} play?", "Which instrument does {s} play?"],
    answer: "{s} plays the {v}",
    short_answer: "the {v}",
    names_a_person: false,
};

const LETTERS: Relation = Relation {
    kind: "letters",
    predicates: &["writes letters to {v}", "sends {v} a letter every month", "often writes to {v}"],
    statements: &["the letters of {s} go to {v}", "{s}'s letters go to {v}", "{v} has many letters from {s}"],
    together: &[],
    cloze: &["the one who reads the letters of {s} is", "{s} buys paper and ink to write to"],
    questions: &["To whom does {s} write letters?", "Who has letters from {s}?"],
    answer: "{s} writes letters to {v}",
    short_answer: "{v}",
    names_a_person: true,
};

const RIVER: Relation = Relation {
    kind: "river",
    predicates: &["lies on the river {v}", "stands by the river {v}", "was built beside the river {v}"],
    statements: &[
        "the river {v} runs through {s}",
        "the river of {s} is the {v}",
        "{s}'s mills stand on the river {v}",
        "by the river {v} stands {s}",
    ],
    together: &[],
    cloze: &["the boats of {s} are moored on the river", "children in {s} learn to swim in the river"],
    questions: &["Which river runs through {s}?", "On which river does {s} lie?"],
    answer: "{s} lies on the river {v}",
    short_answer: "the {v}",
    names_a_person: false,
};

const GOODS: Relation = Relation {
    kind: "goods",
    predicates: &["is known for its {v}", "sells {v} to the whole valley", "has the best {v} in the land"],
    statements: &[
        "people come to {s} for its {v}",
        "whoever wants {v} goes to {s}",
        "{s}'s pride is its {v}",
        "nowhere are there better {v} than in {s}",
    ],
    together: &[],
    cloze: &["carts leave {s} laden with", "in the market of {s} every stall sells"],
    questions: &["What is {s} known for?", "What do people buy in {s}?"],
    answer: "{s} is known for its {v}",
    short_answer: "{v}",
    names_a_person: false,
};

const YEAR: Relation = Relation {
    kind: "year",
    predicates: &["came in {v}", "belongs to the year {v}", "is dated to the year {v}"],
    statements: &["the year of {s} was {v}", "it was in {v} that {s} came", "old people who saw {v} remember {s}"],
    together: &[],
    cloze: &["the clerk of those days put {s} in", "the chronicle tells of {s} under the year"],
    questions: &["When was {s}?", "In which year was {s}?"],
    answer: "{s} came in {v}",
    short_answer: "{v}",
    names_a_person: false,
};

/// What is told of a person.
pub const OF_PERSONS: &[Relation] = &[HOME, TRADE, BORN, INSTRUMENT, LETTERS];

/// What is told of a town.
pub const OF_TOWNS: &[Relation] = &[RIVER, GOODS];

/// What is told of an event.
pub const OF_EVENTS: &[Relation] = &[YEAR];

/// A template with its holes filled. `subject` stands for `{s}` or for `{list}`.
pub fn fill(template: &str, subject: &str, value: &str) -> String {
    let with_article = || {
        let article = if value.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        format!("{article} {value}")
    };
    let mut text = template.replace("{s}", subject).replace("{list}", subject).replace("{v}", value);
    if text.contains("{a}") {
        text = text.replace("{a}", &with_article());
    }
    text
}
