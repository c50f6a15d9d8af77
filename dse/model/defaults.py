"""Defaults of config classes: what a field means that a nested table of a config leaves out.

Data, not code: the values are those of the classes in transformers 5.23 (a test compares each), with three additions
that have no class there. ``internlm2``, ``intern_vit_6b`` and ``internvl_chat`` are those of the InternVL repository
(OpenGVLab/InternVL, internvl_chat/internvl/model, read). ``processor/...`` are the values that the released
checkpoints of a family put beside their config, in preprocessor_config.json; the classes of the Qwen processors have
other ones, which no release uses.

Only fields that some reader asks for are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


def class_defaults(model_type: str) -> Mapping[str, Any]:
    """Return the defaults of a model type, none for an unknown one."""
    return CLASS_DEFAULTS.get(model_type, _NONE)


CLASS_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28,
    },
    "qwen2_vl_text": {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
        "use_sliding_window": False, "max_window_layers": 80,
    },
    "qwen2_5_vl_text": {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
        "use_sliding_window": False, "max_window_layers": 80,
    },
    "qwen3": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "attention_bias": False, "sliding_window": 4096, "use_sliding_window": False,
        "max_window_layers": 28,
    },
    "qwen3_vl_text": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 128000,
        "attention_bias": False,
    },
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "attention_bias": False,
    },
    "gemma2": {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "attention_bias": False, "sliding_window": 4096,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "attention_bias": False, "sliding_window": 4096,
    },
    "phi3": {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "sliding_window": None,
    },
    "starcoder2": {
        "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": True, "use_bias": True, "sliding_window": None,
    },
    "granite": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    },
    "olmo2": {
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "attention_bias": False,
    },
    "mixtral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen2_moe": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "qkv_bias": True, "sliding_window": 4096, "use_sliding_window": False,
        "max_window_layers": 28, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    "qwen3_moe": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "attention_bias": False, "sliding_window": 4096, "use_sliding_window": False,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
    "qwen3_vl_moe_text": {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": None, "max_position_embeddings": 128000,
        "tie_word_embeddings": True, "attention_bias": False, "num_experts": 60, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    "ministral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "sliding_window": 4096,
    },
    "glm4": {
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "attention_bias": True,
    },
    "gpt_oss": {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "attention_bias": True, "sliding_window": 128, "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    "olmoe": {
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": None, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "attention_bias": False, "num_experts": 64, "num_experts_per_tok": 8,
    },
    "deepseek_v2": {
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "num_experts_per_tok": None,
        "moe_intermediate_size": 1407, "first_k_dense_replace": 0, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "n_routed_experts": 64, "n_shared_experts": 2, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "deepseek_v3": {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "attention_bias": False, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "n_routed_experts": 256, "n_shared_experts": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "llama4_text": {
        "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "attention_bias": False, "num_local_experts": 16, "num_experts_per_tok": 1,
        "intermediate_size_mlp": 16384, "interleave_moe_layer_step": 1, "use_qk_norm": True,
        "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
    },
    "mllama_text_model": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    },
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True,
    },
    "qwen2_vl_vision": {
        "hidden_size": 3584, "patch_size": 14, "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16,
        "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "qwen2_5_vl_vision": {
        "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14, "depth": 32, "num_heads": 16,
        "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "qwen3_vl_vision": {
        "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "depth": 27, "num_heads": 16,
        "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    },
    "qwen3_vl_moe_vision": {
        "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "depth": 27, "num_heads": 16,
        "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 3584,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    },
    "internvl_vision": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_channels": 3, "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": False,
        "use_qk_norm": False, "norm_type": "layer_norm", "use_mask_token": False,
        "use_absolute_position_embeddings": True, "use_mean_pooling": True,
    },
    "idefics3_vision": {
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 224, "patch_size": 32,
    },
    "smolvlm_vision": {
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 224, "patch_size": 32,
    },
    "llama4_vision_model": {
        "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34, "num_attention_heads": 16,
        "num_channels": 3, "image_size": 448, "patch_size": 14, "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 7680,
    },
    "mllama_vision_model": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_channels": 3, "image_size": 448,
        "patch_size": 14, "vision_output_dim": 7680, "num_global_layers": 8, "attention_heads": 16,
        "max_num_tiles": 4, "intermediate_layers_indices": [3, 7, 15, 23, 30],
    },
    "llava": {
        "tie_word_embeddings": False, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
    },
    "llava_next": {
        "tie_word_embeddings": False, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "paligemma": {
        "tie_word_embeddings": True, "projection_dim": 2048,
    },
    "gemma3": {
        "tie_word_embeddings": True, "mm_tokens_per_image": 256,
    },
    "idefics3": {
        "tie_word_embeddings": False, "scale_factor": 2,
    },
    "smolvlm": {
        "tie_word_embeddings": False, "scale_factor": 2,
    },
    "internvl": {
        "tie_word_embeddings": True, "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        "downsample_ratio": 0.5,
    },
    "llama4": {
        "tie_word_embeddings": False,
    },
    "qwen2_vl": {
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "tie_word_embeddings": False,
    },
    "qwen3_vl": {
        "tie_word_embeddings": False,
    },
    "qwen3_vl_moe": {
        "tie_word_embeddings": False,
    },
    "whisper": {
        "vocab_size": 51865, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
        "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "num_mel_bins": 80,
        "max_source_positions": 1500, "max_target_positions": 448, "tie_word_embeddings": True,
    },
    "qwen2_audio_encoder": {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "num_mel_bins": 128, "max_source_positions": 1500,
    },
    "internlm2": {
        "vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "bias": True,
    },
    "intern_vit_6b": {
        "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48, "num_attention_heads": 25,
        "num_channels": 3, "image_size": 224, "patch_size": 14, "qkv_bias": False, "qk_normalization": True,
        "norm_type": "rms_norm",
    },
    "internvl_chat": {
        "select_layer": -1, "downsample_ratio": 0.5, "dynamic_image_size": False, "use_thumbnail": False,
        "min_dynamic_patch": 1, "max_dynamic_patch": 6,
    },
    "processor/qwen2_vl": {"shortest_edge": 3136, "longest_edge": 12845056},
    "processor/qwen2_5_vl": {"shortest_edge": 3136, "longest_edge": 12845056},
    "processor/qwen3_vl": {"shortest_edge": 65536, "longest_edge": 16777216},
    "processor/qwen3_vl_moe": {"shortest_edge": 65536, "longest_edge": 16777216},
    "processor/internvl": {"min_patches": 1, "max_patches": 12},
    "processor/llama4": {"max_patches": 16},
}  # fmt: skip
