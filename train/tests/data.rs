//! Data: what is read, in which order, and how bad data are refused; the token cache; batches.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use train::data::{Batches, DataError, Documents, Tokenizer, Tokens};

fn documents(paths: &[PathBuf]) -> Result<Vec<String>, DataError> {
    let mut all = Vec::new();
    Documents::open(paths, "text")?.for_each::<DataError>(|text| {
        all.push(text.to_string());
        Ok(())
    })?;
    Ok(all)
}

fn tokens(paths: &[PathBuf], cache: &Path) -> (Vec<u32>, String, Vec<String>) {
    let mut notes = Vec::new();
    let documents = Documents::open(paths, "text").unwrap();
    let tokens = Tokens::open(&documents, Tokenizer::Bytes, cache, &mut |n| notes.push(n)).unwrap();
    let mut all = vec![0; tokens.len()];
    tokens.copy(0, &mut all).unwrap();
    (all, tokens.hash(), notes)
}

#[test]
fn folders_are_walked_in_order_and_other_files_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("b/.hidden")).unwrap();
    for (name, text) in [
        ("c.txt", "C"),
        ("a.md", "A"),
        ("b/2.txt", "B2"),
        ("b/1.jsonl", "{\"text\": \"x\", \"n\": 1}\n\n{\"text\":\"y\\n\"}"),
        ("b/.hidden/3.txt", "no"),
        ("b/image.png", "no"),
        (".x.txt", "no"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    let all = documents(&[dir.path().to_path_buf()]).unwrap();
    assert_eq!(all, ["A", "x", "y\n", "B2", "C"]);
    // Named files are taken whatever they are called, in the order given.
    assert_eq!(documents(&[at("c.txt"), at("b/image.png"), at("a.md")]).unwrap(), ["C", "no", "A"]);
    // Documents are joined by the byte 0, in the cache too.
    let (tokens, ..) = tokens(&[dir.path().to_path_buf()], &at("cache"));
    assert_eq!(tokens, b"A\0x\0y\n\0B2\0C".map(u32::from));
}

#[test]
fn bad_data_are_refused_by_file_line_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents, expected) in [
        ("utf8.jsonl", &b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"[..], "line 2: not UTF-8"),
        ("text.txt", b"one\ntwo\nthr\xe9e\n", "line 3: not UTF-8"),
        ("json.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n", "line 2: not JSON: "),
        ("two.jsonl", b"{\"text\": \"a\"} {\"text\": \"b\"}\n", "line 1: not JSON: "),
        ("array.jsonl", b"[1]\n", "line 1: an array, expected a JSON object"),
        (
            "field.jsonl",
            b"{\"text\": \"a\"}\n\n{\"body\": \"b\", \"id\": 3}\n",
            "line 3: no field \"text\"; its fields are \"body\", \"id\"",
        ),
        ("type.jsonl", b"{\"text\": 3}\n", "line 1: field \"text\" is a number, expected a string"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let message = documents(std::slice::from_ref(&path)).unwrap_err().to_string();
        assert!(message.starts_with(&format!("data: {} {expected}", path.display())), "{message}");
        // Nothing is left of a cache that could not be made.
        let cache = dir.path().join("cache");
        let opened = Documents::open(&[path], "text").unwrap();
        let refused = Tokens::open(&opened, Tokenizer::Bytes, &cache, &mut |_| {});
        assert_eq!(refused.unwrap_err().to_string(), message);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "left in the cache by {name}");
    }
    let absent = dir.path().join("absent.txt");
    let message = documents(std::slice::from_ref(&absent)).unwrap_err().to_string();
    assert!(message.starts_with(&format!("data: {}: cannot be read: ", absent.display())), "{message}");
    let empty = dir.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    assert_eq!(
        documents(std::slice::from_ref(&empty)).unwrap_err().to_string(),
        format!("data: {}: empty", empty.display())
    );
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let message = documents(std::slice::from_ref(&folder)).unwrap_err().to_string();
    assert_eq!(message, format!("data: {}: no file in it ends in .jsonl, .md, .txt", folder.display()));
}

#[test]
fn the_cache_is_made_once_found_again_and_made_again_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (text, cache) = (dir.path().join("a.txt"), dir.path().join("cache"));
    fs::write(&text, common::text(1000)).unwrap();
    let (first, hash, notes) = tokens(std::slice::from_ref(&text), &cache);
    assert!(notes.len() == 1 && notes[0].starts_with("6,000 tokens written to "), "{notes:?}");
    let file = cache.join(format!("{hash}.tokens"));
    let good = fs::read(&file).unwrap();
    assert_eq!(good.len(), 64 + 2 * 6000);
    // The same text under another name is the same data.
    let moved = dir.path().join("b.txt");
    fs::copy(&text, &moved).unwrap();
    assert_eq!(tokens(&[moved], &cache), (first.clone(), hash.clone(), vec![]));

    let mut flipped = good.clone();
    flipped[1000] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    let mut magic = good.clone();
    magic[0] = b'X';
    for (damage, expected) in [
        (good[..good.len() - 2].to_vec(), "a cache with 11998 bytes of tokens, expected 12000"),
        (longer, "a cache with 12001 bytes of tokens, expected 12000"),
        (good[..20].to_vec(), "a cache of 20 bytes, shorter than its header"),
        (vec![], "a cache of 0 bytes, shorter than its header"),
        (flipped, "the tokens of the cache are damaged"),
        (magic, "not a cache of these data"),
    ] {
        fs::write(&file, damage).unwrap();
        let (again, _, notes) = tokens(std::slice::from_ref(&text), &cache);
        assert_eq!(again, first);
        assert!(notes.len() == 2 && notes[0].contains(expected) && notes[0].contains("tokenised again"), "{notes:?}");
        assert!(fs::read(&file).unwrap() == good);
    }
    // Other text, other cache.
    fs::write(&text, common::text(999)).unwrap();
    assert_ne!(tokens(&[text], &cache).1, hash);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_the_cache_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (text, cache) = (dir.path().join("a.txt"), dir.path().join("cache"));
    fs::write(&text, common::text(1000)).unwrap();
    let (_, hash, _) = tokens(std::slice::from_ref(&text), &cache);
    fs::remove_file(cache.join(format!("{hash}.tokens"))).unwrap();
    // The temporary name leads to a device that is always full.
    let temporary = cache.join(format!(".{hash}.{}", std::process::id()));
    std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
    let opened = Documents::open(&[text], "text").unwrap();
    let message = Tokens::open(&opened, Tokenizer::Bytes, &cache, &mut |_| {}).unwrap_err().to_string();
    let expected = format!("data cache: {}: cannot be written: No space left on device", temporary.display());
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

