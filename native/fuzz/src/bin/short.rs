//! Replays the seeds of a target, and runs it on changes of them; the same every time.
//!
//! Usage: short TARGET SEEDS RUNS; writes the bytes that fail to `failed-TARGET` in the working directory.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use fgclip_rt_fuzz::{attempt, TARGETS};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, folder, runs] = arguments.as_slice() else { panic!("usage: short TARGET SEEDS RUNS") };
    let (_, target) = TARGETS.iter().find(|(known, _)| known == name).expect("a target");
    let runs: usize = runs.parse().expect("a number of runs");
    let seeds = seeds(Path::new(folder));
    assert!(!seeds.is_empty(), "{folder} has no seeds");
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for run in 0..seeds.len() + runs {
        let data = seeds.get(run).cloned().unwrap_or_else(|| random.change(&seeds));
        if let Err(fault) = attempt(*target, &data) {
            fs::write(format!("failed-{name}"), &data).expect("the folder is writable");
            println!("{name} failed in run {run}: {fault}");
            return ExitCode::FAILURE;
        }
    }
    println!("{name}: {} seeds and {runs} changes of them", seeds.len());
    ExitCode::SUCCESS
}

/// The files of a folder, by name.
fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// Marsaglia's xorshift of 64 bits.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end.max(1)
    }

    /// One of the seeds with up to eight changes.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        const WORDS: [&[u8]; 12] = [
            b"0",
            b"-1",
            b"2147483648",
            b"1e999",
            b"null",
            b"{}",
            b"[]",
            b"\"\"",
            b"\xff",
            b"\0",
            b"\\u0000",
            b"\xf0\x9f\xa6\x8a",
        ];
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(data.len() + 1);
            let end = (at + 1 + self.below(16)).min(data.len());
            match self.below(6) {
                0 if at < data.len() => data[at] ^= 1 << self.below(8),
                1 if at < data.len() => data[at] = self.below(256) as u8,
                2 => drop(data.drain(at..end)),
                3 => drop(data.splice(at..end, WORDS[self.below(WORDS.len())].iter().copied())),
                4 => {
                    let piece = data[at..end].to_vec();
                    data.splice(at..at, piece);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let to = (from + self.below(64)).min(other.len());
                    data.splice(at..end, other[from..to].iter().copied());
                }
            }
        }
        data
    }
}
