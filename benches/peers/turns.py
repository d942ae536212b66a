"""silurian and its peers by turns, on models of the same sizes with random weights.

usage: python turns.py decode|prefill FOLDER [options]      FOLDER: what models.py wrote

In a round everybody takes one turn: silurian as a process of its own (`silurian bench`, which measures dense, sparse at 90 % zeros, and
filtered by turns), each peer in a process that stays. Printed are medians over the rounds with their spread, and the median of the ratios
of neighbours, which a slow minute of the machine does not move. Run it on a machine that does nothing else.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
# Peers with the formats that they have: q8 and q4 are llama.cpp's Q8_0 and Q4_0, which round activations to 8 bits, as `--activations q8` does.
FORMATS = {"llama.cpp": ["f32", "bf16", "q8", "q4"], "transformers": ["f32", "bf16"], "transformers, MKL unlocked": ["f32", "bf16"], "candle": ["f32", "bf16"]}

# What we have for each: our weights, the activations, what is said of it. Packed bf16 weights are those of bf16, in fewer bytes.
OURS = {
    "f32": [("f32", "exact", "")],
    "bf16": [("bf16", "exact", ""), ("bf16-packed", "exact", " packed")],
    "q8": [("q8", "exact", ""), ("q8", "q8", " x q8")],
    "q4": [("q4", "exact", ""), ("q4", "q8", " x q8")],
}


class Peer:
    """A process that answers a line with tokens a second."""

    def __init__(self, name, args, model, format, threads):
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        if name == "llama.cpp":
            command = [sys.executable, HERE / "llama_cpp_peer.py", f"{args.folder}/{model}-{format}.gguf", str(threads)]
        elif name == "candle":
            command = [args.candle, f"{args.folder}/{model}-hf", format]
        else:
            command = [sys.executable, HERE / "transformers_peer.py", f"{args.folder}/{model}-hf", format, str(threads)]
            if name != "transformers":
                env["LD_PRELOAD"] = args.mkl
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{name}: did not start: {' '.join(map(str, command))}")

    def turn(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return float(answer) if answer else sys.exit("a peer ended")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def bench(args, threads, arguments, table):
    command = [args.silurian, "-t", str(threads), "bench", "-r", str(args.repetitions), *arguments, "-o", "json"]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    [rows] = [t["rows"] for t in json.loads(output)["tables"] if t["name"] == table]
    return rows


def our_decode(args, model, format, threads):
    """Our ways of decoding: (name, tokens/s)."""
    ours = []
    for weights, activations, suffix in OURS[format]:
        sizes = ["--models", model, "--zeros", "90", "--tokens", str(args.tokens)]
        [row] = bench(args, threads, ["decode", *sizes, "--weights", weights, "--activations", activations], "decode")
        ours += [(f"dense{suffix}", row["dense_tokens_per_second"]), (f"sparse{suffix}", row["sparse_tokens_per_second"])]
        if row["filtered_tokens_per_second"]:
            ours.append((f"filtered{suffix}", row["filtered_tokens_per_second"]))
    return ours


def our_prefill(args, model, format, threads):
    sizes = ["--models", model, "--tokens", str(args.tokens), "--weights", format, "--prefill", args.prefill]
    rows = bench(args, threads, ["prefill", *sizes], "prefill")
    return [(f"prefill {row['prefill']}", row["tokens_per_second"]) for row in rows]


def spread(values):
    return f"{median(values):.4g} [{min(values):.4g}..{max(values):.4g}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "prefill"])
    parser.add_argument("folder")
    parser.add_argument("--silurian", default="target/release/silurian")
    parser.add_argument("--candle", help="the built benches/peers/candle; without it candle takes no turn")
    parser.add_argument("--mkl", help="a library that makes MKL take its AVX-512 path on any CPU, to be preloaded; without it that row is absent")
    parser.add_argument("--models", default="125m,1.3b")
    parser.add_argument("--formats", default="f32,bf16,q8,q4")
    parser.add_argument("--peers", default="llama.cpp,transformers")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2, help="of ours in a turn, and turns of a peer in a row, of which the best counts")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, help="decode: 64, of 1.3b 16; prefill: 512")
    parser.add_argument("--prefill", default="exact,bf16", help="our ways of feeding a prompt")
    args = parser.parse_args()
    peers = args.peers.split(",") + (["candle"] if args.candle else []) + (["transformers, MKL unlocked"] if args.mkl else [])
    tokens = args.tokens
    print("| model | format | threads | ours | tokens/s | peer | tokens/s | ours over the peer |\n|---|---|---:|---|---:|---|---:|---:|")
    for model in args.models.split(","):
        args.tokens = tokens or (512 if args.what == "prefill" else 16 if model == "1.3b" else 64)
        line = f"prefill {args.tokens}" if args.what == "prefill" else f"decode {args.prompt} {args.tokens}"
        for format in args.formats.split(","):
            for threads in map(int, args.threads.split(",")):
                present = [name for name in peers if format in FORMATS[name]]
                running = {name: Peer(name, args, model, format, threads) for name in present}
                ours, theirs = {}, {name: [] for name in present}
                for peer in running.values():
                    peer.turn(line)
                for _ in range(args.rounds):
                    for name, peer in running.items():
                        theirs[name].append(max(peer.turn(line) for _ in range(args.repetitions)))
                    for name, rate in (our_prefill if args.what == "prefill" else our_decode)(args, model, format, threads):
                        ours.setdefault(name, []).append(rate)
                for peer in running.values():
                    peer.end()
                for name, rates in ours.items():
                    for peer, others in theirs.items():
                        ratio = spread([a / b for a, b in zip(rates, others)])
                        cells = [model, format, threads, name, spread(rates), peer, spread(others), ratio]
                        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


main()
