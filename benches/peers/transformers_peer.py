"""Hugging Face transformers on PyTorch: a peer of turns.py. usage: transformers_peer.py FOLDER f32|bf16 THREADS

Reads lines `decode PROMPT TOKENS` and `prefill TOKENS`; answers each with tokens a second. Greedy, eager, with a dynamic cache: the loop of
`generate` without its bookkeeping.
"""
import sys
import time
import warnings

import torch
from transformers import AutoModelForCausalLM, DynamicCache

warnings.filterwarnings("ignore")
folder, dtype, threads = sys.argv[1], {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]], int(sys.argv[3])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def decode(prompt, tokens):
    cache = DynamicCache(config=model.config)
    ids = torch.arange(3, 3 + prompt)[None]
    token = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
    start = time.perf_counter()
    for i in range(tokens):
        position = torch.tensor([[prompt + i]])
        logits = model(token, past_key_values=cache, use_cache=True, position_ids=position).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
    return tokens / (time.perf_counter() - start)


@torch.inference_mode()
def prefill(tokens):
    ids = (3 + 31 * torch.arange(tokens)) % 31000
    start = time.perf_counter()
    model(ids[None], logits_to_keep=1)
    return tokens / (time.perf_counter() - start)


print("ready", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    print({"decode": decode, "prefill": prefill}[what](*map(int, numbers)), flush=True)
