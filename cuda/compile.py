#!/usr/bin/env python3
"""Compiles kernels/*.cu to the kernels/*.ptx that are committed beside them. Needed only after a change to a .cu or .cuh.

    python3 cuda/compile.py            compile what is stale
    python3 cuda/compile.py --all      compile everything
    python3 cuda/compile.py --check    compile everything elsewhere and compare byte for byte; write nothing

nvcc and two ptxas (of CUDA 13.0 and 11.8) come from pinned PyPI wheels, which pip puts into a virtual environment of their own
(--env DIR; target/cuda-toolchain if not given; used again if it is there). nvcc needs a C++ compiler (g++). No GPU, no driver.

Each .ptx is for compute_80 and all later GPUs. Its `.version` is lowered to 7.4, so that drivers from R470 (CUDA 11.4) on take it. For each
.ptx, both assemblers must accept it for the GPUs that they know, without spilling registers: the old one stands for the old drivers' JIT.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = HERE / "kernels"

# All of them pinned: nvidia-cuda-nvcc does not pin what it depends on, and another nvvm writes another PTX.
WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvcc-cu11==11.8.89",  # ptxas alone
]

# -fmad=false: what is written is what is computed. A fused multiply-add is written fmaf, so forward and backward, and the CPU where it has
# FMA, agree in every bit. No -lineinfo: it would put paths into the file.
FLAGS = ["-ptx", "-O3", "-std=c++17", "-arch=compute_80", "-fmad=false"]
PTX_VERSION = "7.4"

# (assembler, the GPUs to assemble for). 90a and 100 stand for Hopper and Blackwell.
ASSEMBLERS = [
    ("13.0", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"]),
    ("11.8", ["sm_80", "sm_86", "sm_89", "sm_90"]),
]


def fnv1a(data: bytes) -> int:
    """64-bit FNV-1a: short enough to be written again in the test that looks for stale files."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def sources(cu: pathlib.Path) -> list[pathlib.Path]:
    """The file and the headers of this folder that it includes, each once, in the order in which they are met."""
    found = []

    def visit(path):
        if path not in found:
            found.append(path)
            for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M):
                visit(path.parent / name)

    visit(cu)
    return found


def source_hash(cu: pathlib.Path) -> str:
    return f"{fnv1a(b''.join(path.read_bytes() for path in sources(cu))):016x}"


def head(source: str, body: str) -> str:
    return (
        "// Made by cuda/compile.py; do not edit.\n"
        f"// nvcc 13.0.88 {' '.join(FLAGS)}, .version lowered to {PTX_VERSION}\n"
        f"// source {source} body {fnv1a(body.encode()):016x}\n"
    )


def is_stale(cu: pathlib.Path) -> bool:
    ptx = cu.with_suffix(".ptx")
    if not ptx.exists():
        return True
    lines = ptx.read_text().split("\n", 3)
    return len(lines) < 4 or "\n".join(lines[:3]) + "\n" != head(source_hash(cu), lines[3])


def toolchain(env: pathlib.Path) -> dict:
    """The programs, from wheels that are installed if the environment does not have them."""
    stamp = env / "wheels.txt"
    if not stamp.exists() or stamp.read_text().split() != WHEELS:
        print(f"installing the toolchain into {env} (160 MB)", flush=True)
        venv.create(env, with_pip=True)
        pip = [env / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *WHEELS], check=True)
        stamp.write_text("\n".join(WHEELS))
    [packages] = env.glob("lib/python3*/site-packages/nvidia")
    tools = {"nvcc": packages / "cu13/bin/nvcc", "13.0": packages / "cu13/bin/ptxas", "11.8": packages / "cuda_nvcc/bin/ptxas"}
    for tool in tools.values():
        if not os.access(tool, os.X_OK):
            tool.chmod(0o755)
    return tools


def compile_one(tools: dict, cu: pathlib.Path, to: pathlib.Path) -> None:
    done = subprocess.run([tools["nvcc"], *FLAGS, cu.name, "-o", to], cwd=cu.parent)
    if done.returncode != 0:
        sys.exit(f"error: nvcc rejects {cu.name}")
    body, n = re.subn(r"^\.version .*$", f".version {PTX_VERSION}", to.read_text(), flags=re.M)
    assert n == 1, f"{cu.name}: {n} .version lines"
    # Names of shared arrays have a hash of the folder that nvcc ran in.
    body = re.sub(r"_INTERNAL_[0-9a-f]{8}_", "_INTERNAL_00000000_", body)
    to.write_text(head(source_hash(cu), body) + body)


def assemble(tools: dict, ptx: pathlib.Path, scratch: pathlib.Path) -> list[str]:
    """What is wrong with the file. Prints the least and the most registers of each kernel."""
    wrong, registers = [], {}  # of a kernel, on each GPU
    for version, gpus in ASSEMBLERS:
        for gpu in gpus:
            done = subprocess.run(
                [tools[version], "-v", f"-arch={gpu}", ptx, "-o", scratch / "cubin"], capture_output=True, text=True
            )
            if done.returncode != 0:
                wrong.append(f"{ptx.name}: ptxas {version} for {gpu}: {done.stderr.strip()}")
                continue
            entries = re.findall(
                r"Compiling entry function '(\w+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                r"(\d+) bytes spill loads.*?Used (\d+) registers",
                done.stderr,
                re.S,
            )
            for entry, stack, stores, loads, used in entries:
                registers.setdefault(entry, []).append(int(used))
                if (stack, stores, loads) != ("0", "0", "0"):
                    wrong.append(
                        f"{ptx.name}: {entry} on {gpu} (ptxas {version}): {stack} bytes of stack, spills {stores} + {loads} bytes"
                    )
            expected = len(re.findall(r"^\.visible \.entry", ptx.read_text(), re.M))
            if len(entries) != expected:
                wrong.append(f"{ptx.name}: ptxas {version} for {gpu} reports on {len(entries)} of {expected} kernels")
    for entry, used in registers.items():
        print(f"  {entry}: {min(used)} to {max(used)} registers")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=pathlib.Path, default=HERE.parent / "target/cuda-toolchain", help="the virtual environment")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--all", action="store_true", help="compile everything, stale or not")
    group.add_argument("--check", action="store_true", help="compile everything elsewhere and compare with what is there")
    parser.add_argument("kernel", nargs="*", help="only these (rms_norm, ...)")
    args = parser.parse_args()

    files = sorted(cu for cu in KERNELS.glob("*.cu") if not args.kernel or cu.stem in args.kernel)
    if unknown := set(args.kernel) - {cu.stem for cu in files}:
        parser.error(f"no such kernel: {', '.join(sorted(unknown))}")
    if not (args.all or args.check or args.kernel):
        files = [cu for cu in files if is_stale(cu)]
    if not files:
        print("nothing is stale")
        return 0

    tools, wrong = toolchain(args.env.resolve()), []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for cu in files:
            print(cu.name, flush=True)
            ptx, committed = scratch / (cu.stem + ".ptx"), cu.with_suffix(".ptx")
            compile_one(tools, cu, ptx)
            faults = assemble(tools, ptx, scratch)
            if args.check and not (committed.exists() and committed.read_bytes() == ptx.read_bytes()):
                faults.append(f"{committed.name} is not what {cu.name} compiles to")
            if not args.check and not faults:
                committed.write_bytes(ptx.read_bytes())
            wrong += faults
    for line in wrong:
        print("error:", line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
