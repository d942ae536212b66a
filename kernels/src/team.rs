//! Threads: one small [`Team`] that every parallel kernel takes.
//!
//! A kernel cuts its work into tasks whose boundaries depend on shapes only, and hands them to [`Team::run`]; which thread
//! takes which task is left open. Partial results go to places that belong to a task and are added in task order, so the
//! bits do not depend on the number of threads.
//!
//! Between two calls the helper threads spin for a moment before they sleep. In a training step or a decoded token, where
//! kernels follow each other within microseconds, no kernel pays a wake-up; an idle program uses no CPU.

use crate::simd::Level;
use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper spins for the next call before it sleeps. While a small model decodes on two threads of a Zen 5, it then sleeps once in
/// 500 tokens and more; with 40 microseconds in 30 to 500, and at worst in every one. With 1000, two programs that share the cores lose a fifth
/// (docs/log.md).
const PATIENCE: Duration = Duration::from_micros(100);

/// Spin-loop hints between two looks at the clock: a microsecond on a 4 GHz Zen 5, of which the look is a fortieth.
const HINTS: u32 = 100;

/// Spin-loop hints after which a leader that waits for its helpers lets other threads have its core: they may have lost theirs.
const YIELD_AFTER: u32 = 4_000;

/// Bytes of a helper's stack, as much as std gives a thread unless it is told otherwise.
const STACK: usize = 2 << 20;

/// Bytes of address space that must be free when a helper begins. Its first allocation makes glibc map 128 MiB of addresses for a heap of
/// its own (and give back what it does not keep): where those fit and little else, the stack for signals, which comes next, has no place.
const ROOM: usize = 160 << 20;

/// A level and a number of threads: where a kernel runs.
pub struct Team {
    level: Level,
    threads: usize,
    shared: Option<Arc<Shared>>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `threads` threads (the caller is one of them) that runs kernels at `level`. Panics if `threads` is 0, or the
    /// system refuses a thread: see [`try_new`](Team::try_new).
    pub fn new(level: Level, threads: usize) -> Team {
        Team::try_new(level, threads).expect("the system refused a new thread")
    }

    /// [`new`](Team::new) for a number that comes from outside: an error if the system refuses a thread. Those that had
    /// begun end first. Panics if `threads` is 0.
    pub fn try_new(level: Level, threads: usize) -> io::Result<Team> {
        assert!(threads > 0, "Team::new: a team has at least one thread");
        let mut team = Team { level, threads, shared: None, helpers: Vec::new() };
        if threads > 1 {
            let shared = team.shared.insert(Arc::new(Shared::new(threads)));
            for i in 1..threads {
                let shared = Arc::clone(shared);
                let thread = std::thread::Builder::new().name(format!("team-{i}")).stack_size(STACK);
                // A thread takes some more memory once it runs, and the process is aborted if there is none. So there must be room to
                // begin with, and those before must have taken theirs.
                Vec::<u8>::try_reserve_exact(std::hint::black_box(&mut Vec::new()), ROOM)?;
                let (begun, begins) = std::sync::mpsc::channel();
                team.helpers.push(thread.spawn(move || {
                    let _ = begun.send(());
                    shared.help(i)
                })?);
                let _ = begins.recv();
            }
        }
        Ok(team)
    }

    /// The caller alone, at `level`.
    pub fn serial(level: Level) -> Team {
        Team::new(level, 1)
    }

    /// The instruction set that kernels run at.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The team of the innermost [`install`](Team::install) on this thread, or else the default one: the level of
    /// [`Level::from_env`] and as many threads as the system offers. Panics if `KERNELS_SIMD` names a level that is not to be
    /// had; programs check it with [`Level::from_env`] first.
    pub fn current() -> Arc<Team> {
        static DEFAULT: OnceLock<Arc<Team>> = OnceLock::new();
        CURRENT.with(|current| current.borrow().last().cloned()).unwrap_or_else(|| {
            Arc::clone(DEFAULT.get_or_init(|| {
                let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
                let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
                Arc::new(Team::new(level, threads))
            }))
        })
    }

    /// Makes this the [`current`](Team::current) team of the calling thread while `f` runs.
    pub fn install<R>(self: &Arc<Team>, f: impl FnOnce() -> R) -> R {
        struct Uninstall;
        impl Drop for Uninstall {
            fn drop(&mut self) {
                CURRENT.with(|current| current.borrow_mut().pop());
            }
        }
        CURRENT.with(|current| current.borrow_mut().push(Arc::clone(self)));
        let _uninstall = Uninstall;
        f()
    }

