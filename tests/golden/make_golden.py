"""Golden values from PyTorch and transformers, and the bounds that our f32 results are held to.

    python -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0 numpy==2.4.6
    .venv/bin/python tests/golden/make_golden.py        # rewrites tests/golden/*.json

Everything is computed in float64. No input is stored: weights, tokens and activations come from a hash of (seed, index)
that tests/golden.rs computes too (`uniform`, as in kernels::testing), so the files hold results alone.

Bounds. A result of ours is f32, so it differs from these by rounding. How far it may differ is derived in two steps:
 1. each operation's own bound: (K + 4) eps sum|a_i b_i| for a product with K terms, (C / 2 + 8) eps |y| for RMSNorm, and
    so on (eps = 2^-24);
 2. how that reaches the result: the model is run SAMPLES times with every operation's result moved by plus or minus its
    bound, sign by sign at random, forward and backward. The bound stored is SAFETY times the largest change seen.
Rounding errors of a K-term sum are near sqrt(K) eps, far below their bound in step 1, so a correct f32 implementation
stays well inside, while an error of a part in a thousand falls outside.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
EPS = 2.0**-24
SAMPLES = 32
SAFETY = 4.0
torch.set_default_dtype(torch.float64)


def uniform(seed, n):
    """`n` values in -1 .. 1 with 24 bits, as kernels::testing::uniform: SplitMix64's finaliser over (seed, index)."""
    with np.errstate(over="ignore"):
        z = np.uint64((seed << 32) | 0x5851) + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return z.astype(np.float64) / (1 << 23) - 1.0


# --- Rounding noise -------------------------------------------------------------------------------------------------

noise = {"on": False, "rng": np.random.default_rng(0)}


def signs(shape):
    return torch.from_numpy(noise["rng"].integers(0, 2, size=tuple(shape)) * 2.0 - 1.0)


def moved(x, bound):
    return x + signs(x.shape) * bound if noise["on"] else x


class Product(torch.autograd.Function):
    """y = x W^T with the rounding of a dot product in the result and in both gradients."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return moved(x @ w.T, (x.shape[-1] + 4) * EPS * (x.abs() @ w.abs().T))

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy2, x2 = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = moved(dy @ w, (w.shape[0] + 4) * EPS * (dy.abs() @ w.abs()))
        dw = moved(dy2.T @ x2, (x2.shape[0] + 4) * EPS * (dy2.abs().T @ x2.abs()))
        return dx, dw


class Rounded(torch.autograd.Function):
    """The identity with `k` roundings relative to the larger of an element and its row's root mean square, both ways."""

    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k
        return moved(x, k * EPS * torch.maximum(x.abs(), x.pow(2).mean(-1, keepdim=True).sqrt()))

    @staticmethod
    def backward(ctx, dy):
        return moved(dy, ctx.k * EPS * torch.maximum(dy.abs(), dy.pow(2).mean(-1, keepdim=True).sqrt())), None


