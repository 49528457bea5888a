"""The order among siblings in the models of transformers: facts about published code, by the names in its files.

A row holds for the families listed below; one that begins with families, for those alone.
"""

from __future__ import annotations

_FAMILIES = """
albert arcee aria_text audioflamingo3_encoder bart beit bert bert-generation big_bird bigbird_pegasus biogpt
blenderbot blenderbot-small blip_2_qformer bloom bros camembert chinese_clip_vision_model clip
clip_text_model clip_vision_model codegen cohere cohere2 cosmos3_edge_text cwm data2vec-audio deberta
deberta-v2 deepseek_v3 deit dinov2 dinov2_with_registers distilbert dpr emu3 ernie ernie4_5 esmc eurobert
exaone4 exaone4_5_vision falcon falcon_mamba gemma gemma2 gemma3_text gemma4_vision glm glm4v_moe_text
glm_image_vision glm_image_vqmodel glmasr_encoder gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_docling_text granite_swa helium hubert idefics3
idefics3_vision ijepa imagegpt internlm3 iquestcoder jais2 kyutai_speech_to_text llama llava llava_next
llava_next_video longformer longt5 m2m_100 mamba mamba2 marian mbart metaclip_2 minicpm3 ministral3 mistral
mistral4 mobilenet_v1 modernbert moshi moss_transcribe_diarize_audio mpt mra mt5 mvp nanochat olmo olmo2
olmo3 openai_privacy_filter opt patchtsmixer patchtst pegasus phi phi3 plbart pp_lcnet qwen2 qwen2_5_vl_text
qwen2_5_vl_vision qwen2_audio qwen2_audio_encoder qwen2_vl_text qwen3 qwen3_asr_encoder qwen3_vl_text regnet
rembert resnet roberta roformer seed_oss siglip siglip2 siglip2_vision_model siglip_vision_model smollm3
smolvlm smolvlm_vision speech_to_text splinter stablelm starcoder2 swinv2 t5 ultrabert umt5 unispeech
unispeech-sat vipllava vit vit_mae vitdet vivit voxtral_encoder wav2vec2 wavtokenizer_encoder whisper xglm
xlm-roberta yoso youtu
"""
FAMILIES = frozenset(_FAMILIES.split())
"""Families (``model_type``) of transformers 5.24 in none of whose modules an order contradicts the rows."""

