"""transformers' codecs with random weights, small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

ALL = ("xcodec2", "neucodec", "mimi", "dac")
EAR: dict[str, Any] = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "feature_projection_input_dim": 160,
    "conv_depthwise_kernel_size": 3,
    "output_hidden_size": 16,
}
BOTH: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "encoder_hidden_size": 2,
    "semantic_model_config": EAR,
    "quantization_dim": 48,
}
MIMI: dict[str, Any] = {
    "hidden_size": 16,
    "num_filters": 2,
    "codebook_size": 32,
    "codebook_dim": 8,
    "num_quantizers": 4,
    "num_hidden_layers": 1,
    "vector_quantization_hidden_dimension": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "upsample_groups": 16,
}
DAC: dict[str, Any] = {
    "encoder_hidden_size": 2,
    "decoder_hidden_size": 32,
    "n_codebooks": 4,
    "codebook_size": 32,
    "codebook_dim": 4,
}


def tiny(family: str, seed: int = 0) -> Any:
    """The model with weights that make its ids hang on what it hears."""
    torch.manual_seed(seed)
    build: dict[str, Any] = {
        "xcodec2": lambda: tf.Xcodec2Model(tf.Xcodec2Config(**BOTH)),
        "neucodec": lambda: tf.NeuCodecModel(tf.NeuCodecConfig(**BOTH)),
        "mimi": lambda: tf.MimiModel(tf.MimiConfig(**MIMI)),
        "dac": lambda: tf.DacModel(tf.DacConfig(**DAC)),
    }
    made = build[family]()
    with torch.no_grad():
        for name, weight in made.named_parameters():  # fresh quantisers are all but zero: one id for everything
            if weight.ndim > 1 and ("quantizer" in name or "fc_encoder" in name or "acoustic_encoder" in name):
                weight.normal_(0, 3 / weight[0].numel() ** 0.5)
        for name, buffer in made.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
    return made.eval()
