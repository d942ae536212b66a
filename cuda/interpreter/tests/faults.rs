//! What threads do wrong, and what is said about it.

mod common;

use common::{Params, error_of, module, run_with, upload};
use ptx::{Error, Memory, Module, Options, launch};

/// A load by one thread at a distance from an allocation of 64 bytes, of which the first 32 are written.
fn load_at(offset: i64, prepare: impl Fn(&mut Memory, u64)) -> String {
    let module = module(0, "", "ld.global.v2.u32 {%r1, %r2}, [%in];\nst.global.u32 [%out], %r1;").unwrap();
    let mut memory = Memory::new();
    let x = memory.alloc(64);
    memory.write(x, &[7; 32]).unwrap();
    let out = memory.alloc(8);
    prepare(&mut memory, x);
    let params = Params::new().u64(x.wrapping_add_signed(offset)).u64(out);
    let error = launch(&module, "test", [1; 3], [1; 3], 0, &params, &mut memory, Options::default()).unwrap_err();
    error
        .to_string()
        .replace(&format!("{x:#x}"), "X")
        .replace(&format!("{:#x}", x.wrapping_add_signed(offset)), "X+offset")
}

const AT: &str = "test: block (0, 0, 0) thread (0, 0, 0), PTX line 9 `ld.global.v2.u32 {%r1, %r2}, [%in];`: ";

#[test]
fn global_memory() {
    let keep = |_: &mut Memory, _| {};
    assert_eq!(
        load_at(64, keep),
        format!("{AT}out-of-bounds read of 8 bytes at X+offset: byte 64 of allocation X of 64 bytes")
    );
    assert_eq!(
        load_at(-8, keep),
        format!("{AT}out-of-bounds read of 8 bytes at X+offset: 8 bytes before allocation X of 64 bytes")
    );
    assert_eq!(
        load_at(72, keep),
        format!("{AT}out-of-bounds read of 8 bytes at X+offset: 8 bytes past the end of allocation X of 64 bytes")
    );
    assert_eq!(
        load_at(4, keep),
        format!("{AT}misaligned address X+offset: an access of 8 bytes wants a multiple of 8")
    );
    assert_eq!(
        load_at(32, keep),
        format!("{AT}reads 8 bytes at X+offset of which one was never written: byte 32 of allocation X of 64 bytes")
    );
    assert_eq!(
        load_at(8, |memory, x| memory.free(x).unwrap()),
        format!("{AT}out-of-bounds read of 8 bytes at X+offset: byte 8 of freed allocation X of 64 bytes")
    );
    assert_eq!(
        load_at(8, |memory, x| memory.poison(x + 12, 1).unwrap()),
        format!("{AT}reads 8 bytes at X+offset of which one was never written: byte 12 of allocation X of 64 bytes")
    );
}

const SHARED: &str = ".shared .align 4 .b8 buffer[64];";

#[test]
fn shared_memory() {
    let error = error_of(0, 1, SHARED, "mov.u32 %r1, buffer;\nld.shared.u32 %r2, [%r1+60];");
    assert!(
        error.ends_with("reads 4 bytes at shared 0x3c of which byte 0x3c was never written, or is still being copied")
    );
    let error = error_of(0, 1, SHARED, "mov.u32 %r1, buffer;\nst.shared.u32 [%r1+64], %r1;");
    assert!(error.ends_with("out-of-bounds write of 4 bytes at shared 0x40; the block has 64 bytes"), "{error}");
    let error = error_of(0, 1, SHARED, "mov.u32 %r1, buffer;\nst.shared.u32 [%r1+2], %r1;");
    assert!(error.ends_with("misaligned address 0x2: an access of 4 bytes wants a multiple of 4"), "{error}");
}

#[test]
fn copies_that_nobody_waited_for() {
    let copy = "mov.u32 %r1, buffer;\ncp.async.ca.shared.global [%r1], [%in], 4;\ncp.async.commit_group;";
    let read = "ld.shared.u32 %r2, [%r1];\nst.global.u32 [%out], %r2;";
    let ok = run_with(Options::default(), SHARED, &format!("{copy}\ncp.async.wait_group 0;\n{read}"), &[vec![42]]);
    assert_eq!(ok.unwrap().0[0] as u32, 42);
    let error = error_of(0, 1, SHARED, &format!("{copy}\n{read}"));
    assert!(error.ends_with("never written, or is still being copied"), "{error}");
    let error = error_of(0, 1, SHARED, &format!("{copy}\ncp.async.wait_group 1;\n{read}"));
    assert!(error.ends_with("never written, or is still being copied"), "{error}");
}

