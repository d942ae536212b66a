"""Random-weight Llama models for the peers, of the sizes that `silurian bench decode` calls 125m and 1.3b (32000 tokens, untied head).

usage: python models.py FOLDER [125m] [1.3b]

Writes FOLDER/NAME-hf (transformers, bf16) and FOLDER/NAME-{f32,bf16,q8,q4}.gguf (llama.cpp; q8 is its Q8_0, q4 its Q4_0). What weights
are does not matter to the speed of dense decoding: they are drawn anew for each file. 1.3b takes 12 GB of disk and some minutes.
"""
import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 32000
SIZES = {
    "125m": dict(d_model=768, n_layers=12, n_heads=12, n_kv_heads=4, d_ff=2048),
    "1.3b": dict(d_model=2048, n_layers=24, n_heads=16, n_kv_heads=8, d_ff=5632),
}
QUANTISED = {"bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "q8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def write_gguf(path, size):
    c, f = size["d_model"], size["d_ff"]
    head_dim = c // size["n_heads"]
    kv = head_dim * size["n_kv_heads"]
    generator = torch.Generator().manual_seed(1)
    random = lambda *shape: (torch.randn(*shape, generator=generator) * 0.02).numpy()
    ones = np.ones(c, np.float32)
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(4096)
    w.add_embedding_length(c)
    w.add_block_count(size["n_layers"])
    w.add_feed_forward_length(f)
    w.add_head_count(size["n_heads"])
    w.add_head_count_kv(size["n_kv_heads"])
    w.add_rope_dimension_count(head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(VOCAB)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    # A vocabulary is asked for: three control tokens, the bytes, and names.
    names = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    names += [f"t{i}".encode() for i in range(VOCAB - len(names))]
    w.add_tokenizer_model("llama")
    w.add_token_list(names)
    w.add_token_scores([-float(i) for i in range(VOCAB)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_tensor("token_embd.weight", random(VOCAB, c))
    w.add_tensor("output_norm.weight", ones)
    w.add_tensor("output.weight", random(VOCAB, c))
    for i in range(size["n_layers"]):
        shapes = dict(attn_q=(c, c), attn_k=(kv, c), attn_v=(kv, c), attn_output=(c, c), ffn_gate=(f, c), ffn_up=(f, c), ffn_down=(c, f))
        for name, shape in shapes.items():
            w.add_tensor(f"blk.{i}.{name}.weight", random(*shape))
        w.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        w.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def quantise(source, path, file_type):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.pure = True  # one format for all matrices, as ours
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) != 0:
        sys.exit(f"{path}: llama.cpp did not quantise it")


def write_hf(path, size):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=size["d_model"], intermediate_size=size["d_ff"], num_hidden_layers=size["n_layers"],
        num_attention_heads=size["n_heads"], num_key_value_heads=size["n_kv_heads"], max_position_embeddings=4096, tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(path, safe_serialization=True)
    torch.set_default_dtype(torch.float32)


def main():
    if len(sys.argv) < 2 or any(name not in SIZES for name in sys.argv[2:]):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or SIZES:
        write_hf(folder / f"{name}-hf", SIZES[name])
        exact = folder / f"{name}-f32.gguf"
        write_gguf(exact, SIZES[name])
        for format, file_type in QUANTISED.items():
            quantise(exact, folder / f"{name}-{format}.gguf", file_type)
        print(f"{folder}: {name}", flush=True)


main()
