"""Tiny models of many architectures: what each is an example of, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.architectures.parts import (
    EXPERTS,
    GEMMA,
    GEMMA_4,
    HEADS_ALIKE,
    LATENT,
    LINEAR,
    MAMBA_2,
    QWEN_VISION,
    SIZES,
    SPEECH,
    THINKER,
    THREE_AXES,
    VISION,
    WIDTH,
)
from tests.tiny_models import CONTEXT


@dataclass(frozen=True)
class Architecture:
    """A ``model_type`` of transformers, what it is an example of, and what its config needs beside ``SIZES``."""

    name: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)  # None takes an entry of SIZES out
    scale: float = 5.0  # of its matrices, so that predictions are far from uniform
    auto: str = "AutoModelForCausalLM"
    exact: torch.dtype = torch.float64  # float32 where transformers' own code fails in float64

    def model(self, seed: int) -> Any:
        """With random weights, in float32 and eval mode; the global random state is left as it was."""
        given = {**SIZES, **self.config}
        config = transformers.AutoConfig.for_model(self.name, **{k: v for k, v in given.items() if v is not None})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, self.auto).from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(self.scale)
        return model.float().eval()


def wrapper(name: str, text: str, vision: str, sizes: Mapping[str, Any] = VISION, **more: Any) -> Architecture:
    """A language model with eyes, of ``sizes``; keys that begin with text_ are of its language model."""
    of_text = {key.removeprefix("text_"): more.pop(key) for key in list(more) if key.startswith("text_")}
    config = {
        **dict.fromkeys(SIZES),
        "text_config": {**SIZES, "model_type": text, "head_dim": 8, **of_text},
        "vision_config": {**sizes, "model_type": vision},
        **more,
    }
    return Architecture(name, "multimodal wrapper", config, auto="AutoModelForMultimodalLM")


def of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a language model's config as ``wrapper`` takes them."""
    return {f"text_{key}": value for key, value in config.items()}