#[test]
fn races() {
    // Thread t writes its word; the one of thread t ^ 32 is read without a barrier, one warp after the other.
    let before = ".shared .align 4 .b8 words[256];";
    let exchange = |barrier: &str| {
        format!(
            "shl.b32 %r1, %tid, 2; mov.u32 %r2, words; add.s32 %r1, %r1, %r2;\nst.shared.u32 [%r1], %tid;\nbar.sync 0;\n\
             st.shared.u32 [%r1], %r2;\n{barrier}\nxor.b32 %r3, %r1, 128;\nld.shared.u32 %r4, [%r3];\nst.global.u32 [%out], %r4;"
        )
    };
    for seed in 0..4 {
        let error = error_of(seed, 64, before, &exchange(""));
        assert!(error.contains(": race: ") && error.contains("with no barrier between"), "{error}");
        let options = Options { seed: Some(seed), ..Options::default() };
        run_with(options, before, &exchange("bar.sync 0;"), &vec![vec![0]; 64]).unwrap();
        // Within a warp the warp's own barrier is enough, and needed.
        let within = exchange("bar.warp.sync -1;").replace("128", "64");
        run_with(options, before, &within, &vec![vec![0]; 64]).unwrap();
        let error = error_of(seed, 64, before, &exchange("").replace("128", "64"));
        assert!(error.contains(": race: "), "{error}");
    }
}

#[test]
fn shuffles() {
    let diverged = "setp.lt.u32 %p1, %tid, 16;\n@%p1 bra LOW;\nbar.sync 0;\nLOW:\n\
                    shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;";
    let error = error_of(0, 32, "", diverged);
    assert!(
        error.contains("thread (0, 0, 0)")
            && error.contains("`shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;`: deadlock: waits for lane 16 of its warp, which waits at line")
            && error.ends_with("`bar.sync 0;`"),
        "{error}"
    );
    let ended = "setp.eq.u32 %p1, %tid, 7;\n@%p1 ret;\nshfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;";
    for seed in 0..4 {
        let error = error_of(seed, 32, "", ended);
        assert!(
            error.contains("lane 7") && error.contains("has ended at line") && error.ends_with("`@%p1 ret;`"),
            "{error}"
        );
    }
    let error = error_of(0, 32, "", "shfl.sync.bfly.b32 %r1, %tid, 1, 31, 0xffff;");
    assert!(error.ends_with("lane 16 is not in its own member mask 0x0000ffff"), "{error}");
    let error = error_of(0, 20, "", "shfl.sync.bfly.b32 %r1, %tid, 1, 31, -1;");
    assert!(error.ends_with("the member mask 0xffffffff names lane 20, which is no thread of the block"), "{error}");
    let outside = "setp.ge.u32 %p1, %tid, 16;\n@%p1 bra DONE;\nshfl.sync.bfly.b32 %r1, %tid, 16, 31, 0xffff;\nDONE:";
    let error = error_of(0, 32, "", outside);
    assert!(error.ends_with("takes from lane 16, which is not in the member mask 0x0000ffff"), "{error}");
}

#[test]
fn barriers() {
    let half = "setp.lt.u32 %p1, %tid, 32;\n@%p1 bra FIRST;\nbar.sync 1;\nFIRST:\nbar.sync 2;";
    let error = error_of(0, 64, "", half);
    assert!(
        error.contains(
            "deadlock: waits at barrier 2, where 32 of all threads have come; thread (32, 0, 0) waits at line"
        ) && error.ends_with("`bar.sync 1;`"),
        "{error}"
    );
    let divergent = "setp.lt.u32 %p1, %tid, 5;\n@%p1 bra FEW;\nbar.sync 0;\nbra DONE;\nFEW:\nbar.sync 0;\nDONE:";
    let error = error_of(0, 32, "", divergent);
    assert!(error.contains("an aligned barrier in divergent code: lane "), "{error}");
    let error = error_of(0, 32, "", "bar.sync 0, 17;");
    assert!(error.ends_with("a barrier of 17 threads: whole warps are wanted"), "{error}");
    let counts = "setp.lt.u32 %p1, %tid, 32;\n@%p1 bra FIRST;\nbar.sync 3, 96;\nFIRST:\nbar.sync 3, 64;";
    let error = error_of(0, 64, "", counts);
    assert!(error.contains("barrier 3 of ") && error.contains(" threads, where others came for "), "{error}");
}

