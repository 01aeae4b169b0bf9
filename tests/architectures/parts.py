"""Parts of the configs of tiny models, which several architectures have in common."""

from __future__ import annotations

from typing import Any

from tests.tiny_models import CONTEXT, VOCABULARY

WIDTH, LAYERS = 32, 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
GEMMA: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": 1.5,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
GEMMA_4 = {**GEMMA, "global_head_dim": 8, "num_global_key_value_heads": 2}
MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
}
THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
THINKER: dict[str, Any] = {
    "text_config": {**SIZES, **THREE_AXES, "model_type": "qwen2_5_omni_text"},
    "vision_config": {**QWEN_VISION, "model_type": "qwen2_5_omni_vision_encoder"},
    "audio_config": {
        **{"model_type": "qwen2_5_omni_audio_encoder", "d_model": 16, "encoder_layers": 1, "output_dim": WIDTH},
        **{"encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16},
    },
}
SPEECH: dict[str, Any] = {
    "talker_config": {
        **{**SIZES, **THREE_AXES, "embedding_size": WIDTH, "head_dim": 8},
        **{f"tts_codec_{name}_token_id": 1 for name in ("start", "end", "pad", "mask")},
        **{f"tts_text_{name}_token_id": 1 for name in ("start", "end", "pad")},
    },
    "token2wav_config": {
        "dit_config": {
            **{"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "ff_mult": 1, "emb_dim": 16},
            **{"head_dim": 16, "mel_dim": 16, "num_embeds": 64, "enc_dim": 16, "enc_emb_dim": 16},
            **{"enc_channels": [16, 16, 16, 16, 48], "enc_attention_channels": 8},
        },
        "bigvgan_config": {
            **{"mel_dim": 16, "upsample_initial_channel": 16, "upsample_rates": [2], "upsample_kernel_sizes": [4]},
        },
    },
}
HEADS_ALIKE = {"num_key_value_heads": 4}
