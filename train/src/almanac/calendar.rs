//! What an almanac holds besides facts: the months, the weather, advice. Free combinations, so that the text is not all facts and
//! no sentence of it can be learnt by heart.

use super::pick;
use rand::Rng;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEATHER: [&str; 10] = [
    "the wind turns to the north",
    "rain falls on most days",
    "the mornings are white with frost",
    "thunder rolls over the hills",
    "the fog does not lift before noon",
    "the nights are short and warm",
    "the roads are deep in mud",
    "the sky is high and clear",
    "hail may ruin the orchards",
    "a dry wind comes from the east",
];

const WORK: [&str; 12] = [
    "the farmers sow barley",
    "the shepherds bring down their flocks",
    "the hay is cut",
    "the children gather nuts",
    "the boats are tarred",
    "the roofs are mended",
    "the geese are fattened",
    "the cellars are filled",
    "the bees are moved to the heath",
    "the wood is stacked for the winter",
    "the ditches are cleared",
    "the apples are pressed",
];

const SIGNS: [&str; 10] = [
    "swallows fly low",
    "the moon has a ring",
    "the cat sleeps by the stove",
    "the smoke falls to the ground",
    "spiders leave their webs",
    "the cock crows at dusk",
    "the evening sky is red",
    "ants carry their eggs uphill",
    "the owl calls by day",
    "the hills look near",
];

const MEANINGS: [&str; 8] = [
    "rain is not far",
    "the day will be fair",
    "a storm is on its way",
    "keep the washing indoors",
    "the frost will last",
    "expect a guest",
    "sow nothing that week",
    "the harvest will be rich",
];

const CROPS: [&str; 12] =
    ["barley", "peas", "flax", "oats", "beans", "onions", "rye", "cabbage", "parsley", "turnips", "hops", "garlic"];

const PLACES: [&str; 8] = [
    "in a dry cellar",
    "under clean straw",
    "near the well",
    "on the south side of the house",
    "away from the sheep",
    "in the shade of a wall",
    "beside the beehives",
    "where the snow melts first",
];

const AILMENTS: [&str; 8] =
    ["a cough", "tired feet", "a bad tooth", "a cold", "burnt fingers", "a heavy heart", "hiccups", "a stiff neck"];

const REMEDIES: [&str; 8] = [
    "warm milk with honey",
    "an hour of sleep",
    "a walk before breakfast",
    "tea of elder flowers",
    "a slice of raw onion",
    "an old song",
    "a cloth dipped in cold water",
    "a spoonful of vinegar",
];

/// A sentence or two of calendar.
pub fn tell(rng: &mut impl Rng) -> String {
    let month = pick(rng, &MONTHS);
    let (weather, work, sign, meaning) =
        (pick(rng, &WEATHER), pick(rng, &WORK), pick(rng, &SIGNS), pick(rng, &MEANINGS));
    let (crop, place, ailment, remedy) =
        (pick(rng, &CROPS), pick(rng, &PLACES), pick(rng, &AILMENTS), pick(rng, &REMEDIES));
    match rng.next_u32() % 8 {
        0 => format!("In {month} {weather}, and {work}."),
        1 => format!("{month} is the month in which {work}."),
        2 => format!("When {sign}, {meaning}."),
        3 => format!("If {sign} in {month}, {meaning}, say the old people."),
        4 => format!("Sow {crop} {place} before {month} is over, or wait until {weather}."),
        5 => format!("Keep your {crop} {place}. There is nothing better for {ailment} than {remedy}."),
        6 => format!("Against {ailment}, try {remedy}; and if {sign}, {meaning}."),
        _ => format!("Some plant {crop} {place} when {sign}, but in {month} it is too late."),
    }
}
