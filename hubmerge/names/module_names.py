"""First segments of the names that models of transformers and diffusers have.

Without a config they tell a model's own names from the attribute that a trainer's module holds the
model in: `policy.model.layers…` begins with such an attribute, `model.layers…` does not.
"""

from __future__ import annotations

_BASES = """
    aimv2 albert align altclip audio_spectrogram_transformer audio_video_encoder beit bert
    bert_model biogpt bit blip bridgetower bros canine chinese_clip chmv2 clap clip convbert
    convnext convnextv2 cpmant cvt dac data2vec_audio data2vec_text data2vec_vision deberta
    decision_transformer deit depth_anything depth_pro dinat dinov2 dinov2_with_registers
    distilbert donut dpt edgetam edgetam_video efficientloftr efficientnet electra emuvideovq
    encodec encoder_decoder
    eomt eomt_dinov3 ernie esm esmc esmfold2 fastspeech2_conformer flava fnet focalnet
    funnel git glpn gpt_neox gpt_neox_japanese groupvit gte hgnetv2 hiera
    higgs_audio_v2_tokenizer hubert ibert ijepa internvl_vision layoutlm layoutlmv2 layoutlmv3
    led levit lightglue lilt longformer luke lw_detr_vit lxmert markuplm metaclip_2 mgp_str mimi
    mobilebert mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 model mpnet mra neucodec
    nomic_bert nystromformer owlv2 owlvit perceiver phi4_vision pixio pocket_tts_audio_tokenizer
    poolformer prompt_depth_anything prophetnet pvt pvt_v2 rag reformer regnet rembert resnet
    rf_detr_dinov2 roberta roberta_prelayernorm roc_bert roformer rwkv sam sam2 sam2_video sam3
    sam3_tracker sam3_video sam_hq seamless_m4t seamless_m4t_v2 segformer sew sew_d siglip
    siglip2 speech_encoder_decoder
    speecht5 splinter superglue superpoint swiftformer swin swin2sr swinv2
    switch_transformers tapas textnet timesformer transformer unispeech unispeech_sat
    vibevoice_acoustic_tokenizer videomae videomt vilt vision_encoder_decoder
    vision_text_dual_encoder visual_bert vit vitdet vits vivit vjepa2 vlm wav2vec2 wav2vec2_bert
    wav2vec2_conformer wavlm x_clip xcodec xcodec2 yoso zoedepth
"""

