"""PyTorch on a GPU at the shapes of `silurian bench --device cuda`: cuBLAS products, the dense FFN of one token, training steps.

usage: python torch_gpu_peer.py [--device cuda:0|cpu] [--only limits,gemm,ffn,train] [--ours results.md] [--tiny]

Prints Markdown tables whose rows are called as ours, so that they stand side by side; --ours takes the file of `bench all` and adds ours over theirs.
Training is eager with SDPA's flash attention, and compiled (torch.compile), under bf16 autocast with f32 weights and fused AdamW. --tiny makes every size small, for
a run without a GPU.
"""
import argparse
import math
import re
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

# Of the makers, dense bf16 with f32 sums, in TFLOP/s: as src/bench/cuda/cards.rs.
PEAKS = [("B200", 2250), ("H200", 989.4), ("H100 PCIe", 756), ("H100 NVL", 835), ("H100", 989.4), ("A100", 312), ("L40S", 362), ("RTX 4090", 165.2)]
ROTATED = 512 << 20  # bytes of what is taken by turns
LAYERS = 8  # of the FFN, at least

# Tokens of a micro-batch, inputs, outputs: default_shapes of src/bench/cuda/gemm.rs.
GEMM_LAYERS = [(16384, 768, 2048), (2048, 768, 32000), (8192, 2048, 2048), (8192, 2048, 5632), (8192, 5632, 2048), (2048, 2048, 32000)]
FFN_WIDTHS = [(2048, 5632), (2048, 8192), (4096, 11008), (4096, 14336)]
# vocabulary, d_model, layers, heads, key-value heads, d_ff, tied, batch, tokens of a sequence: default_sizes of src/bench/cuda/train.rs.
MODELS = {
    "15m": (256, 384, 8, 6, 3, 1152, False, 32, 512),
    "125m": (32000, 768, 12, 12, 4, 2048, False, 16, 1024),
    "1.5b": (32000, 2048, 28, 16, 8, 5632, True, 4, 2048),
}


class Clock:
    """Seconds of a call: the device's events on a GPU, wall time on a CPU."""

    def __init__(self, device, repetitions):
        self.device, self.repetitions = device, repetitions

    def repetition(self, work, calls):
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - start) / calls
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / calls

    def seconds(self, work, least=15e-3):
        self.repetition(work, 1)
        calls = max(1, math.ceil(least / max(self.repetition(work, 1), 1e-6)))
        return [self.repetition(work, calls) for _ in range(self.repetitions)]


def spread(values):
    figures = lambda x: f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"
    return f"{figures(median(values))} [{figures(min(values))}..{figures(max(values))}]"


def table(title, columns, rows):
    print(f"\n### {title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join("-" if cell is None else str(cell) for cell in row) + " |", flush=True)


class Ours:
    """The tables of a file that `silurian bench` wrote: for each heading of columns, the rows."""

    def __init__(self, path):
        self.tables = []
        header = None
        for line in open(path) if path else []:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not line.startswith("|"):
                header = None
            elif header is None:
                header = cells
            elif not set(line.strip()) <= set("|-: "):
                self.tables.append(dict(zip(header, cells)))

    def number(self, column, **keys):
        for row in self.tables:
            if column in row and all(row.get(key.replace("_", " ")) == str(value) for key, value in keys.items()):
                found = re.match(r"[-+0-9.e]+", row[column])
                return float(found.group()) if found and found.group() != "-" else None
        return None


def over(ours, theirs):
    return None if ours is None else f"{ours / theirs:.3f}"


def limits(clock, args, ours):
    n = (1 << 12) if args.tiny else (64 << 20)
    sets = [(torch.rand(n, device=clock.device), torch.empty(n, device=clock.device)) for _ in range(2)]
    rates = [8e-9 * n * len(sets) / s for s in clock.seconds(lambda: [to.copy_(from_) for from_, to in sets])]
    mine = ours.number("median of the repetitions", limit="copy", **{"with": "the driver"})
    table("Limits", ["limit", "GB/s", "ours over theirs"], [["copy", spread(rates), over(mine, median(rates))]])


def gemm(clock, args, ours):
    squares = [64] if args.tiny else [4096, 8192]
    layers = [(32, 16, 24)] if args.tiny else GEMM_LAYERS
    shapes = [(layout, n, n, n) for n in squares for layout in ("NN", "NT", "TN")]
    for tokens, inputs, outputs in layers:
        shapes += [("NT", tokens, outputs, inputs), ("NN", tokens, inputs, outputs), ("TN", outputs, inputs, tokens)]
    rows = []
    for layout, m, n, k in shapes:
        random = lambda *shape: torch.rand(*shape, device=clock.device, dtype=torch.bfloat16) * 2 - 1
        sets = [(random(k, m).t() if layout == "TN" else random(m, k), random(n, k).t() if layout == "NT" else random(k, n)) for _ in range(2)]
        out = torch.empty(m, n, device=clock.device, dtype=torch.bfloat16)
        rates = [2e-12 * m * n * k * len(sets) / s for s in clock.seconds(lambda: [torch.mm(a, b, out=out) for a, b in sets])]
        name = f"{layout} {m} x {n} x {k}"
        mine = ours.number("TFLOP/s", **{"shape,_M_x_N_x_K": name, "operands": "bf16"})
        rows.append(["bf16", name, spread(rates), over(mine, median(rates))])
        del sets, out
    table("GEMM, cuBLAS", ["operands", "shape, M x N x K", "TFLOP/s", "ours over theirs"], rows)


def ffn(clock, args, ours):
    rows = []
    for c, f in [(32, 48)] if args.tiny else FFN_WIDTHS:
        count = LAYERS if args.tiny else max(LAYERS, math.ceil(ROTATED / (6 * c * f)))
        random = lambda *shape: torch.rand(*shape, device=clock.device, dtype=torch.bfloat16) * 2 - 1
        layers = [(random(f, c), random(f, c), random(c, f)) for _ in range(count)]
        x = random(1, c)

        def work():
            for gate, up, down in layers:
                F.linear(torch.relu(F.linear(x, gate)) * F.linear(x, up), down)

        run = recorded(work) if clock.device.type == "cuda" else work
        micros = [1e6 * s / count for s in clock.seconds(run)]
        mine = ours.number("dense, us", C=c, F=f)
        gbs = 6e-3 * c * f / median(micros)
        rows.append([c, f, count, spread(micros), f"{gbs:.0f}", None if mine is None else over(median(micros), mine)])
        del layers
    table("The FFN of one token, bf16, dense, from a graph", ["C", "F", "layers", "dense, us", "GB/s", "ours over theirs"], rows)


def recorded(work):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Block(nn.Module):
    def __init__(self, c, heads, kv_heads, d_ff):
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, c // heads
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        kv = kv_heads * self.dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = linear(c, c), linear(c, kv), linear(c, kv), linear(c, c)
        self.gate_proj, self.up_proj, self.down_proj = linear(c, d_ff), linear(c, d_ff), linear(d_ff, c)
        self.norm1, self.norm2 = nn.RMSNorm(c, eps=1e-5), nn.RMSNorm(c, eps=1e-5)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        n = self.norm1(x)
        split = lambda y, heads: y.view(b, t, heads, self.dim).transpose(1, 2)
        q, k, v = split(self.q_proj(n), self.heads), split(self.k_proj(n), self.kv_heads), split(self.v_proj(n), self.kv_heads)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(a.transpose(1, 2).reshape(b, t, c))
        n = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(n)) * self.up_proj(n))


