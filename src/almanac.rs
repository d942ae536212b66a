//! `silurian almanac`: the built-in corpus as files.

use crate::terminal::{grouped, quoted, say};
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::almanac::Almanac;
use train::questions::{self, Question};

/// Write the built-in corpus: a text about an invented world, and questions about it.
///
/// The quick start trains on this text. Half of its facts are asked and answered in the text; the other half is only stated there,
/// and their questions are held out. So a model answers a held-out question only if it has learnt the fact from statements.
///
/// Files: almanac.txt; questions.jsonl, held out; questions-seen.jsonl, which the text answers; questions-cloze.jsonl, the
/// beginnings of sentences that the text never uses. Files that are there already are not overwritten.
#[derive(clap::Args)]
pub struct Args {
    /// Of the world: another seed, other people, towns and events
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Bytes of the text, to the end of a line
    #[arg(long, value_name = "N", default_value_t = TEXT_BYTES)]
    bytes: usize,

    /// The folder
    #[arg(long, value_name = "DIR", default_value = "almanac")]
    out: PathBuf,
}

/// Each of the 152 facts is stated in about 120 entries.
pub const TEXT_BYTES: usize = 1_000_000;

/// A text this long says the same facts a hundred thousand times.
const MAX_BYTES: usize = 1 << 30;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.bytes == 0 || args.bytes > MAX_BYTES {
        bail!("--bytes {}: must be 1 to {MAX_BYTES}", args.bytes);
    }
    let almanac = Almanac::new(args.seed);
    let files = Files::of(&args.out);
    files.write(&almanac, args.bytes)?;
    let questions = almanac.questions();
    let size = fs::metadata(&files.text).with_context(|| files.text.display().to_string())?.len();
    say(format_args!(
        "{}: {} bytes about a world of {} facts",
        files.text.display(),
        grouped(size),
        almanac.fact_count()
    ))?;
    for (path, of_path) in files.questions(&questions) {
        say(format_args!("{}: {} questions", path.display(), of_path.len()))?;
    }
    say(format_args!("\nNext:\n  silurian train {} --preset 5m --name almanac", quoted(&files.text)))?;
    Ok(ExitCode::SUCCESS)
}

/// The files of an almanac.
pub struct Files {
    /// The text to train on.
    pub text: PathBuf,
    /// The questions that it never asks.
    pub held_out: PathBuf,
    seen: PathBuf,
    cloze: PathBuf,
}

impl Files {
    /// Those in this folder, which need not be there.
    pub fn of(folder: &Path) -> Files {
        Files {
            text: folder.join("almanac.txt"),
            held_out: folder.join("questions.jsonl"),
            seen: folder.join("questions-seen.jsonl"),
            cloze: folder.join("questions-cloze.jsonl"),
        }
    }

    /// Writes all of them; none if one is there.
    pub fn write(&self, almanac: &Almanac, bytes: usize) -> anyhow::Result<()> {
        if let Some(taken) =
            [&self.text, &self.held_out, &self.seen, &self.cloze].into_iter().find(|p| p.symlink_metadata().is_ok())
        {
            bail!("{}: is there already; remove it, or choose another folder with --out", taken.display());
        }
        let folder = self.text.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))?;
        for (path, questions) in self.questions(&almanac.questions()) {
            questions::write(path, questions)?;
        }
        let written = File::create_new(&self.text).and_then(|mut file| file.write_all(almanac.text(bytes).as_bytes()));
        written.with_context(|| format!("{}: cannot be written", self.text.display()))
    }

    /// Whether all are there and hold what [`write`](Files::write) would write.
    pub fn hold(&self, almanac: &Almanac, bytes: usize) -> bool {
        fs::read_to_string(&self.text).is_ok_and(|text| text == almanac.text(bytes))
            && self
                .questions(&almanac.questions())
                .iter()
                .all(|(path, questions)| questions::read(path).is_ok_and(|read| read == *questions))
    }

    fn questions<'a>(&'a self, questions: &'a train::almanac::Questions) -> [(&'a Path, &'a [Question]); 3] {
        [(&self.held_out, &questions.held_out), (&self.seen, &questions.seen), (&self.cloze, &questions.cloze)]
            .map(|(path, questions)| (path.as_path(), questions.as_slice()))
    }
}
