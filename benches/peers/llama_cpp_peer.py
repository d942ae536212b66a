"""llama.cpp, through its Python package: a peer of turns.py. usage: llama_cpp_peer.py MODEL.gguf THREADS

Reads lines `decode PROMPT TOKENS` and `prefill TOKENS`; answers each with tokens a second. The calls are those of the C API, in a loop that
does nothing else.
"""
import ctypes
import sys
import time

import llama_cpp as llama

path, threads = sys.argv[1], int(sys.argv[2])
silent = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(silent, None)
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
if not model:
    sys.exit(f"{path}: llama.cpp did not load it")
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
params.n_threads = params.n_threads_batch = threads
context = llama.llama_init_from_model(model, params)


def feed(tokens):
    array = (llama.llama_token * len(tokens))(*tokens)
    if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) != 0:
        sys.exit(f"{path}: llama_decode failed")
    llama.llama_synchronize(context)


def decode(prompt, tokens):
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    feed([3 + i for i in range(prompt)])
    start = time.perf_counter()
    for i in range(tokens):
        feed([3 + (31 * i) % 31000])
    return tokens / (time.perf_counter() - start)


def prefill(tokens):
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    start = time.perf_counter()
    feed([3 + (31 * i) % 31000 for i in range(tokens)])
    return tokens / (time.perf_counter() - start)


print("ready", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    print({"decode": decode, "prefill": prefill}[what](*map(int, numbers)), flush=True)