_ROWS = """
embed_tokens layers norm
embed_tokens embed_positions layers
embed_tokens embed_positions layers layer_norm
embed_tokens embed_positions layers layernorm_embedding
embed_tokens embed_positions layers layernorm_embedding layer_norm
embed_tokens embed_positions final_layer_norm layers
embed_tokens layers final_layernorm
embed_positions layers
embed_positions layers layer_norm
embed_positions layers layernorm_embedding
embed_positions layers layernorm_embedding layer_norm
embed_in layers final_layer_norm
conv1 conv2 embed_positions layers layer_norm
model lm_head
model score
model classification_head
transformer lm_head
transformer score
gpt_neox score
backbone lm_head
shared encoder decoder
wte wpe h ln_f
wte h ln_f
wte blocks norm_f
word_embeddings word_embeddings_layernorm h ln_f
word_embeddings h ln_f
word_embeddings position_embeddings token_type_embeddings LayerNorm
word_embeddings position_embeddings LayerNorm
tok_embeddings norm
embeddings layers norm_f
embeddings layers final_norm
embeddings encoder
embeddings encoder pooler
embeddings transformer
embeddings pre_layrnorm encoder post_layernorm
class_embedding patch_embedding position_embedding
cls_token position_embeddings patch_embeddings
cls_token mask_token position_embeddings patch_embeddings
bert classifier
bert cls
distilbert pre_classifier classifier
distilbert vocab_transform vocab_layer_norm vocab_projector
deberta pooler classifier
deberta cls
embedding_hidden_mapping_in albert_layer_groups
albert classifier
albert predictions
vit classifier
dinov2 classifier
resnet classifier
model head classifier
model head decoder
bias transform
bias LayerNorm dense
dense LayerNorm
dense out_proj
dense norm
self output
attention intermediate output
attention sa_layer_norm ffn output_layer_norm
attention layer_norm feed_forward final_layer_norm
full_layer_layer_norm attention ffn ffn_output
norm1 attention layer_scale1 norm2 mlp layer_scale2
self_attn mlp
self_attn mlp input_layernorm
self_attn mlp input_layernorm post_attention_layernorm
self_attn mlp post_attention_layernorm post_feedforward_layernorm
self_attn mlp input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm
self_attn layer_norm1 mlp layer_norm2
self_attn self_attn_layer_norm fc1 fc2 final_layer_norm
self_attn self_attn_layer_norm encoder_attn encoder_attn_layer_norm fc1 fc2 final_layer_norm
self_attention mlp input_layernorm
input_layernorm self_attention post_attention_layernorm mlp
input_layernorm post_attention_layernorm attention mlp
ln_1 attn ln_2 mlp
ln_1 attn mlp
norm_1 attn norm_2 ffn
attn_norm attn mlp_norm mlp
attn mlp_norm mlp
norm mixer
block final_layer_norm
SelfAttention layer_norm
EncDecAttention layer_norm
DenseReluDense layer_norm
q_proj k_proj v_proj o_proj
q_proj k_proj v_proj o_proj q_norm k_norm
q_proj k_proj v_proj dense
k_proj v_proj q_proj out_proj
sinks q_proj k_proj v_proj o_proj
o_proj qkv_proj
query key value
query key value dense LayerNorm
query_proj key_proj value_proj
query_key_value dense
q k v o
q k v o relative_attention_bias
q_lin k_lin v_lin out_lin
q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj
Wqkv out_proj
Wqkv Wo
c_attn c_proj
gate_proj up_proj down_proj
gate_up_proj down_proj
up_proj down_proj
fc1 fc2
fc_in fc_out
c_fc c_proj
lin1 lin2
dense_h_to_4h dense_4h_to_h
wi wo
wi_0 wi_1 wo
Wi Wo
intermediate_dense output_dense
experts gate shared_experts
router experts
gate_up_proj gate_up_proj_bias down_proj down_proj_bias
A_log D conv1d in_proj x_proj dt_proj out_proj
dt_bias A_log D conv1d in_proj norm out_proj
masked_spec_embed feature_extractor feature_projection encoder
pos_conv_embed layer_norm layers
layer_norm projection
conv layer_norm
bias parametrizations
original0 original1
patch_embeddings norm
blocks downsample
reduction norm
shortcut layer
embedder encoder
convolution normalization
linear_1 linear_2
attention output
attention layernorm_before layernorm_after intermediate output
swinv2 swin2sr: attention layernorm_before intermediate output layernorm_after
embeddings encoder layernorm
embeddings encoder layernorm pooler
bias dense layer_norm
roberta classifier
roberta lm_head
longformer classifier
longformer lm_head
electra classifier
bert qa_outputs
roberta qa_outputs
distilbert qa_outputs
distilbert classifier
query key value query_global key_global value_global
q_bias v_bias in_proj
cls_token position_embeddings distillation_token patch_embeddings
cls_token patch_embeddings
beit classifier
lambda_1 lambda_2 attention layernorm_before layernorm_after intermediate output
logit_scale continuous_position_bias_mlp query key value
swinv2 classifier
embeddings encoder post_layernorm head
in_proj_weight in_proj_bias out_proj
probe attention layernorm mlp
vision_model classifier
patch_embedding position_embedding
roberta xlm-roberta camembert longformer: word_embeddings token_type_embeddings LayerNorm position_embeddings
xlm-roberta camembert: lm_head roberta
xlm-roberta camembert: classifier roberta
siglip siglip2 siglip_vision_model siglip2_vision_model: layer_norm1 self_attn layer_norm2 mlp
"""


def order_of(siblings: frozenset[str], family: str) -> tuple[str, ...] | None:
    """Return the order of parameters and modules that one module holds; None where it is not known.

    Examples
    --------
    >>> order_of(frozenset(("k_proj", "o_proj", "q_proj", "v_proj")), "llama")
    ('q_proj', 'k_proj', 'v_proj', 'o_proj')
    """
    if family not in FAMILIES:
        return None
    return _ORDERS.get((family, siblings)) or _ORDERS.get(("", siblings))


def _orders() -> dict[tuple[str, frozenset[str]], tuple[str, ...]]:
    """Read the rows by family and siblings; the family is empty where a row holds for all."""
    found = {}
    for row in filter(None, _ROWS.split("\n")):
        families, _, order = row.rpartition(":")
        names = tuple(order.split())
        found.update({(family, frozenset(names)): names for family in families.split() or ("",)})
    return found


_ORDERS = _orders()