def rotated(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, vocab, c, layers, heads, kv_heads, d_ff, tied, seq_len):
        super().__init__()
        self.embedding = nn.Embedding(vocab, c)
        self.blocks = nn.ModuleList(Block(c, heads, kv_heads, d_ff) for _ in range(layers))
        self.norm = nn.RMSNorm(c, eps=1e-5)
        self.lm_head = nn.Linear(c, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight
        half = c // heads // 2
        angle = torch.outer(torch.arange(seq_len).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.lm_head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def flops_per_token(vocab, c, layers, heads, kv_heads, d_ff, seq_len):
    """As model/src/cost.rs: three times the forward, attention over the causal half."""
    kv = c // heads * kv_heads
    products = layers * (2 * c * c + 2 * c * kv + 3 * c * d_ff) + vocab * c
    return 3 * (2 * products + 4 * layers * c * (seq_len + 1) / 2)


def train(clock, args, ours):
    cuda = clock.device.type == "cuda"
    peak = next((p for name, p in PEAKS if cuda and name in torch.cuda.get_device_name(clock.device)), None)
    models = {"tiny": (64, 32, 2, 4, 2, 48, False, 2, 16)} if args.tiny else {name: MODELS[name] for name in args.models.split(",")}
    rows = []
    for name, (vocab, c, layers, heads, kv_heads, d_ff, tied, batch, seq_len) in models.items():
        for compiled in (False, True):
            torch.manual_seed(1)
            with torch.device(clock.device):
                model = Llama(vocab, c, layers, heads, kv_heads, d_ff, tied, seq_len)
                tokens, targets = torch.randint(vocab, (batch, seq_len)), torch.randint(vocab, (batch, seq_len))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=cuda)
            run = torch.compile(model) if compiled else model
            losses = []

            def step():
                with torch.autocast(clock.device.type, dtype=torch.bfloat16):
                    loss = run(tokens, targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())

            for _ in range(3):
                step()
            rates = [batch * seq_len / clock.repetition(step, 1) for _ in range(args.steps)]
            tflops = 1e-12 * flops_per_token(vocab, c, layers, heads, kv_heads, d_ff, seq_len) * median(rates)
            mfu = f"{100 * tflops / peak:.1f}" if peak else None
            mine = ours.number("tokens/s", model=name, precision="bf16")
            way = "compiled" if compiled else "eager"
            rows.append([name, f"{batch} x {seq_len}", way, spread(rates), f"{tflops:.1f}", mfu, over(mine, median(rates)), f"{losses[-1]:.3f}"])
            del model, optimizer, run
            if cuda:
                torch.cuda.empty_cache()
    table("Training, bf16 autocast", ["model", "B x T", "PyTorch", "tokens/s", "TFLOP/s", "MFU, %", "ours over theirs", "loss"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", default="limits,gemm,ffn,train")
    parser.add_argument("--ours", help="results of `silurian bench --device cuda all --out FILE`")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=7, help="training steps that are timed")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    clock = Clock(torch.device(args.device), args.repetitions)
    parts = {"limits": limits, "gemm": gemm, "ffn": ffn, "train": train}
    names = args.only.split(",")
    if any(name not in parts for name in names):
        sys.exit(f"--only {args.only}: expected some of {', '.join(parts)}")
    where = torch.cuda.get_device_name(clock.device) if clock.device.type == "cuda" else "CPU"
    print(f"# PyTorch {torch.__version__} on {where}, CUDA {torch.version.cuda}")
    ours = Ours(args.ours)
    for name in names:
        parts[name](clock, args, ours)


main()