DENSE = (
    "llama",
    "qwen2",
    "qwen3",
    "olmo",
    "olmo2",
    "olmo3",
    "phi",
    "stablelm",
    "starcoder2",
    "smollm3",
    "glm",
    "helium",
    "arcee",
    "ernie4_5",
    "exaone4",
    "glm4",
    "hunyuan_v1_dense",
    "ministral3",
    "nanochat",
    "seed_oss",
)
ARCHITECTURES = (
    *(Architecture(name, "dense", {"head_dim": 8} if name in DENSE[DENSE.index("glm") :] else {}) for name in DENSE),
    Architecture("gpt_neox", "dense, heads renamed"),
    Architecture(
        "gptj", "dense", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4}
    ),
    Architecture("persimmon", "dense", HEADS_ALIKE),
    Architecture("nemotron", "dense", {"head_dim": 8}),
    Architecture("apertus", "dense, learned activation"),
    Architecture("diffllama", "dense, differential attention"),
    Architecture("gpt2", "learned positions", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    Architecture("opt", "learned positions", {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH // 2}),
    Architecture("biogpt", "learned positions"),
    Architecture(
        "xglm",
        "fixed positions",
        {"d_model": WIDTH, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
        exact=torch.float32,
    ),
    Architecture(
        "gpt_bigcode", "learned positions", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    ),
    Architecture("bloom", "ALiBi", {"max_position_embeddings": None, "n_layer": 2, "n_head": 4}),
    Architecture(
        "mpt",
        "ALiBi",
        {"max_position_embeddings": None, "max_seq_len": CONTEXT, "d_model": WIDTH, "n_layers": 2, "n_heads": 4},
    ),
    Architecture("falcon", "ALiBi", {"alibi": True, "num_key_value_heads": None, "intermediate_size": None}),
    Architecture("mistral", "sliding window", {"sliding_window": 24}),
    Architecture(
        "gpt_neo",
        "sliding window",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 24},
    ),
    Architecture(
        "gemma2", "sliding window, soft-capped", {"head_dim": 8, "sliding_window": 24, "final_logit_softcapping": 1.5}
    ),
    Architecture("gemma3_text", "sliding window", {"head_dim": 8, "sliding_window": 24}),
    Architecture(
        "gemma3n_text",
        "sliding window, soft-capped",
        {
            **GEMMA,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0, 0.0],
            "intermediate_size": [64, 64],
        },
    ),
    Architecture("gemma4_text", "sliding window, soft-capped", GEMMA_4),
    Architecture("vaultgemma", "sliding window, soft-capped", {"head_dim": 8, "sliding_window": 24}),
    Architecture("cohere", "scaled", {"logit_scale": 0.25}),
    Architecture("cohere2", "scaled, sliding window", {"logit_scale": 0.25, "sliding_window": 24}),
    Architecture("granite", "scaled", {"logits_scaling": 3.0}),
    Architecture("hyperclovax", "scaled", {"logits_scaling": 3.0}),
    Architecture(
        "phi3",
        "positions change with length",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
            },
        },
    ),
    Architecture("olmoe", "experts", {**EXPERTS, **HEADS_ALIKE}),
    Architecture("mixtral", "experts", {**EXPERTS, "sliding_window": None}),
    Architecture(
        "qwen2_moe", "experts", {**EXPERTS, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH}
    ),
    Architecture("qwen3_moe", "experts", {**EXPERTS, "moe_intermediate_size": WIDTH, "head_dim": 8}),
    Architecture("granitemoe", "experts, scaled", {**EXPERTS, "logits_scaling": 3.0}),
    Architecture("phimoe", "experts", EXPERTS),
    Architecture("gpt_oss", "experts, sliding window, sinks", {**EXPERTS, "head_dim": 8, "sliding_window": 24}),
    Architecture("deepseek_v2", "experts, latent attention", LATENT),
    Architecture("deepseek_v3", "experts, latent attention", LATENT),
    Architecture("glm4_moe", "experts", {**LATENT, "head_dim": 8, "num_key_value_heads": 2}),
    Architecture("dots1", "experts", LATENT),
    Architecture("ernie4_5_moe", "experts", {**EXPERTS, "moe_intermediate_size": WIDTH}),
    Architecture("flex_olmo", "experts", EXPERTS),
    Architecture("minimax_m2", "experts", {**EXPERTS, "head_dim": 8}),
    Architecture("deepseek_v32", "experts, latent attention", LATENT),
    Architecture("deepseek_v4", "experts, latent attention", LATENT),
    Architecture("mamba", "state space", {"state_size": 4, "time_step_rank": 4, "max_position_embeddings": None}),
    Architecture(
        "mamba2",
        "state space",
        {
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "max_position_embeddings": None,
        },
    ),
    Architecture(
        "falcon_mamba", "state space", {"state_size": 4, "time_step_rank": 4, "max_position_embeddings": None}
    ),
    Architecture(
        "rwkv", "recurrent", {"attention_hidden_size": WIDTH, "context_length": CONTEXT, "num_hidden_layers": 8}
    ),
    Architecture("xlstm", "recurrent", {"num_heads": 4, "chunk_size": 16, "max_position_embeddings": None}),
    Architecture(
        "recurrent_gemma",
        "hybrid, soft-capped",
        {"logits_soft_cap": 1.5, "attention_window_size": 24, "lru_width": WIDTH, "num_hidden_layers": 3},
    ),
    Architecture(
        "jamba",
        "hybrid, experts",
        {
            **EXPERTS,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    Architecture("bamba", "hybrid", {**MAMBA_2, "attn_layer_indices": [1]}),
    Architecture(
        "falcon_h1", "hybrid, scaled", {**MAMBA_2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "head_dim": 8}
    ),
    Architecture(
        "granitemoehybrid",
        "hybrid, experts",
        {**EXPERTS, **MAMBA_2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    ),
    Architecture("lfm2", "hybrid", {"layer_types": ["conv", "full_attention"]}),
    Architecture(
        "qwen3_next",
        "hybrid, experts",
        {
            **EXPERTS,
            "moe_intermediate_size": WIDTH,
            "shared_expert_intermediate_size": WIDTH,
            **LINEAR,
        },
    ),
    Architecture("minimax", "hybrid, experts", {**EXPERTS, "head_dim": 8}),
    Architecture(
        "lfm2_moe",
        "hybrid, experts",
        {**EXPERTS, "moe_intermediate_size": WIDTH, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    Architecture(
        "nemotron_h",
        "hybrid",
        {
            **{"layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": None, "head_dim": 8},
            **{"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16},
        },
    ),
    Architecture(
        "zamba2",
        "hybrid",
        {
            **{"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "num_mem_blocks": 1, **HEADS_ALIKE},
            **{"attention_head_dim": 16, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 16},
        },
    ),
    Architecture("olmo_hybrid", "hybrid", LINEAR),
    Architecture("qwen3_5_text", "hybrid", LINEAR),
    wrapper("gemma3", "gemma3_text", "siglip_vision_model", mm_tokens_per_image=4),
    wrapper("mistral3", "mistral", "pixtral", image_token_index=9),
    wrapper("llava", "llama", "clip_vision_model", image_token_index=9),
    wrapper("idefics3", "llama", "idefics3_vision", scale_factor=1, image_token_id=9),
    wrapper(
        "qwen2_vl",
        "qwen2_vl_text",
        "qwen2_vl",
        {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": WIDTH, "patch_size": 14},
        text_rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    ),
    wrapper("qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision", QWEN_VISION, **of_text(THREE_AXES)),
    wrapper("qwen3_vl", "qwen3_vl_text", "qwen3_vl_vision", QWEN_VISION, **of_text(THREE_AXES)),
    wrapper("qwen3_5", "qwen3_5_text", "qwen3_5_vision", QWEN_VISION, **of_text(LINEAR)),
    wrapper(
        "gemma4",
        "gemma4_text",
        "gemma4_vision",
        {**VISION, "head_dim": 8, "num_key_value_heads": 2, "global_head_dim": 8},
        audio_config=None,
        **of_text(GEMMA_4),
    ),
    Architecture(
        "qwen2_5_omni_thinker",
        "multimodal wrapper",
        {**dict.fromkeys(SIZES), **THINKER},
        auto="AutoModelForMultimodalLM",
    ),
    Architecture(
        "qwen2_5_omni",
        "several models",
        {**dict.fromkeys(SIZES), "thinker_config": THINKER, **SPEECH},
        auto="AutoModelForMultimodalLM",
    ),
    wrapper(
        "llama4",
        "llama4_text",
        "llama4_vision_model",
        {**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        text_num_local_experts=2,
        text_intermediate_size_mlp=64,
        text_interleave_moe_layer_step=1,
    ),
    wrapper(
        "mllama",
        "mllama_text_model",
        "mllama_vision_model",
        {
            **{key: value for key, value in VISION.items() if key != "num_attention_heads"},
            **{"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": WIDTH},
            "intermediate_layers_indices": [0],
        },
        text_cross_attention_layers=[1],
    ),
    Architecture(
        "idefics",
        "multimodal wrapper",
        {
            "vision_config": {**VISION, "embed_dim": 16},
            **{"use_resampler": False, "cross_layer_interval": 1, "num_key_value_heads": None},
        },
        auto="AutoModelForMultimodalLM",
    ),
    wrapper("paligemma", "gemma", "siglip_vision_model", image_token_index=9, projection_dim=WIDTH),
    Architecture("rembert", "dense, a layer before the head", {"is_decoder": True}),
    Architecture(
        "reformer",
        "random hashes",
        {
            **{"is_decoder": True, "attention_head_size": 8, "feed_forward_size": 64, "num_key_value_heads": None},
            **{"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16], "pad_token_id": 0},
        },
    ),
    Architecture("bert", "encoder", {"is_decoder": False}),
    Architecture("roberta", "encoder", {"is_decoder": False}),
    Architecture("electra", "encoder", {"is_decoder": False, "embedding_size": WIDTH}),
    Architecture(
        "t5",
        "encoder and decoder",
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        auto="AutoModelForSeq2SeqLM",
    ),
    Architecture("llama", "classifier", auto="AutoModelForSequenceClassification"),
)