    /// Calls `f(0)` to `f(tasks - 1)`, each once, on any of the threads, and returns when all are done.
    ///
    /// Runs on the caller alone if the team is at work already (a call from inside a task, or from a second thread), and
    /// always on a thread that is a helper, of this team or another.
    /// If a task panics, the other tasks may or may not run, and the panic goes on in the caller.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        match &self.shared {
            Some(shared) if tasks > 1 && shared.acquire() => shared.lead(tasks, &f),
            _ => (0..tasks).for_each(f),
        }
    }

    /// Cuts `data` into pieces of `chunk` elements (the last may be shorter) and calls `f(i, piece)` for each, in parallel.
    /// Panics if `chunk` is 0.
    pub fn run_chunks_mut<T: Send>(&self, data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let len = data.len();
        let data = SharedMut::new(data);
        self.run(len.div_ceil(chunk), |i| {
            // SAFETY: every task index is run once, and the ranges of different indices do not meet.
            f(i, unsafe { data.slice(i * chunk, chunk.min(len - i * chunk)) })
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.shut_down();
        }
        for helper in self.helpers.drain(..) {
            // A helper never panics outside a task, and the panic of a task is caught.
            let _ = helper.join();
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Vec<Arc<Team>>> = const { RefCell::new(Vec::new()) };
    static IS_HELPER: Cell<bool> = const { Cell::new(false) };
}

/// A mutable slice whose disjoint parts different tasks may write at once.
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    /// The slice stays borrowed, and so alive and otherwise untouched, as long as this is used.
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract rules out overlapping use; T may move between threads.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        SharedMut { ptr: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Elements `start .. start + len`. Panics if they reach beyond the slice.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[allow(clippy::mut_from_ref)] // handing out disjoint parts is its purpose
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of a slice of {}", self.len);
        // SAFETY: in bounds by the assert; exclusive by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// A call in progress: how to run a task.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

/// What the leader and the helpers share.
///
/// `state` packs the call's number (high half), a closed flag and the count of helpers inside the call. A helper joins by a
/// compare-and-swap that adds 1 while the flag is clear; the leader closes the call when no task is left and waits for the
/// count to fall to 0. So a helper that sleeps through a call costs the leader nothing, and none enters after it returned.
struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// One for each thread, the leader's first.
    shares: Box<[Share]>,
    busy: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    any_sleeper: AtomicUsize,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Tasks `next .. end` that a thread has still to run, as `next | end << 32`; in cache lines of its own, for its owner counts it up.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, tasks: Range<u64>) {
        self.0.store(tasks.start | tasks.end << 32, Ordering::Relaxed);
    }

    /// Keeps of the tasks what `kept` makes of them, and returns what they were; `None` if there were none.
    fn take(&self, kept: impl Fn(Range<u64>) -> Range<u64>) -> Option<Range<u64>> {
        let tasks = |share: u64| (share & u32::MAX as u64)..(share >> 32);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |share| {
                let tasks = tasks(share);
                (!tasks.is_empty()).then(|| {
                    let kept = kept(tasks);
                    kept.start | kept.end << 32
                })
            })
            .ok()
            .map(tasks)
    }
}

const CLOSED: u64 = 1 << 31;
const COUNT: u64 = CLOSED - 1;
const CALL: u64 = 1 << 32;

// SAFETY: `job` is written only by the one leader (`busy`) while the call is closed and empty, and read by helpers only
// between joining and leaving an open call; the state's release and acquire order the two. The pointer in it refers to a
// closure that is Sync and outlives the call (see `lead`).
unsafe impl Sync for Shared {}
// SAFETY: as above; the value itself has no tie to a thread.
unsafe impl Send for Shared {}

impl Shared {
    fn new(threads: usize) -> Shared {
        Shared {
            state: AtomicU64::new(CLOSED),
            job: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            any_sleeper: AtomicUsize::new(0),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        }
    }

    fn acquire(&self) -> bool {
        !IS_HELPER.get() && !self.busy.swap(true, Ordering::Acquire)
    }

