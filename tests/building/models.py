"""Tiny language models of every kind that people bring, with random weights and tokenizers trained on the spot."""

import itertools

SENTENCES = [
    f"a photo of {color} {thing} object"
    for color, thing in itertools.product(
        ("red", "blue", "green", "small", "wooden"), ("dog", "cat", "wheel", "feather")
    )
] * 3


def save_gpt2(folder):
    """Byte-level pieces, a word's mark is the space before it; no padding piece, no unknown one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2Model

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_embd=8, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _save(folder, GPT2Model, config, tokenizer)


def save_llama(folder):
    """Unigram-like pieces with bytes for what is unknown, a sentence begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import LlamaConfig, LlamaModel

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # with no splitter of words, merges would run across them: train on the words
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([word for sentence in SENTENCES for word in sentence.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return _save(folder, LlamaModel, config, tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_t5(folder):
    """Unigram pieces, an unknown one, a sentence ends with </s>; an encoder and a decoder."""
    from transformers import T5Config, T5Model

    tokenizer = _unigram()
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return _save(folder, T5Model, config, tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def save_clip(folder, text_only=False):
    """Pieces that end a word are marked; the unknown piece is the piece that ends a sentence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=120, end_of_word_suffix="</w>", special_tokens=[start, end], show_progress=False
    )
    _train(tokenizer, trainer)
    tokenizer.add_special_tokens([start, end])
    ids = {piece: tokenizer.token_to_id(piece) for piece in (start, end)}
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=[*ids.items()])
    text = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 24, "projection_dim": 6,
        "bos_token_id": ids[start], "eos_token_id": ids[end], "pad_token_id": ids[end],
    }  # fmt: skip
    names = {"unk_token": end, "bos_token": start, "eos_token": end, "pad_token": end}
    if text_only:
        return _save(folder, CLIPTextModelWithProjection, CLIPTextConfig(**text), tokenizer, **names)
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4, "projection_dim": 6,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    return _save(folder, CLIPModel, config, tokenizer, **names)


def save_siglip(folder, text_only=False):
    """Unigram pieces, a sentence ends with </s>; encodings are of 24 places, the last of which tells."""
    from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipTextModel

    tokenizer = _unigram()
    text = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 24, "projection_size": 8,
        "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    names = {"unk_token": "<unk>", "pad_token": "</s>", "eos_token": "</s>"}
    if text_only:
        return _save(folder, SiglipTextModel, SiglipTextConfig(**text), tokenizer, **names)
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    return _save(folder, SiglipModel, SiglipConfig(text_config=text, vision_config=vision), tokenizer, **names)


def save_t5encoder(folder):
    """T5's encoder by itself, as text-to-image models come with it."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = _unigram()
    config = T5Config(vocab_size=tokenizer.get_vocab_size(), d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    return _save(folder, T5EncoderModel, config, tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def save_vit(folder):
    """A model of images, without a tokenizer."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(folder)
    return str(folder)


def _unigram():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    _train(tokenizer, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def _train(tokenizer, trainer):
    tokenizer.train_from_iterator(SENTENCES, trainer)


def _save(folder, kind, config, tokenizer, **special_tokens):
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():  # as they come, tiny models hardly tell one text from another
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return str(folder)