_MODULES = """
    LayerNorm acoustic_decoder acoustic_encoder aifi aligner answer_head attentions
    attn_mask_probs audio_encoder audio_latent_proj audio_model audio_projection
    audio_prompt_proj audio_tower avg_pool avg_pooler backbone bbox_attention bbox_embed
    bbox_predictor block blocks bos_latent box_bias box_head box_rpb_embed_x box_rpb_embed_y
    bridge class_embed class_embedding class_head class_labels_classifier class_predictor
    classification_head classifier cls cls_token coarse_acoustics code2wav codec_embedding
    codec_head codec_model connector context_embedder conv1 conv2 conv2d1 conv2d2 conv2d3
    conv_block conv_in conv_layers conv_out conv_post conv_pre conv_stem convolution
    cross_attn_layers cross_modal_image_link_tower cross_modal_image_transform
    cross_modal_text_link_tower cross_modal_text_transform ctc_head ctx_encoder decode_head
    decoder decoder_input_proj decoder_seanet decoder_semantic decoder_transformer
    deepstack_merger_list denoising_class_embed depth_decoder detector_model detr_decoder
    detr_encoder discriminator_predictions distogram_head distribution_output
    dot_product_scoring down_blocks downsample downsample_convs dur_predictor duration_predictor
    embed_audio_tokens embed_in embed_positions embed_tokens embed_tokens_per_layer embed_vision
    embedder embedding embedding_layernorm embedding_norm embedding_proj_layer embeddings
    embeddings_layer_norm embeddings_project enc_bbox_head enc_out_bbox_embed
    enc_out_class_embed enc_output enc_output_norm enc_score_head enc_to_dec_proj
    encode_positions encoder encoder_input_proj encoder_model encoder_output_bbox_embed
    encoder_output_class_embed encoder_projector encoder_seanet encoder_semantic
    encoder_transformer eos_head fc fc1 fc2 fc_encoder feature_extractor feature_projection ffns
    final_input final_layer_norm final_layernorm final_logits_bias final_norm fine_acoustics
    flow_head fpn_blocks generator_lm_head generator_predictions geometry_encoder
    global_transformer h hc_head head head_layernorm hidden_states_norms hifi_gan image_newline
    image_to_text_projection inject_scale inner_layer_norm input_embeds_layer input_ff_layer
    input_layer_norm input_linear input_proj input_proj_vision input_projection
    instance_projection intermediate_ffn itm_head joint keypoint_detector lang_embeddings
    language_embedding language_model language_projection latent_mean latent_stats_num_updates
    latent_std lateral_convs layer layer_norm layer_norm1 layer_norm2 layer_norm_emb
    layer_weights layernorm layernorm_embedding layernorm_final layernorm_post layernorm_pre
    layers level_embed lm_head lm_heads lm_predictions ln_f ln_post ln_pre logit_bias
    logit_scale logit_softcap logits_proj mask_decoder mask_downsample mask_embedder mask_head
    masked_spec_embed memory_attention memory_encoder memory_temporal_positional_encoding merger
    mid_block mlm_score mtp multi_modal_projector multiple_choice_head neck no_memory_embedding
    no_memory_positional_encoding no_object_pointer norm norm_f norm_out object_pointer_proj
    occlusion_spatial_embedding_parameter out out_mid output output_layer_norm output_projection
    pan_blocks patch_embed patch_embedder patch_embedding patch_embedding_projection
    patch_embeddings patch_merger patcher per_layer_model_projection per_layer_projection_norm
    perception_emb_norm pixel_decoder pixel_level_module pooler pos_emb pos_embed
    position_embedding position_embeddings position_embeds_layer position_encoding position_ids
    positional_embedding positional_encoder post_conv_layernorm post_layernorm post_projection
    post_quant_conv pre_bbox_head pre_classifier pre_layernorm pre_layrnorm pre_projection
    pred_layer predictions prenet presence_head presence_layer_norm presence_token proj proj_out
    project_hid project_q projection projection_head projector prompt_cross_attn
    prompt_cross_attn_norm prompt_encoder qa_classifier qa_outputs qformer quant_conv quantize
    quantizer query query_embed query_feat query_pos_head query_position_embeddings query_scale
    query_tokens question_encoder ref_point_head reference_point_embed reference_points
    reference_points_head reg_scale relative_head resblocks rms_norm rope_embeddings rotary_emb
    rotary_embedding rotary_embeddings rotary_embs rotary_pos_emb sam_encoder score
    segmentation_head self_attn_prompt semantic semantic_adapter semantic_encoder semantic_model
    semantic_projection semantic_tokenizer_encoder sequence_summary shared
    shared_image_embedding single_transformer_blocks span_predictor speaker_embedding
    special_tokens speech_decoder_postnet speech_encoder splinter_qass stages stem
    subsample_conv_projection subsampling svtr_block t2u_model talker task_encoder tdnn
    temporal_positional_encoding_projection_layer text_backbone text_decoder text_encoder
    text_model text_projection thinker time_embedding time_text_embed timm_model token2wav
    token_embedding_projection tracker_model transformer_blocks transformer_module
    transposed_convolution unit_embedding up_blocks upsample upsampler upscale_block
    value_embedding video_model view_separator vision_adapter vision_encoder vision_model
    vision_projection vision_tokenizer vision_tower visual visual_projection vit_merger vocoder
    vqmodel weight_embedding word_embeddings wpe wrapped_decoder wrapped_encoder wte x_embedder
"""

# `base_model_prefix` of transformers' classes: the model without its head, which lies beside it.
BASES = frozenset(_BASES.split())

# Other modules and parameters at the top of a model.
MODULES = frozenset(_MODULES.split())

# What makes a base model a whole one.
HEADS = frozenset({"lm_head", "lm_heads", "embed_out", "cls", "classifier", "qa_outputs", "score"})


def is_module(segment: str) -> bool:
    """Return whether names of a published model begin with `segment`."""
    return segment in BASES or segment in MODULES