#[test]
fn loops_and_traps() {
    let options = Options { instruction_limit: 10_000, ..Options::default() };
    let error = run_with(options, "", "AGAIN:\nbra AGAIN;", &[vec![0]]).unwrap_err();
    assert_eq!(error.to_string(), "launch of test: does not end within 10000 instructions of warps");
    let error = error_of(0, 40, "", "setp.eq.u32 %p1, %tid, 35;\n@%p1 trap;");
    assert_eq!(error, "test: block (0, 0, 0) thread (35, 0, 0), PTX line 10 `@%p1 trap;`: trap");
}

#[test]
fn launches() {
    let module = Module::parse(
        "m",
        ".version 7.4\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u32 n)\n.maxntid 64, 1, 1\n{ ret; }\n\
         .visible .entry exact()\n.reqntid 32, 2, 1\n{ ret; }",
    )
    .unwrap();
    let mut memory = Memory::new();
    let mut refuse = |kernel: &str, grid: [u32; 3], block: [u32; 3], shared: u32, params: &[u8]| {
        launch(&module, kernel, grid, block, shared, params, &mut memory, Options::default()).unwrap_err().to_string()
    };
    assert_eq!(refuse("x", [1; 3], [1; 3], 0, &[]), "launch of x: m has no such entry, only k, exact");
    assert_eq!(refuse("k", [1; 3], [65, 1, 1], 0, &[0; 4]), "launch of k: 65 threads in a block; .maxntid says 64");
    assert_eq!(
        refuse("exact", [1; 3], [64, 1, 1], 0, &[]),
        "launch of exact: a block of [64, 1, 1] threads; .reqntid says [32, 2, 1]"
    );
    assert_eq!(refuse("k", [1; 3], [1; 3], 0, &[0; 8]), "launch of k: 8 bytes of parameters instead of 4");
    assert_eq!(
        refuse("k", [1; 3], [1; 3], (99 << 10) + 1, &[0; 4]),
        "launch of k: 101377 bytes of shared memory; 101376 is the most"
    );
}

#[test]
fn loading() {
    let load = |body: &str| match module(0, "", body) {
        Ok(_) => panic!("loaded {body}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(load("wgmma.fence.sync.aligned;"), "snippet:9: unknown instruction wgmma: `wgmma.fence.sync.aligned;`");
    assert_eq!(
        load("add.foo.s32 %r1, %r2, %r3;"),
        "snippet:9: add with .foo is not known: `add.foo.s32 %r1, %r2, %r3;`"
    );
    assert_eq!(load("add.s32 %r1, %r2, %x;"), "snippet:9: %x is not known: `add.s32 %r1, %r2, %x;`");
    assert_eq!(load("add.s32 %r1, %r2;"), "snippet:9: 2 operands instead of 3: `add.s32 %r1, %r2;`");
    assert_eq!(load("bra NOWHERE;"), "snippet:9: no label NOWHERE: `bra NOWHERE;`");
    assert_eq!(
        load("add.s64 %rd1, %rd2, %r1;"),
        "snippet:9: register %r1 is narrower than S64: `add.s64 %rd1, %rd2, %r1;`"
    );
    assert_eq!(load(".foo 3;"), "snippet:9: unknown directive .foo: `.foo 3;`");
    assert_eq!(load("ld.shared.u32 %r1, [a];"), "snippet:9: a is Param, not Shared: `ld.shared.u32 %r1, [a];`");
    let error = Module::parse("m", ".version 7.4\n.tex .u64 t;").unwrap_err();
    assert!(matches!(&error, Error::Load { line: 2, .. }), "{error}");
}

#[test]
fn a_module_keeps_its_variables() {
    let before = ".global .align 4 .u32 count = 3;";
    let module = module(1, before, "atom.global.add.u32 %r1, [count], 2;\nst.global.u32 [%out], %r1;").unwrap();
    let mut memory = Memory::new();
    let out = upload(&mut memory, &[0u64], u64::to_le_bytes);
    let params = Params::new().u64(out).u64(out);
    for _ in 0..2 {
        launch(&module, "test", [5, 1, 1], [1; 3], 0, &params, &mut memory, Options::default()).unwrap();
    }
    let (at, bytes) = memory.variable(&module, "count").unwrap();
    assert_eq!((common::download_u32(&memory, at, 1), bytes), (vec![3 + 2 * 5 * 2], 4));
}