    fn lead(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        /// Lets the next leader in: last of all, after this call's panic was taken, which would otherwise surface in that one.
        struct Release<'a>(&'a Shared);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.busy.store(false, Ordering::Release);
            }
        }

        /// Closes the call and waits for the helpers, on return and on unwinding alike.
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.state.fetch_or(CLOSED, Ordering::SeqCst);
                let mut spins = 0u32;
                while self.0.state.load(Ordering::Acquire) & COUNT != 0 {
                    spins += 1;
                    if spins > YIELD_AFTER { std::thread::yield_now() } else { std::hint::spin_loop() }
                }
                if std::thread::panicking() {
                    // The leader's own panic goes on; one that a helper left must not surface in the next call.
                    self.0.panic.lock().unwrap().take();
                }
            }
        }

        let _release = Release(self); // declared before `close`, so dropped after it
        let f: *const (dyn Fn(usize) + Sync + '_) = f;
        // SAFETY: only the lifetime changes. The pointer is used by helpers inside this call, and `Close` waits for them
        // before this function returns or unwinds.
        let f = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(f) };
        let job = Job(f);
        // SAFETY: `busy` makes this the only leader; the call is closed and empty, so no helper reads.
        unsafe { *self.job.get() = Some(job) };
        let (tasks, threads) =
            (u32::try_from(tasks).expect("Team::run: less than 2^32 tasks") as u64, self.shares.len() as u64);
        for (i, share) in (0..).zip(&self.shares) {
            share.set(tasks * i / threads..tasks * (i + 1) / threads);
        }
        let call = (self.state.load(Ordering::Relaxed) & !(CALL - 1)).wrapping_add(CALL);
        self.state.store(call, Ordering::SeqCst);
        let close = Close(self);
        if self.any_sleeper.load(Ordering::SeqCst) > 0 {
            let _guard = self.sleepers.lock().unwrap();
            self.wake.notify_all();
        }
        self.work(0, job);
        drop(close);
        // Taken in a statement of its own: unwinding with the lock held would poison it.
        let payload = self.panic.lock().unwrap().take();
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    /// Runs the tasks of thread `me`, then half of what another has left, until nobody has any.
    ///
    /// Neighbours stay together: each thread goes through memory in order, as the hardware's streams and the kernels' hints suppose.
    fn work(&self, me: usize, job: Job) {
        loop {
            while let Some(tasks) = self.shares[me].take(|tasks| tasks.start + 1..tasks.end) {
                // SAFETY: the closure outlives the call (see `lead`), and this thread is inside it.
                unsafe { (*job.0)(tasks.start as usize) };
            }
            let upper_half = |share: &Share| {
                let middle = |tasks: &Range<u64>| tasks.start.midpoint(tasks.end);
                let tasks = share.take(|tasks| tasks.start..middle(&tasks))?;
                Some(middle(&tasks)..tasks.end)
            };
            match self.shares.iter().find_map(upper_half) {
                Some(tasks) => self.shares[me].set(tasks),
                None => return,
            }
        }
    }

    /// The life of a helper thread.
    fn help(&self, me: usize) {
        IS_HELPER.set(true);
        let mut seen = 0;
        while let Some(state) = self.wait_for_call(seen) {
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            seen = state / CALL;
            // SAFETY: joined an open call: the leader wrote the job before it opened the call and does not write now.
            let job = unsafe { (*self.job.get()).expect("an open call has a job") };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.work(me, job))) {
                self.shares.iter().for_each(|share| share.set(0..0));
                self.panic.lock().unwrap().get_or_insert(payload);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The state of an open call other than number `seen`, or `None` at the end. Spins, then sleeps.
    fn wait_for_call(&self, seen: u64) -> Option<u64> {
        let open = |state: u64| state & CLOSED == 0 && state / CALL != seen;
        let mut start = None;
        loop {
            for _ in 0..HINTS {
                let state = self.state.load(Ordering::Acquire);
                if open(state) {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                break;
            }
        }
        let mut sleepers = self.sleepers.lock().unwrap();
        *sleepers += 1;
        self.any_sleeper.store(*sleepers, Ordering::SeqCst);
        let found = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            // Looked at after announcing the sleep: a leader that opens a call later sees the announcement and notifies.
            let state = self.state.load(Ordering::SeqCst);
            if open(state) {
                break Some(state);
            }
            sleepers = self.wake.wait(sleepers).unwrap();
        };
        *sleepers -= 1;
        self.any_sleeper.store(*sleepers, Ordering::SeqCst);
        found
    }

    fn shut_down(&self) {
        let _guard = self.sleepers.lock().unwrap();
        self.stop.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let team = Team::new(Level::SCALAR, 4);
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                team.run(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50), "{tasks} tasks");
        }
    }

    #[test]
    fn calls_after_a_sleep_reach_the_helpers() {
        let team = Team::new(Level::SCALAR, 2);
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let caller = std::thread::current().id();
            let helped = AtomicBool::new(false);
            let helper_came = || helped.load(Ordering::Relaxed);
            team.run(2, |_| {
                if std::thread::current().id() == caller {
                    // Leave the second task to the helper: without it this would wait for ever.
                    while !helper_came() {
                        std::thread::yield_now();
                    }
                } else {
                    helped.store(true, Ordering::Relaxed);
                }
            });
            assert!(helper_came());
        }
    }

    /// How many helpers sleep, `pause` after a call in which they took part.
    fn sleepers_after(team: &Team, pause: Duration) -> usize {
        let shared = team.shared.as_ref().unwrap();
        let begun = AtomicUsize::new(0);
        team.run(team.threads(), |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            while begun.load(Ordering::Relaxed) < team.threads() {
                std::thread::yield_now();
            }
        });
        let start = Instant::now();
        while start.elapsed() < pause {
            std::hint::spin_loop();
        }
        shared.any_sleeper.load(Ordering::SeqCst)
    }

    #[test]
    fn helpers_wait_awake_for_a_while_and_then_sleep() {
        let team = Team::new(Level::SCALAR, 2);
        let soon = |what: &str, found: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !found() {
                assert!(start.elapsed() < Duration::from_secs(30), "Team: {what}");
            }
        };
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
            // Where both have to share a core for now, because other programs are at work, the helper sleeps before the caller goes on.
            soon("a helper sleeps at once", &|| sleepers_after(&team, PATIENCE / 2) == 0);
        }
        soon("an idle helper does not sleep", &|| sleepers_after(&team, 20 * PATIENCE) == 1);
    }

    #[test]
    fn nested_and_concurrent_calls_run_on_their_caller() {
        let team = Team::new(Level::SCALAR, 3);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    team.run(10, |_| {
                        team.run(10, |_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 300);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(Level::SCALAR, 2);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| team.run(8, |i| assert_ne!(i, 5, "task five"))));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            team.run(8, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 28);
        }
    }

    /// Two threads share the team. The panics of one must not surface in the other, nor be lost.
    #[test]
    fn a_panic_reaches_the_caller_whose_task_it_was() {
        let team = Team::new(Level::SCALAR, 3);
        let calls = 20_000;
        std::thread::scope(|scope| {
            let calm = scope.spawn(|| {
                (0..calls).all(|_| {
                    let count = AtomicUsize::new(0);
                    let add = |_| {
                        count.fetch_add(1, Ordering::Relaxed);
                    };
                    catch_unwind(AssertUnwindSafe(|| team.run(4, add))).is_ok() && count.into_inner() == 4
                })
            });
            let wild = scope.spawn(|| {
                let caller = std::thread::current().id();
                (0..calls).all(|_| {
                    let raised = AtomicBool::new(false);
                    let raise_on_helpers = |i| {
                        if std::thread::current().id() != caller {
                            raised.store(true, Ordering::Relaxed);
                            resume_unwind(Box::new(i)); // a panic without the message of `panic!`
                        }
                    };
                    let result = catch_unwind(AssertUnwindSafe(|| team.run(4, raise_on_helpers)));
                    result.is_err() == raised.into_inner()
                })
            });
            assert!(calm.join().unwrap(), "Team::run: a call without a panic panicked or lost a task");
            assert!(wild.join().unwrap(), "Team::run: a panic was lost");
        });
    }

    /// Calls of all sizes, with and without pauses (helpers spin, sleep, come late): every task once, its writes seen by the
    /// caller, the caller's writes seen by every task.
    #[test]
    fn stress() {
        let team = Team::new(Level::SCALAR, 4);
        let (mut input, mut output) = (vec![0usize; 64], vec![0usize; 64]);
        for call in 1..30_000 {
            let tasks = call * 7 % 64;
            input.fill(call);
            {
                let output = SharedMut::new(&mut output);
                // SAFETY: task i writes element i alone.
                team.run(tasks, |i| unsafe { output.slice(i, 1)[0] = input[i] + i });
            }
            for (i, &x) in output[..tasks].iter().enumerate() {
                assert_eq!(x, call + i, "Team::run: call {call}, task {i} of {tasks}");
            }
            if call % 1000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn chunks_cover_the_slice() {
        let team = Team::new(Level::SCALAR, 2);
        let mut data = vec![0u32; 103];
        team.run_chunks_mut(&mut data, 10, |i, piece| piece.iter_mut().for_each(|x| *x += i as u32 + 1));
        let expected: Vec<u32> = (0..103).map(|i| i / 10 + 1).collect();
        assert_eq!(data, expected);
    }

    #[test]
    fn install_nests() {
        let outer = Arc::new(Team::new(Level::SCALAR, 1));
        let inner = Arc::new(Team::new(Level::PORTABLE, 3));
        outer.install(|| {
            inner.install(|| assert_eq!(Team::current().threads(), 3));
            assert_eq!(Team::current().level(), Level::SCALAR);
        });
    }
}
