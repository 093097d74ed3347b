"""List the architectures that are tested, and those that are rejected. Add an entry to test another architecture."""

from typing import Any, NamedTuple

import transformers

# The sizes differ from one another where the architecture allows it, so that confusing them is detected.
_SMALL: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
_TEXT: dict[str, Any] = {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 128}
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2}  # grouped-query attention
_WIDE_HEADS: dict[str, Any] = {**_GROUPED, "head_dim": 16}  # heads * head_dim is twice d_model
_OPT: dict[str, Any] = {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
_EXPERTS: dict[str, Any] = {**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


class Family(NamedTuple):
    """An architecture in plain transformers.

    Attributes:
        name: Name in the tests.
        model: Class of transformers, with the usual head.
        settings: Configuration of a tiny random model.
        mlp: Path of the down-projection, whose input is `mlp.hook_post`.
        attn: Path of the output projection of attention, whose input is `attn.hook_z`.
        causal: Whether a token attends only to earlier tokens.
        since: First version of TransformerLens that has a bridge for it.
        leading: Number of first positions that are not counted, such as the first token of a row or the class token.
    """

    name: str
    model: Any
    settings: dict[str, Any]
    mlp: str
    attn: str
    causal: bool = True
    since: str = "3.9"
    leading: int = 1

    @property
    def reads_text(self) -> bool:
        return self.model.main_input_name == "input_ids"


_LLAMA = ("model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.o_proj")
_FAIRSEQ = ("model.decoder.layers.{}.fc2", "model.decoder.layers.{}.self_attn.out_proj")

FAMILIES = {
    family.name: family
    for family in [
        Family(
            "gpt2", transformers.GPT2LMHeadModel,
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 4096, "n_positions": 128},
            "transformer.h.{}.mlp.c_proj", "transformer.h.{}.attn.c_proj",
        ),
        Family("opt", transformers.OPTForCausalLM, _OPT, *_FAIRSEQ),
        Family("opt-no-bias", transformers.OPTForCausalLM, {**_OPT, "enable_bias": False}, *_FAIRSEQ),
        Family(
            "opt-post-norm", transformers.OPTForCausalLM,  # like the 350M: post-norm, and a narrower embedding
            {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, *_FAIRSEQ,
        ),
        Family(
            "galactica", transformers.OPTForCausalLM,
            {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
            *_FAIRSEQ,
        ),
        Family(
            "neox", transformers.GPTNeoXForCausalLM, _TEXT,
            "gpt_neox.layers.{}.mlp.dense_4h_to_h", "gpt_neox.layers.{}.attention.dense",
        ),
        Family("llama", transformers.LlamaForCausalLM, _GROUPED, *_LLAMA),
        Family("mistral", transformers.MistralForCausalLM, {**_GROUPED, "sliding_window": 8}, *_LLAMA),
        Family("qwen2", transformers.Qwen2ForCausalLM, _GROUPED, *_LLAMA),
        Family("qwen3", transformers.Qwen3ForCausalLM, _WIDE_HEADS, *_LLAMA),
        Family("gemma2", transformers.Gemma2ForCausalLM, {**_WIDE_HEADS, "sliding_window": 8}, *_LLAMA),
        Family(
            "gemma3", transformers.Gemma3ForCausalLM,
            {**_WIDE_HEADS, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, *_LLAMA,
        ),
        Family("phi3", transformers.Phi3ForCausalLM, {**_GROUPED, "pad_token_id": 0}, *_LLAMA),
        Family(
            "bert", transformers.BertForMaskedLM, {**_TEXT, "vocab_size": 4098},  # with <s> and <mask>
            "bert.encoder.layer.{}.output.dense", "bert.encoder.layer.{}.attention.output.dense", causal=False,
        ),
        Family(
            "roberta", transformers.RobertaForMaskedLM, {**_TEXT, "vocab_size": 4098, "max_position_embeddings": 130},
            "roberta.encoder.layer.{}.output.dense", "roberta.encoder.layer.{}.attention.output.dense",
            causal=False, since="4.3",
        ),
        Family(
            "vit", transformers.ViTForImageClassification,
            {**_TEXT, "image_size": 16, "patch_size": 4, "num_labels": 5},
            "vit.layers.{}.mlp.fc2", "vit.layers.{}.attention.o_proj", causal=False,
        ),
        Family(
            "deit", transformers.DeiTForImageClassification,
            {**_TEXT, "image_size": 16, "patch_size": 4, "num_labels": 5},
            "deit.layers.{}.mlp.fc2", "deit.layers.{}.attention.o_proj", causal=False,
            leading=2,  # the distillation token
        ),
    ]
}  # fmt: skip

# Architectures without neurons that sp_lens can score: mixtures of experts, two stacks of blocks, blocks without MLP
# and attention, and heads whose output does not have the size in the configuration.
REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (transformers.MixtralForCausalLM, {**_GROUPED, "num_local_experts": 2}),
    "qwen2-moe": (transformers.Qwen2MoeForCausalLM, {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": (transformers.Qwen3MoeForCausalLM, {**_EXPERTS, "head_dim": 16}),
    "t5": (
        transformers.T5ForConditionalGeneration,
        {"vocab_size": 4096, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "mamba": (transformers.MambaForCausalLM, {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2}),
    "deepseek": (
        transformers.DeepseekV3ForCausalLM,
        {
            **_TEXT, "first_k_dense_replace": 2, "moe_intermediate_size": 16, "n_routed_experts": 2, "n_group": 1,
            "topk_group": 1, "num_experts_per_tok": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4,
        },
    ),
}  # fmt: skip