def with_noise(model, seq_len):
    """Puts the rounding of every operation into a transformers Llama, for when noise["on"] is set."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.nn.Linear):
            if name.endswith("o_proj"):
                # The attention before it: scores of D terms, softmax, a sum over T positions.
                k = seq_len + model.config.head_dim + 16
                module.forward = lambda x, w=module.weight, k=k: Product.apply(Rounded.apply(x, k), w)
            elif name.endswith(("q_proj", "k_proj")):
                # RoPE after it, and the dot products of the scores.
                k = model.config.head_dim + 8
                module.forward = lambda x, w=module.weight, k=k: Rounded.apply(Product.apply(x, w), k)
            else:
                module.forward = lambda x, w=module.weight: Product.apply(x, w)
        elif kind == "LlamaRMSNorm":
            original, k = module.forward, module.weight.numel() / 2 + 8
            module.forward = lambda x, f=original, k=k: Rounded.apply(f(x), k)
        elif name.endswith("act_fn"):
            # 4 ULP are at most 8 roundings; gelu is within 5.
            original, k = module.forward, 10 if model.config.hidden_act == "gelu" else 8
            module.forward = lambda x, f=original, k=k: Rounded.apply(f(x), k)


# --- Models ---------------------------------------------------------------------------------------------------------

MODELS = {
    "mha_untied": dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=64, vocab_size=48,
                       rope_theta=1e4, tie=False, act="silu"),
    "gqa_tied_relu": dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=96, vocab_size=40,
                          rope_theta=1e4, tie=True, act="relu"),
    "mqa_theta": dict(d_model=48, n_layers=2, n_heads=6, n_kv_heads=1, head_dim=8, d_ff=80, vocab_size=40,
                      rope_theta=5e5, tie=False, act="silu"),
    "wide_heads_relu": dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64, vocab_size=40,
                            rope_theta=1e4, tie=False, act="relu"),
    "odd_sizes_tied": dict(d_model=20, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=10, d_ff=36, vocab_size=37,
                           rope_theta=1e4, tie=True, act="silu"),
    "deep_small_theta": dict(d_model=24, n_layers=4, n_heads=3, n_kv_heads=3, head_dim=8, d_ff=56, vocab_size=40,
                             rope_theta=100.0, tie=False, act="silu"),
    "llama3_rope": dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=40,
                        rope_theta=1e4, tie=False, act="silu",
                        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=16)),
} | {
    f"act_{act}": dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=40,
                       rope_theta=1e4, tie=True, act=act) for act in ("gelu", "relu2", "tanh")
}
GRADIENTS = {
    "gradients_silu": dict(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=40, vocab_size=24,
                           rope_theta=1e4, tie=False, act="silu"),
    "gradients_relu": dict(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=40, vocab_size=24,
                           rope_theta=1e4, tie=True, act="relu"),
} | {
    f"gradients_{act}": dict(d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=20, vocab_size=24,
                             rope_theta=1e4, tie=True, act=act) for act in ("gelu", "relu2", "tanh")
}
SEQ_LEN = 18
NORM_EPS = 1e-5


def parameter_order(m):
    names = ["model.embed_tokens"]
    for i in range(m["n_layers"]):
        names += [f"model.layers.{i}.{n}" for n in (
            "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
    return [n + ".weight" for n in names + ["model.norm"] + ([] if m["tie"] else ["lm_head"])]


def build(m):
    rope = dict(rope_type="default", rope_theta=m["rope_theta"])
    if s := m.get("rope_scaling"):
        rope = dict(rope_type="llama3", rope_theta=m["rope_theta"], factor=s["factor"],
                    low_freq_factor=s["low_freq_factor"], high_freq_factor=s["high_freq_factor"],
                    original_max_position_embeddings=s["original_max_seq_len"])
    config = LlamaConfig(
        vocab_size=m["vocab_size"], hidden_size=m["d_model"], intermediate_size=m["d_ff"],
        num_hidden_layers=m["n_layers"], num_attention_heads=m["n_heads"], num_key_value_heads=m["n_kv_heads"],
        head_dim=m["head_dim"], max_position_embeddings=64, rms_norm_eps=NORM_EPS, hidden_act=m["act"],
        tie_word_embeddings=m["tie"], rope_parameters=rope, attn_implementation="eager")
    model = LlamaForCausalLM(config).double().eval()
    state = {}
    for i, name in enumerate(parameter_order(m)):
        shape = model.get_parameter(name).shape
        u = uniform(1000 + i, int(np.prod(shape))).reshape(shape)
        if len(shape) == 1:
            w = 1.0 + 0.25 * u
        elif name == "model.embed_tokens.weight":
            w = u
        else:
            w = u * float(np.float32(2.0 / np.sqrt(shape[1])))
        # Our weights are f32: the golden values belong to the same numbers.
        state[name] = torch.from_numpy(w.astype(np.float32).astype(np.float64))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(n == "lm_head.weight" and m["tie"] for n in missing), (missing, unexpected)
    with_noise(model, SEQ_LEN)
    return model


def tokens(m, seed, n):
    return torch.from_numpy(((uniform(seed, n) + 1.0) / 2.0 * m["vocab_size"]).astype(np.int64)).reshape(1, -1)


def spread(run):
    """run() -> dict of arrays: the values without noise, and the derived bound of each."""
    noise["on"], noise["rng"] = False, np.random.default_rng(1)
    exact = run()
    noise["on"] = True
    far = {k: 0.0 for k in exact}
    for _ in range(SAMPLES):
        for k, v in run().items():
            far[k] = max(far[k], float(np.abs(v - exact[k]).max()))
    noise["on"] = False
    return exact, {k: SAFETY * v for k, v in far.items()}


def numbers(x):
    return [float(f"{v:.9g}") for v in np.asarray(x).ravel()]


def sizes(m):
    return {k: v for k, v in m.items() if k not in ("act", "tie")} | dict(
        tie_embeddings=m["tie"], norm_eps=NORM_EPS, max_seq_len=64)


def write(name, value):
    text = json.dumps(value, indent=None, separators=(",", ":"))
    # One key a line keeps differences readable.
    text = text.replace('],"', '],\n"').replace('},"', '},\n"')
    (HERE / name).write_text(text + "\n")


def logits():
    out = []
    for name, m in MODELS.items():
        model, ids = build(m), tokens(m, 7, SEQ_LEN)

        def run():
            with torch.no_grad():
                return {"logits": model(ids).logits[0].numpy()}

        exact, bound = spread(run)
        print(f"{name}: logits up to {np.abs(exact['logits']).max():.3f}, bound {bound['logits']:.2e}")
        out.append(dict(name=name, config=sizes(m), hidden_act=m["act"], tokens=ids[0].tolist(),
                        bound=bound["logits"], logits=numbers(exact["logits"])))
    return out


def gradients():
    out = []
    for name, m in GRADIENTS.items():
        model = build(m)
        ids, targets = tokens(m, 8, SEQ_LEN), tokens(m, 9, SEQ_LEN)

        def run():
            model.zero_grad()
            z = Rounded.apply(model(ids).logits[0], 8)
            loss = torch.nn.functional.cross_entropy(z, targets[0])
            loss.backward()
            found = {n: model.get_parameter(n).grad.numpy().copy() for n in parameter_order(m)}
            return found | {"loss": loss.detach().numpy()}

        exact, bound = spread(run)
        loss = float(exact.pop("loss"))
        worst = max(bound[k] / np.abs(v).max() for k, v in exact.items())
        print(f"{name}: loss {loss:.6f} (bound {bound['loss']:.2e}), gradients: bound {worst:.2e} of the largest at most")
        out.append(dict(name=name, config=sizes(m), hidden_act=m["act"], tokens=ids[0].tolist(),
                        targets=targets[0].tolist(), loss=loss, loss_bound=bound["loss"],
                        gradients={k: dict(bound=bound[k], values=numbers(v)) for k, v in exact.items()}))
    return out


# --- The stochastic activation --------------------------------------------------------------------------------------


def philox4x32(counter, key, rounds):
    """Philox4x32 on Python integers (Salmon et al., SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


FIXED = dict(relu=torch.relu, silu=torch.nn.functional.silu, gelu=torch.nn.functional.gelu,
             relu2=lambda x: torch.relu(x).square(), tanh=torch.tanh)


def inputs(rows, d_ff):
    f32 = lambda seed, k: torch.from_numpy((k * uniform(seed, rows * d_ff)).astype(np.float32).astype(np.float64))
    g, u, dh = f32(21, 4.0), f32(22, 1.0), f32(23, 1.0)
    return g.reshape(rows, d_ff).requires_grad_(), u.reshape(rows, d_ff).requires_grad_(), dh.reshape(rows, d_ff)


def fixed():
    """h = psi(g) u and its gradients by autograd, for each activation that draws nothing; and with an L1 penalty on h."""
    out = []
    for name, psi in FIXED.items():
        for l1 in (0.0, 0.25):
            g, u, dh = inputs(3, 40)
            h = psi(g) * u
            ((h * dh).sum() + float(np.float32(l1)) * h.abs().sum()).backward()
            out.append(dict(act=name, l1=l1, rows=3, d_ff=40, h=numbers(h.detach()), dg=numbers(g.grad), du=numbers(u.grad)))
    return out


def stochastic():
    """StochA(p): forward and backward by autograd, under the mask that the draws' definition gives."""
    assert philox4x32([0] * 4, [0] * 2, 7) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    paper = (("relu", "silu"), "identity")
    out = []
    for p, (negative, positive), rows, d_ff, site in [
        (0.5, paper, 5, 43, dict(seed=0x123456789ABCDEF, first_token=0, layer=0, stream=0, step=0)),
        (0.3, paper, 4, 64, dict(seed=42, first_token=1000, layer=7, stream=1, step=31)),
        (0.7, paper, 3, 24, dict(seed=2**64 - 1, first_token=2**32 - 2, layer=65535, stream=65535, step=2**32 - 1)),
        (0.4, (("relu", "gelu"), "silu"), 4, 35, dict(seed=5, first_token=17, layer=3, stream=0, step=9)),
        (0.6, (("tanh", "gelu"), "identity"), 3, 33, dict(seed=6, first_token=0, layer=1, stream=0, step=2)),
    ]:
        mask = np.zeros((rows, d_ff))
        for r in range(rows):
            for c in range(d_ff):
                counter = [c // 8, (site["first_token"] + r) % 2**32, site["layer"] | site["stream"] << 16, site["step"]]
                word = philox4x32(counter, [site["seed"] & 0xFFFFFFFF, site["seed"] >> 32], 7)[c % 8 // 2]
                mask[r, c] = (word >> 16 * (c % 2) & 0xFFFF) < round(p * 65536)
        w = torch.from_numpy(mask)
        g, u, dh = inputs(rows, d_ff)
        first, second = (FIXED[name](g) for name in negative)
        h = torch.where(g < 0, (1 - w) * first + w * second, FIXED["silu"](g) if positive == "silu" else g) * u
        h.backward(dh)
        out.append(dict(p=p, negative=negative, positive=positive, rows=rows, d_ff=d_ff,
                        site=site | dict(seed=str(site["seed"])),
                        second_on_negatives=int((mask * (g.detach().numpy() < 0)).sum()),
                        h=numbers(h.detach()), dg=numbers(g.grad), du=numbers(u.grad)))
    return out


if __name__ == "__main__":
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, numpy {np.__version__}"
    write("logits.json", dict(made_by=versions, models=logits()))
    write("gradients.json", dict(made_by=versions, models=gradients()))
    write("gated_activation.json", dict(made_by=versions, fixed=fixed(), stochastic=stochastic()))
