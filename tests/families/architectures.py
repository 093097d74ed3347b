"""List the architectures that are tested, and those that are rejected. Add an entry to test another architecture."""

from collections.abc import Mapping
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
        fused: Whether its attention can be computed by one fused kernel.
        is_long: Whether it is tested only in the long form of the suite (`make families`).
        skipped: The checks that do not apply, with the reason.
    """

    name: str
    model: Any
    settings: dict[str, Any]
    mlp: str
    attn: str
    causal: bool = True
    since: str = "3.9"
    leading: int = 1
    fused: bool = True
    is_long: bool = False
    skipped: Mapping[str, str] = {}

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
            "gpt_neox.layers.{}.mlp.dense_4h_to_h", "gpt_neox.layers.{}.attention.dense", fused=False,
        ),
        Family("llama", transformers.LlamaForCausalLM, _GROUPED, *_LLAMA),
        Family("mistral", transformers.MistralForCausalLM, {**_GROUPED, "sliding_window": 8}, *_LLAMA),
        Family("qwen2", transformers.Qwen2ForCausalLM, _GROUPED, *_LLAMA),
        Family("qwen3", transformers.Qwen3ForCausalLM, _WIDE_HEADS, *_LLAMA),
        Family("gemma2", transformers.Gemma2ForCausalLM, {**_WIDE_HEADS, "sliding_window": 8}, *_LLAMA, fused=False),
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

_H = "transformer.h.{}."
_GPT: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 4096, "n_positions": 128, "n_inner": 48
}  # fmt: skip
_ROTARY: dict[str, Any] = {**_GPT, "rotary_dim": 4}
_NO_WIDTH = {"compact": "its configuration has no setting for the width of the MLP"}
_SLIDING: dict[str, Any] = {
    **_GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]
}  # fmt: skip
_HEADS: dict[str, Any] = {**_GROUPED, "head_dim": 8}  # the default of these does not depend on the width of the model


def _long(name: str, model: str, settings: dict[str, Any], mlp: str, attn: str, **options: Any) -> Family | None:
    """Return a family of the long form, or None if the installed transformers does not have it."""
    kind = getattr(transformers, model, None)
    options = {"since": "4.3", "is_long": True, **options}
    return kind and Family(name, kind, settings, mlp, attn, **options)


FAMILIES |= {
    family.name: family
    for family in [
        _long(
            "bloom", "BloomForCausalLM", {**_SMALL, "n_layer": 2, "n_head": 4},
            _H + "mlp.dense_4h_to_h", _H + "self_attention.dense", fused=False, skipped=_NO_WIDTH,
        ),
        _long("gptj", "GPTJForCausalLM", _ROTARY, _H + "mlp.fc_out", _H + "attn.out_proj", fused=False),
        _long("codegen", "CodeGenForCausalLM", _ROTARY, _H + "mlp.fc_out", _H + "attn.out_proj", fused=False),
        _long("gpt-bigcode", "GPTBigCodeForCausalLM", _GPT, _H + "mlp.c_proj", _H + "attn.c_proj"),
        _long(
            "falcon", "FalconForCausalLM", {**_SMALL, "ffn_hidden_size": 48},
            _H + "mlp.dense_4h_to_h", _H + "self_attention.dense", fused=False,
            skipped={
                "compact": "its weights are in a FalconLinear, which sp_lens does not cut",
                "heads": "its configuration does not have the number of key-value heads",
            },
        ),
        _long(
            "mpt", "MptForCausalLM",
            {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2, "vocab_size": 4096},
            "transformer.blocks.{}.ffn.down_proj", "transformer.blocks.{}.attn.out_proj",
            fused=False, skipped=_NO_WIDTH,
        ),
        _long(
            "gpt-neo", "GPTNeoForCausalLM",
            {
                "vocab_size": 4096, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
                "max_position_embeddings": 128, "window_size": 8, "attention_types": [[["global", "local"], 1]],
            },
            _H + "mlp.c_proj", _H + "attn.attention.out_proj", fused=False,
        ),
        _long("phi", "PhiForCausalLM", _GROUPED, "model.layers.{}.mlp.fc2", "model.layers.{}.self_attn.dense"),
        _long("starcoder2", "Starcoder2ForCausalLM", _GROUPED, "model.layers.{}.mlp.c_proj", _LLAMA[1]),
        _long(
            "xglm", "XGLMForCausalLM",
            {
                "vocab_size": 4096, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
                "max_position_embeddings": 128,
            },
            "model.layers.{}.fc2", "model.layers.{}.self_attn.out_proj", fused=False,
        ),
        _long(
            "llama4", "Llama4ForCausalLM",
            {**_HEADS, "intermediate_size": 16, "intermediate_size_mlp": 48, "moe_layers": [], "pad_token_id": 0},
            "model.layers.{}.feed_forward.down_proj", _LLAMA[1],
        ),
        _long("exaone4", "Exaone4ForCausalLM", _SLIDING, *_LLAMA),
        _long("glm", "GlmForCausalLM", {**_WIDE_HEADS, "pad_token_id": 0}, *_LLAMA),
        _long("glm4", "Glm4ForCausalLM", {**_WIDE_HEADS, "pad_token_id": 0}, *_LLAMA),
        _long("gemma", "GemmaForCausalLM", _WIDE_HEADS, *_LLAMA),
        _long(
            "gemma4", "Gemma4ForCausalLM",
            {
                **_SLIDING, "head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 4096, "num_kv_shared_layers": 0,
            },
            *_LLAMA,
        ),
        _long(
            "qwen3-5", "Qwen3_5ForCausalLM", {**_WIDE_HEADS, "layer_types": ["full_attention"] * 2}, *_LLAMA,
            skipped={"heads": "the values are multiplied by a gate before the output projection"},
        ),
        _long(
            "lfm2", "Lfm2ForCausalLM",
            {**_GROUPED, "layer_types": ["full_attention"] * 2, "block_auto_adjust_ff_dim": False},
            "model.layers.{}.feed_forward.w2", "model.layers.{}.self_attn.out_proj",
        ),
        _long(
            "falcon-h1", "FalconH1ForCausalLM",
            {
                **_HEADS, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
                "mamba_n_groups": 1, "mamba_chunk_size": 8,
            },
            "model.layers.{}.feed_forward.down_proj", _LLAMA[1],
        ),
        _long("olmo", "OlmoForCausalLM", _GROUPED, *_LLAMA),
        _long("olmo2", "Olmo2ForCausalLM", _GROUPED, *_LLAMA),
        _long("olmo3", "Olmo3ForCausalLM", _SLIDING, *_LLAMA),
        _long("granite", "GraniteForCausalLM", _GROUPED, *_LLAMA),
        _long("cohere", "CohereForCausalLM", _GROUPED, *_LLAMA),
        _long("cohere2", "Cohere2ForCausalLM", _SLIDING, *_LLAMA),
        _long("stablelm", "StableLmForCausalLM", _GROUPED, *_LLAMA),
        _long("nemotron", "NemotronForCausalLM", _HEADS, *_LLAMA),
        _long("smollm3", "SmolLM3ForCausalLM", {**_GROUPED, "pad_token_id": 0}, *_LLAMA),
        _long("ernie", "Ernie4_5ForCausalLM", _HEADS, *_LLAMA),
        _long("hunyuan", "HunYuanDenseV1ForCausalLM", _HEADS, *_LLAMA),
        _long("seed-oss", "SeedOssForCausalLM", _HEADS, *_LLAMA),
        _long("arcee", "ArceeForCausalLM", _GROUPED, *_LLAMA),
        _long("apertus", "ApertusForCausalLM", _GROUPED, *_LLAMA),
        _long("ministral3", "Ministral3ForCausalLM", _HEADS, *_LLAMA),
        _long(
            "bitnet", "BitNetForCausalLM", _GROUPED, *_LLAMA,
            skipped=dict.fromkeys(("compact", "heads"), "there is a norm before the output projection"),
        ),
        _long("vaultgemma", "VaultGemmaForCausalLM", _HEADS, *_LLAMA, fused=False),
        _long("nanochat", "NanoChatForCausalLM", _GROUPED, "model.layers.{}.mlp.fc2", _LLAMA[1]),
        _long("jais2", "Jais2ForCausalLM", _GROUPED, *_LLAMA),
        _long(
            "qwen2-sliding", "Qwen2ForCausalLM",
            {**_GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, *_LLAMA,
        ),
        _long("llama-bias", "LlamaForCausalLM", {**_GROUPED, "attention_bias": True, "mlp_bias": True}, *_LLAMA),
        _long("llama-tied", "LlamaForCausalLM", {**_GROUPED, "tie_word_embeddings": True}, *_LLAMA),
    ]
    if family is not None
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