/// A file whose byte `i` is `i % 251`, so that a token says where it is from.
fn counted(dir: &Path, len: usize, seq_len: usize, seed: u64) -> Result<Batches, DataError> {
    let path = dir.join(format!("{len}.txt"));
    fs::write(&path, (0..len).map(|i| (i % 101) as u8).collect::<Vec<u8>>()).unwrap();
    let documents = Documents::open(&[path], "text")?;
    let tokens = Tokens::open(&documents, Tokenizer::Bytes, &dir.join("cache"), &mut |_| {})?;
    Batches::new(tokens, 0.1, seq_len, seed)
}

#[test]
fn an_epoch_sees_every_window_once_and_targets_are_one_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let (len, seq_len) = (1000, 7);
    let mut batches = counted(dir.path(), len, seq_len, 3).unwrap();
    assert_eq!((batches.train_tokens(), batches.val_tokens()), (900, 100));
    let n = batches.sequences_per_epoch();
    assert_eq!(n, 899 / 7 - 1);
    let mut orders = Vec::new();
    for epoch in 0..3u64 {
        let batch = batches.train(epoch * n as u64, n).unwrap();
        let (inputs, targets) = (batch.inputs.to_vec::<u32>().unwrap(), batch.targets.to_vec::<u32>().unwrap());
        let mut starts = Vec::new();
        for (x, y) in inputs.chunks(seq_len).zip(targets.chunks(seq_len)) {
            assert!((1..seq_len).all(|t| x[t] == (x[0] + t as u32) % 101 && y[t - 1] == x[t]), "{x:?} {y:?}");
            assert_eq!(y[seq_len - 1], (x[seq_len - 1] + 1) % 101);
            starts.push(x[0]);
        }
        orders.push(starts.clone());
        // Windows that do not overlap, all shifted by one phase: n starts phase + 7 w, w from 0 to n - 1, in some order.
        let found = (0..seq_len).find(|phase| {
            let mut expected: Vec<u32> = (0..n).map(|w| ((phase + w * seq_len) % 101) as u32).collect();
            let mut starts = starts.clone();
            expected.sort();
            starts.sort();
            expected == starts
        });
        assert!(found.is_some(), "epoch {epoch} is no permutation of windows");
    }
    assert_ne!(orders[0], orders[1]);

    // A function of seed and number alone: a fresh reader that begins in the middle, across epochs, finds the same.
    let all: Vec<u32> = batches.train(0, 3 * n).unwrap().inputs.to_vec().unwrap();
    let mut fresh = counted(dir.path(), len, seq_len, 3).unwrap();
    for first in [2 * n - 5, 0, n - 1] {
        let part: Vec<u32> = fresh.train(first as u64, 9).unwrap().inputs.to_vec().unwrap();
        assert_eq!(part, all[first * seq_len..(first + 9) * seq_len]);
    }
    let mut other = counted(dir.path(), len, seq_len, 4).unwrap();
    assert_ne!(other.train(0, n).unwrap().inputs.to_vec::<u32>().unwrap(), all[..n * seq_len]);

    // Validation: from the split on, in order.
    assert_eq!(batches.val_sequences(), 14);
    let val = batches.val(13, 1).unwrap().targets.to_vec::<u32>().unwrap();
    assert_eq!(val[0], ((900 + 13 * 7 + 1) % 101) as u32);
}

#[test]
fn too_short_data_are_refused_with_what_there_is_and_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        counted(dir.path(), 50, 10, 0).err().unwrap().to_string(),
        "data: 5 tokens for validation, need at least 11: one sequence of seq_len = 10 and the token after it"
    );
    assert_eq!(
        counted(dir.path(), 100, 95, 0).err().unwrap().to_string(),
        "data: 90 tokens for training, need at least 96: one sequence of seq_len = 95 and the token after it"
    );
    // Just enough.
    let mut batches = counted(dir.path(), 110, 10, 0).unwrap();
    assert_eq!(batches.val_sequences(), 1);
    batches.train(0, 20).unwrap();
    batches.val(0, 1).unwrap();
}

#[test]
fn bytes_are_the_tokens_and_come_back_as_text() {
    let t = Tokenizer::Bytes;
    assert_eq!(t.encode("h\u{e9}\n"), [104, 195, 169, 10]);
    assert_eq!(t.decode(&[104, 195, 169, 10]), "h\u{e9}\n");
    assert_eq!(t.decode(&[104, 195, 300]), "h\u{fffd}\u{fffd}");
}
